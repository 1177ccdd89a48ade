"""Weights & Biases behind `metrics.jsonl`: it may fail, training does not notice."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gumbelrl.tracking.background import BackgroundWriter
from gumbelrl.tracking.error_text import brief
from gumbelrl.tracking.git_source import git_diff, git_head, git_remote, source_checkout
from gumbelrl.tracking.json_values import as_json
from gumbelrl.tracking.settings import TrackingSettings
from gumbelrl.tracking.wandb_mode import Mode, TrackingMode
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

# What the summary keeps of a metric; of all others, losses among them, it keeps the last value.
SUMMARIES = {"eval/return_mean": "max,last"}
MODEL_FILES = ("agent.zip", "normalization.safetensors")  # of a checkpoint: what predicts
CODE_FOLDERS = ("agents", "comparison", "configs", "envs", "gumbel", "tracking")
TABLE_EPISODES = 10_000  # the last ones are in the table of evaluation episodes
_HISTOGRAM_BINS = 32
_SECONDS_TO_ANSWER = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoFile:
    """A video in the run folder, as a value of a row."""

    path: Path


class WandbTracker(BackgroundWriter):
    """One Weights & Biases run, whose files live in `folder/wandb`.

    It starts in its own thread. A missing key or network, or a failing server, is no error: it goes
    offline with one warning, after at most `start_timeout` seconds and a little.

    A run that was online goes on under its id, and rows that its server has are not sent again;
    rows are numbered for that, as W&B's `_step`. An offline run goes on as another segment, with an
    id of its own in the same group. In a sweep the agent's id is the run's.

    Args:
        choice: online or offline, from `resolve_mode`.
        settings: how the run is tracked.
        folder: the run folder.
        config: the resolved configuration, nested mappings allowed; W&B itself filters by
            `agent.gamma` and the like.
        earlier: `state()` of the segment that this one goes on from.
        run_id: for a run that is written again and again under one id; None draws one. Offline it
            has another where W&B holds the id of a failed start as in use.

    Attributes:
        mode: "online" or "offline", after every fallback.
        reason: one sentence that says why, for the user.
        run: the W&B run, once it has started.
    """

    def __init__(
        self,
        choice: TrackingMode,
        settings: TrackingSettings,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        earlier: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        self.mode: Mode = choice.mode
        self.reason = choice.reason
        self.run: Any | None = None
        self.settings = settings
        self.folder = Path(folder).expanduser().resolve()
        self._config = {**(config or {})}
        goes_on = self.mode == "online" and (earlier or {}).get("mode") == "online"
        self._resumed = str((earlier or {})["id"]) if earlier and goes_on else None
        self._fixed_id = run_id
        self._in_use = False  # W&B's service has been told the id
        self.run_id = run_id or self._resumed or secrets.token_hex(4)
        self._output: WandbOutput | None = None
        self._first_row = int((earlier or {}).get("rows", 0))
        super().__init__(
            "W&B",
            self._open,
            start_timeout=2 * settings.start_timeout + 10.0,  # online, then offline
            stall_timeout=settings.stall_timeout,
            finish_timeout=settings.finish_timeout,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data."""
        moved = self._output.moved if self._output else 0
        rows = self._first_row + self.rows + moved
        return {"id": self.run_id, "mode": self.mode, "rows": rows}

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Set values of the run's W&B summary (final results)."""
        plain = as_json(dict(summary))
        self.submit(lambda output: output.run.summary.update(plain))

    def log_checkpoint(
        self, path: Path, aliases: Sequence[str], metadata: Mapping[str, Any]
    ) -> None:
        """Hand a checkpoint's weights over as a version of the run's model."""
        files = [file for name in MODEL_FILES if (file := path / name).is_file()]
        plain = as_json(dict(metadata))
        if files:
            self.submit(
                lambda output: output.log_model(files, list(aliases), plain), files=len(files)
            )

    def log_episodes(self, evaluations: Iterable[Mapping[str, Any]], step: int) -> None:
        """Write the table of evaluation episodes, one row of metrics."""
        table = [
            [row["env_steps"], row["seed"], *episode]
            for row in evaluations
            for episode in zip(row["returns"], row["lengths"], strict=True)
        ][-TABLE_EPISODES:]
        self.submit(lambda output: output.log_table(table, step), rows=1)

    def end_with(self, exit_code: int) -> None:
        """Say how the run ended: 0 well, 1 failed, 130 for Ctrl-C."""
        self.submit(lambda output: setattr(output, "exit_code", exit_code))

    @property
    def url(self) -> str | None:
        """Where to see the run online; None offline."""
        # Asking an offline run prints a warning.
        return getattr(self.run, "url", None) if self.mode == "online" else None

    @property
    def sync_command(self) -> str | None:
        """The command that uploads what is on this machine alone; None when all was sent."""
        home = self.folder / "wandb"
        offline = sorted(home.glob("offline-run-*"))
        unsent, options = unsent_segments(self.folder), []
        if self.mode == "online" and self.failure is not None and self.run is not None:
            with contextlib.suppress(Exception):
                unsent.append(Path(self.run.settings.sync_dir))
                options.append("--include-online")  # it leaves them out by itself
        if not unsent:
            return None
        if len(unsent) > 1 and unsent == offline:  # every segment, in a line that can be copied
            return f"wandb sync {shlex.quote(readable(str(home)))}/offline-run-*"
        return shlex.join(["wandb", "sync", *options, *(readable(str(path)) for path in unsent)])

    def _open(self) -> KVWriter:
        # W&B's reports about itself hold up the end of the process for 22 s when its server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if os.name == "posix" and "HOME" not in os.environ:
            # Without a place for its own log W&B's service writes it to standard error.
            os.environ.setdefault("XDG_CACHE_HOME", str(self.folder / "wandb" / "cache"))
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))  # or the login prints a line of its own
        if self.mode == "online":
            try:
                return self._start(wandb)
            except Exception as error:
                self.reason = f"W&B is offline: it could not start online ({brief(error)})."
                _log.warning("%s %s.", self.reason, self.unharmed)
                self.mode, self._resumed = "offline", None
                if self._in_use:
                    self.run_id = secrets.token_hex(4)
        return self._start(wandb)

    def _start(self, wandb: Any) -> WandbOutput:
        settings, checkout = self.settings, source_checkout()
        goes_on = self._resumed or (self._fixed_id and self.mode == "online")
        earlier = set((self.folder / "wandb").glob("run-*"))  # a sweep names them by its own ids
        self._in_use = True
        try:
            self.run = wandb.init(
                mode=self.mode,
                id=self.run_id,
                resume="allow" if goes_on else None,
                dir=str(self.folder),
                project=settings.project or os.environ.get("WANDB_PROJECT") or "gumbelrl",
                entity=settings.entity,
                group=settings.group or self.folder.name,
                job_type=settings.job_type,
                name=settings.name or self.folder.name,
                notes=settings.notes,
                tags=list(settings.tags) or None,
                config=as_json(self._config),
                reinit="create_new",  # an explicit run, whatever else in the process uses W&B
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    # By itself W&B would look into whatever repository the run folder lies in,
                    # and leave a token in the address of its remote.
                    disable_git=checkout is None,
                    git_root=checkout and str(checkout),
                    git_commit=checkout and git_head(checkout),
                    git_remote_url=checkout and git_remote(checkout),
                    init_timeout=settings.start_timeout,
                    login_timeout=settings.start_timeout,
                    finish_timeout=settings.finish_timeout,
                ),
            )
        except Exception:
            for started in set((self.folder / "wandb").glob("run-*")) - earlier:
                shutil.rmtree(started, ignore_errors=True)  # empty; would only confuse
            raise
        self.run_id = self.run.id
        output = self._output = WandbOutput(wandb, self.run, self._first_row)
        self._describe(output)
        if checkout is not None:
            output.log_source(checkout, code=settings.code)
        return output

    def _describe(self, output: WandbOutput) -> None:
        """What is said of the rows, before the first of them."""
        output.describe()

    def _hopeless(self) -> str | None:
        # One that has not started yet goes offline by itself, and loses nothing.
        if self.mode != "online" or self._output is None:
            return None
        if answers(self._output.run.settings.base_url):
            return None
        return "its server does not answer"

    def _abandon(self, why: str) -> None:
        super()._abandon(why)
        _let_the_process_end()


class WandbOutput(KVWriter):
    """Stable-Baselines3 log output into one explicit W&B run, with `env_steps` as the x-axis.

    Args:
        wandb: the module.
        run: a run that has started.
        first_row: number of the first row that comes.

    Attributes:
        exit_code: that the run is finished with.
        moved: how much higher rows are numbered than they come, because the server has more.
    """

    def __init__(self, wandb: Any, run: Any, first_row: int = 0) -> None:
        self.wandb, self.run = wandb, run
        self.exit_code = 0
        self.moved = 0
        self._row = first_row
        # Of a run that goes on: rows that the server has, and how far they go.
        last = {key: run.summary.get(key, -1) for key in ("_step", "env_steps")}
        self._known_rows = max(int(run.starting_step), int(last["_step"]) + 1)
        self._known_steps = int(last["env_steps"])

    def describe(self) -> None:
        """Say what the x-axis is and what the summary keeps."""
        self.run.define_metric("env_steps")
        self.run.define_metric("*", step_metric="env_steps")
        for metric, summary in SUMMARIES.items():
            self.run.define_metric(metric, step_metric="env_steps", summary=summary)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log one row at `step` env steps; keys excluded for "wandb" are left out."""
        row: dict[str, Any] = {}
        for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items():
            if isinstance(value, float):
                row[key] = float(value)  # W&B keeps NaN and infinities as they are
            elif isinstance(value, VideoFile):
                row[key] = self.wandb.Video(str(value.path), format=value.path.suffix[1:])
            elif isinstance(value, torch.Tensor) and value.ndim:
                row[key] = self.wandb.Histogram(value.numpy(), num_bins=_HISTOGRAM_BINS)
            else:
                with contextlib.suppress(TypeError):  # what JSON has no place for
                    row[key] = as_json(value)
        self._log(row, step)

    def log_table(self, table: list[list[Any]], step: int) -> None:
        """Log rows of (env_steps, seed, return, length)."""
        self.check_server()
        columns = ["env_steps", "seed", "return", "length"]
        self._log({"eval/episodes_table": self.wandb.Table(columns=columns, data=table)}, step)

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        if self._row < self._known_rows:
            if step <= self._known_steps:  # sent before the run was stopped
                self._row += 1
                return
            # A finished run wrote more at its end than one that goes on writes again.
            self.moved = self._known_rows - self._row
            self._row = self._known_rows
        self.run.log({"env_steps": int(step), **row}, step=self._row, commit=True)
        self._row += 1

    def log_source(self, checkout: Path, *, code: bool) -> None:
        """Hand over what differs from the commit, and the code itself if asked."""
        diff = git_diff(checkout)
        if diff:
            path = Path(self.run.dir) / "diff.patch"
            path.write_text(diff, encoding="utf-8")
            self.run.save(str(path), base_path=str(path.parent), policy="now")
        if code:
            self.run.log_code(
                root=str(checkout), include_fn=lambda path: _is_code(Path(path), checkout)
            )

    def log_model(self, files: list[Path], aliases: list[str], metadata: Any) -> None:
        """Log files as a version of the run's model; they stay where they are."""
        self.check_server()
        artifact = self.wandb.Artifact(f"model-{self.run.id}", type="model", metadata=metadata)
        for file in files:
            # No copies: a checkpoint of an ended run does not change.
            artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=aliases)

    def check_server(self) -> None:
        """Raise where W&B would ask a server that is gone for hours, and never come to the end."""
        if not self.run.offline and not answers(self.run.settings.base_url):
            raise ConnectionError("its server does not answer")

    def close(self) -> None:
        """Finish the run."""
        try:
            self.run.finish(exit_code=self.exit_code)
        except Exception:
            _let_the_process_end()  # W&B's service is gone, and its hook would say so at length
            raise


def _is_code(path: Path, checkout: Path) -> bool:
    try:
        parts = path.resolve().relative_to(checkout).parts
    except ValueError:
        return False
    return path.suffix == ".py" and (len(parts) == 1 or parts[0] in CODE_FOLDERS)


def answers(url: str) -> bool:
    """Whether a server says anything at all within two seconds."""
    import requests

    try:
        requests.head(url, timeout=_SECONDS_TO_ANSWER)
    except requests.RequestException:
        return False
    return True


def _let_the_process_end() -> None:
    """Take back W&B's exit hook, which would wait for its hanging service without limit.

    There is no public way to (wandb 0.31); where this one is gone, the hook stays.
    """
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        if connection is not None and connection._cleanup is not None:
            connection._cleanup()


def unsent_segments(folder: Path) -> list[Path]:
    """Offline segments in a run folder that `wandb sync` has not uploaded."""
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    return [path for path in offline if not any(path.glob("*.synced"))]


def readable(path: str) -> str:
    """A path relative to the working folder where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return relative if len(relative) < len(path) else path
