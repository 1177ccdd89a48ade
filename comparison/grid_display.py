"""What the user sees while a grid runs, read from the run folders."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from gumbelrl.comparison.grid import Grid, Point, Status
from gumbelrl.tracking import RunFolder, read_heartbeat
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_TAIL_BYTES = 16_384  # of metrics.jsonl: the last rows
_SECONDS_PER_DRAW = 1.0
_ORDER: tuple[Status, ...] = ("running", "failed", "pending", "finished", "pruned", "n/a")
_STYLES = {"running": "cyan", "failed": "red", "finished": "green"}


@dataclass(frozen=True)
class Progress:
    """How far a run is; None is what its rows do not say yet.

    Args:
        env_steps: made.
        last_return: of the last evaluation; before the first, of training.
        steps_per_second: over the whole run, evaluations included.
    """

    env_steps: int = 0
    last_return: float | None = None
    steps_per_second: float | None = None

    def time_left(self, total_steps: int) -> timedelta | None:
        """At the speed so far."""
        if not self.steps_per_second:
            return None
        left = max(total_steps - self.env_steps, 0) / self.steps_per_second
        return timedelta(seconds=round(left))


def read_progress(run: Path) -> Progress:
    """From the last rows of metrics.jsonl; whatever is missing or cut off is left out."""
    try:
        with open(RunFolder(run).metrics_path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return Progress()
    found: dict[str, float] = {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the first of the tail, and the last of a run that is being written
        if isinstance(row, dict):
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            found = {**numbers, **found}
    last_return = found.get("eval/return_mean", found.get("rollout/ep_rew_mean"))
    return Progress(int(found.get("env_steps", 0)), last_return, found.get("time/fps"))


class GridDisplay:
    """A live table on a terminal; elsewhere a line whenever a run changes its state.

    Args:
        grid: what is shown; the caller changes its points.
        out: the grid's folder.
        console: where to; None is standard output.
    """

    def __init__(self, grid: Grid, out: Path, console: Console | None = None) -> None:
        self.grid = grid
        self.out = out
        self.console = console or Console()
        self._live: Live | None = None
        self._due = 0.0
        self._began: dict[str, float] = {}

    def __enter__(self) -> GridDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def changed(self, point: Point, note: str = "") -> None:
        """Say that a point changed its status."""
        now = time.monotonic()
        if point.status == "running":
            self._began[point.key] = now
        if self._live is not None:
            self._due = 0.0
            return
        word = "stopped" if point.status == "pending" else point.status
        parts = [f"{word} {point.name}"]
        if point.status == "finished":
            progress = read_progress(self.out / point.run)
            parts.append(f"return {_number(progress.last_return)} at {progress.env_steps:,} steps")
            if point.key in self._began:
                seconds = round(now - self._began[point.key])
                parts.append(f"{timedelta(seconds=seconds)}")
        if note:
            parts.append(note)
        if point.reason:
            parts.append(point.reason)
        if point.status in ("finished", "failed", "n/a"):
            done = self.grid.count("finished", "failed", "n/a")
            parts.append(f"{done} of {len(self.grid.points)}")
        self._print(" · ".join(parts))

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._print(line)

    def refresh(self) -> None:
        """Draw the table again, at most once a second."""
        now = time.monotonic()
        if self._live is not None and now >= self._due:
            self._due = now + _SECONDS_PER_DRAW
            self._live.update(self.table(self.console.height - 8), refresh=True)

    def table(self, height: int) -> Table:
        """The runs: those that run first, then failed, waiting and finished ones."""
        counts = [f"{self.grid.count(s)} {s}" for s in _ORDER if self.grid.count(s)]
        table = Table(title=f"{self.grid.experiment}: {', '.join(counts)}", title_justify="left")
        table.add_column("run", no_wrap=True)
        table.add_column("state")
        for name in ("steps", "return", "time left"):
            table.add_column(name, justify="right")
        points = sorted(self.grid.points, key=lambda point: _ORDER.index(point.status))
        for point in points[: max(height, 1)]:
            progress = Progress()
            if point.status not in ("pending", "n/a"):
                progress = read_progress(self.out / point.run)
            left = progress.time_left(point.total_steps) if point.status == "running" else None
            steps = f"{progress.env_steps:,}/{point.total_steps:,}" if progress.env_steps else ""
            state = self._state(point)
            shown = _number(progress.last_return)
            table.add_row(Text(point.name), state, steps, shown, "" if left is None else str(left))
        if len(points) > height:
            table.caption = f"and {len(points) - height} more"
        return table

    def _state(self, point: Point) -> Text:
        """The status; of a run whose process gives no sign of life any more, for how long."""
        beat = read_heartbeat(RunFolder(self.out / point.run).heartbeat_path)
        if point.status == "running" and beat is not None and beat.state() == "dead":
            silent = time.time() - beat.time
            ran = time.monotonic() - self._began.get(point.key, -math.inf)
            if silent < ran:  # else the beat is of an earlier attempt
                return Text(f"silent for {timedelta(seconds=round(silent))}", style="red")
        return Text(point.status, style=_STYLES.get(point.status, "dim"))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
