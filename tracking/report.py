"""What stands at the end of a run."""

import platform
import shlex
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

_PACKAGES = ("gumbelrl", "torch", "numpy", "gymnasium", "stable-baselines3", "wandb")


def end_table(
    summary: Mapping[str, Any],
    *,
    run_dir: str | Path,
    interrupted: bool = False,
    last_checkpoint: str | Path | None = None,
    best_checkpoint: str | Path | None = None,
    tracking: Iterable[tuple[str, str]] = (),
    programs: tuple[str, str] = ("python train.py", "python evaluate.py"),
) -> Table:
    """Lay out the end of a run; print it with `rich.console.Console().print(table)`.

    Args:
        summary: what `summary.json` holds: `agent`, `env`, `seed`, `env_steps`, `wall_seconds`,
            `eval` with `return_mean`, `return_std` and `episodes`, and, if a threshold was asked
            for, `stop_at_return` and `reached` (`env_steps` and `train_seconds`, or None), and
            `checkpoints` (`written`, `failed`, `seconds`, `last_bytes`). What is missing is left
            out of the table.
        run_dir: the run folder, which the commands in the table name.
        interrupted: the run did not come to its end: says how to resume, as it does where the
            summary holds a `failure`.
        last_checkpoint: the last complete checkpoint, or None.
        best_checkpoint: the best one, or None.
        tracking: further rows: where the run stands online, what was not sent and how to send it.
        programs: how the user starts training and evaluation.
    """
    title = " · ".join(
        str(part)
        for part in (
            summary.get("agent"),
            summary.get("env"),
            f"seed {summary['seed']}" if "seed" in summary else None,
            "failed" if "failure" in summary else "interrupted" if interrupted else None,
        )
        if part is not None
    )
    stopped = interrupted or "failure" in summary
    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a path or a command is never cut short

    def row(name: str, value: object) -> None:
        table.add_row(name, Text(str(value)))  # Text: brackets in a path are not markup

    result = summary.get("eval") or {}
    if "return_mean" in result:
        row(
            "return",
            f"{_number(result['return_mean'])} ± {_number(result.get('return_std'))} "
            f"(mean ± std of {result.get('episodes', '?')} episodes)",
        )
    threshold = summary.get("stop_at_return")
    if threshold is not None:
        reached = summary.get("reached")
        row(
            f"reached {threshold:g}",
            f"at {reached['env_steps']:,} steps, after {reached['train_seconds']:.1f} s of training"
            if reached
            else "no",
        )
    if "env_steps" in summary:
        row("steps", f"{summary['env_steps']:,}")
    if "wall_seconds" in summary:
        seconds = summary["wall_seconds"]
        row("wall time", f"{seconds:.1f} s" if seconds < 60 else timedelta(seconds=round(seconds)))
        if "env_steps" in summary and seconds > 0:
            speed = summary.get("steps_per_second", summary["env_steps"] / seconds)
            row("steps/s", f"{speed:,.0f}")
    row("run folder", run_dir)
    if "checkpoints" in summary:
        row("checkpoints", _writes(summary["checkpoints"]))
    if last_checkpoint is not None or stopped:
        row("last checkpoint", last_checkpoint or "none was written yet")
    if best_checkpoint is not None:
        row("best checkpoint", best_checkpoint)
    if last_checkpoint is not None or best_checkpoint is not None:
        row("evaluate", f"{programs[1]} run={shlex.quote(str(run_dir))}")
    if stopped:
        row("resume", f"{programs[0]} resume={shlex.quote(str(run_dir))}")
    for name, text in tracking:
        row(name, text)
    return table


def environment_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, read without importing them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _writes(checkpoints: Mapping[str, Any]) -> str:
    said = f"{checkpoints['written']} written, {checkpoints['seconds']:.2f} s in all"
    if checkpoints["last_bytes"]:
        said += f", {decimal(checkpoints['last_bytes'])} last"
    if checkpoints["failed"]:
        said += f", {checkpoints['failed']} FAILED: see the warning above"
    return said


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else str(value)
