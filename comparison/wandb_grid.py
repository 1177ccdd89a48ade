"""A grid on Weights & Biases: what its runs share there, and the one run that sums them up."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gumbelrl.comparison.grid import Grid, Point, Status
from gumbelrl.configs.compose import ConfigError
from gumbelrl.configs.tuned_settings import in_hydra
from gumbelrl.tracking import (
    TrackingSettings,
    brief,
    environment_versions,
    first_line,
    git_commit,
    resolve_mode,
    write_atomically,
)
from gumbelrl.tracking.wandb_tracker import (
    WandbOutput,
    WandbTracker,
    answers,
    readable,
    unsent_segments,
)

JOB_TYPE = "comparison"  # of the run that sums the grid up
MEMORY = "comparison.json"  # in the grid's wandb/: that run's id, and what it was told last
TABLES = ("scores", "pairs", "runs")  # CSV files of the report
# Columns of them that are text.
_WORDS = ("env", "agent", "first", "second", "status", "run", "reason", "note")
_LONGEST = 64  # letters of a tag that W&B takes
_DEFAULTS = TrackingSettings()
# Of the runs' settings, what the summary follows too.
_SHARED = ("mode", "project", "entity", "code", "start_timeout", "stall_timeout", "finish_timeout")


class SummaryTracker(WandbTracker):
    """A W&B run of no training: its row has no env steps, and nothing else goes on while a server
    does not answer."""

    unharmed = "The grid is done"
    record = "its folder"

    def _start(self, wandb: Any) -> WandbOutput:
        if self.mode == "online" and not answers(wandb.setup().settings.base_url):
            raise ConnectionError("its server does not answer")
        return super()._start(wandb)

    def _describe(self, output: WandbOutput) -> None:
        pass

    def wait(self, deadline: float) -> None:
        # Its end comes while it starts, when nothing is known of the server.
        while self.run is None and self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
        super().wait(deadline)


def group_of(out: Path, experiment: str) -> str:
    """What the runs of a folder share on W&B: its name."""
    return _fit(out.resolve().name or experiment)


def names_of(
    point: Point, given: Mapping[str, Any], experiment: str, group: str, job_type: str
) -> list[str]:
    """Overrides that name a run on W&B, but for what a user has set.

    Args:
        point: the run.
        given: its tracking settings.
        experiment: its first tag.
        group: what it shares with the other runs.
        job_type: what kind of run it is among them.
    """
    swept = [f"{key.rpartition('.')[2]}={value}" for key, value in point.settings.items()]
    labels = [experiment, point.env, point.agent, *swept, f"seed {point.seed}"]
    names = {"group": group, "job_type": job_type, "tags": _tags(labels)}
    return [
        f"tracking.{key}={in_hydra(name)}"
        for key, name in names.items()
        if name and given[key] in (getattr(_DEFAULTS, key), [])
    ]


class WandbGrid:
    """Names for the runs of a grid, and their summary; nothing where W&B is off.

    Args:
        experiment: its name.
        out: the grid's folder, whose name the runs share as their group.
        configs: the resolved configuration of every cell.

    Raises:
        ConfigError: WANDB_MODE says what it cannot.
    """

    def __init__(
        self, experiment: str, out: Path, configs: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.experiment, self.out = experiment, out
        self.group = group_of(out, experiment)
        try:
            self._tracked = {
                cell: config["tracking"]
                for cell, config in configs.items()
                if resolve_mode(config["tracking"]["mode"]).mode != "disabled"
            }
        except ValueError as error:
            raise ConfigError(first_line(error)) from error

    def overrides(self, point: Point) -> list[str]:
        """Overrides of train.py that name a run on W&B, to stand before those of the point.

        What a user has set stays: in a file of the tracking group, on the command line, which
        comes later, or by WANDB_TAGS.
        """
        given = self._tracked.get(point.cell)
        if given is None:
            return []
        return names_of(point, given, self.experiment, self.group, _fit(point.agent))

    def summarise(self, grid: Grid) -> list[str]:
        """Log the report, which stands in the folder, as one run; lines for the user.

        The run keeps its id: a grid that goes on writes the same run again, and one that has
        nothing new writes nothing. Never raises, and takes no longer than the end of a run may.
        """
        if not self._tracked:
            return []
        try:
            return self._summarise(grid, next(iter(self._tracked.values())))
        except Exception as error:  # the grid itself is done, whatever a tracker does
            return [f"W&B has no summary of this grid ({brief(error)}); {self.out} has everything"]

    def _summarise(self, grid: Grid, given: Mapping[str, Any]) -> list[str]:
        settings = TrackingSettings(
            **{key: given[key] for key in _SHARED},
            group=given["group"] or self.group,
            job_type=JOB_TYPE,
            name=self.group,
            notes=given["notes"] or grid.question,
            tags=tuple(given["tags"]) or tuple(_tags([self.experiment, JOB_TYPE])),
        )
        choice = resolve_mode(settings.mode)
        content, memory = self._content(settings), self._remember()
        if memory.get("content") == content and self._stands(memory, choice.mode):
            return ["W&B has the summary of this grid already", *self._upload(grid)]
        tables = {name: read_table(self.out / f"{name}.csv") for name in TABLES}
        headline = (self.out / "table.txt").read_text(encoding="utf-8").partition("\n")[0]
        statuses: tuple[Status, ...] = ("finished", "failed", "n/a")
        counts = {status: grid.count(status) for status in statuses}
        run_id = str(memory.get("id") or secrets.token_hex(4))
        known = bool(memory.get("known")) or self._sent(memory)
        self._keep(
            {"id": run_id, "known": known}
        )  # should this be killed, the next is the same run
        tracker = SummaryTracker(choice, settings, self.out, _described(grid), run_id=run_id)
        tracker.submit(lambda output: _log_report(output, self.out, tables), files=1)
        tracker.summarise({"headline": headline, "runs": counts})
        tracker.close()
        if tracker.failure is not None:
            return [f"to log the summary again: {grid.command}", *self._upload(grid)]
        self._keep(
            {
                # Of two ids, because the first was in use, the one that W&B has goes on.
                "id": run_id if known else tracker.run_id,
                "known": known or tracker.mode == "online",
                "written": tracker.run_id,
                "mode": tracker.mode,
                "content": content,
            }
        )
        self._drop_earlier(tracker)
        online = [f"online: {tracker.url}"] if tracker.url else []
        return [*online, *self._upload(grid)]

    def _content(self, settings: TrackingSettings) -> str:
        """The same while the report says the same and goes to the same place."""
        digest = hashlib.sha256(repr((settings.project, settings.entity, settings.group)).encode())
        for name in ("table.txt", *(f"{table}.csv" for table in TABLES)):
            digest.update((self.out / name).read_bytes())
        return digest.hexdigest()[:16]

    def _stands(self, memory: Mapping[str, Any], mode: str) -> bool:
        """Whether what was logged last needs no second time in this mode."""
        return self._sent(memory) or (mode == "offline" and bool(self._segments(memory)))

    def _sent(self, memory: Mapping[str, Any]) -> bool:
        """Whether W&B has what was logged last."""
        if memory.get("mode") == "online":
            return True
        return any(any(segment.glob("*.synced")) for segment in self._segments(memory))

    def _segments(self, memory: Mapping[str, Any]) -> list[Path]:
        return list((self.out / "wandb").glob(f"offline-run-*-{memory.get('written')}"))

    def _drop_earlier(self, tracker: WandbTracker) -> None:
        """Remove what was never uploaded and now says less: uploaded later, it would win."""
        assert tracker.run is not None
        present = Path(tracker.run.settings.sync_dir).resolve()
        for segment in unsent_segments(self.out):
            if segment.resolve() != present:
                shutil.rmtree(segment, ignore_errors=True)

    def _upload(self, grid: Grid) -> list[str]:
        """The command that uploads what the grid has on this machine alone."""
        out = shlex.quote(readable(str(self.out.resolve())))
        where = []
        if any(unsent_segments(self.out / point.run) for point in grid.points):
            where.append(f"{out}/runs/*/wandb/offline-run-*")
        if unsent_segments(self.out):
            where.append(f"{out}/wandb/offline-run-*")
        return [f"upload to W&B: wandb sync {' '.join(where)}"] if where else []

    def _remember(self) -> dict[str, Any]:
        try:
            memory = json.loads((self.out / "wandb" / MEMORY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return memory if isinstance(memory, dict) else {}

    def _keep(self, memory: Mapping[str, Any]) -> None:
        path = self.out / "wandb" / MEMORY
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(memory) + "\n")


def read_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of one of the report's CSV files: names as text, the rest as numbers.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    with open(path, newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return columns, [
        [
            text if column in _WORDS else float(text) if text else None
            for column, text in zip(columns, row, strict=True)
        ]
        for row in rows
    ]


def _fit(name: str) -> str:
    """As W&B takes it, and nothing that Hydra would look up."""
    name = name.replace("${", "$ {")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _tags(labels: Sequence[str]) -> list[str]:
    """As W&B takes them; none where WANDB_TAGS has the user's own."""
    if os.environ.get("WANDB_TAGS"):
        return []
    return list(dict.fromkeys(_fit(label) for label in labels))


def _described(grid: Grid) -> dict[str, Any]:
    """The configuration of the summary: what was compared, with what."""
    points = grid.points
    return {
        "experiment": grid.experiment,
        "question": grid.question,
        "command": grid.command,
        "created": grid.created,
        "agents": list(dict.fromkeys(point.agent for point in points)),
        "envs": list(dict.fromkeys(point.env for point in points)),
        "seeds": sorted({point.seed for point in points}),
        "swept": list(points[0].settings),
        "total_steps": {point.env: point.total_steps for point in points},
        "versions": environment_versions(),
        "git_commit": git_commit(),
    }


def _log_report(
    output: WandbOutput, out: Path, tables: Mapping[str, tuple[list[str], list[list[Any]]]]
) -> None:
    """Log tables, figures and the page itself as one row."""
    output.check_server()
    wandb = output.wandb
    row = {
        f"comparison/{name}": wandb.Table(columns=columns, data=rows)
        for name, (columns, rows) in tables.items()
    }
    for path in sorted((out / "figures").glob("*.png")):
        row[f"figures/{path.stem}"] = wandb.Image(str(path))
    row["comparison/report"] = wandb.Html(str(out / "report.html"), inject=False)
    output.run.log(row)
