"""What stands at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table


def end_table(
    summary: Mapping[str, Any],
    *,
    run_dir: str | Path,
    interrupted: bool = False,
    last_checkpoint: str | Path | None = None,
    best_checkpoint: str | Path | None = None,
    url: str | None = None,
    sync_command: str | None = None,
) -> Table:
    """Lay out the end of a run; print it with `rich.console.Console().print(table)`.

    Args:
        summary: what `summary.json` holds: `agent`, `env`, `seed`, `env_steps`, `wall_seconds`,
            `eval` with `return_mean`, `return_std` and `episodes`, and, if a threshold was asked
            for, `stop_at_return` and `reached` (`env_steps` and `train_seconds`, or None). What
            is missing is left out of the table.
        run_dir: the run folder, which the commands in the table name.
        interrupted: the run did not come to its end: says how to resume.
        last_checkpoint: the last complete checkpoint, or None.
        best_checkpoint: the best one, or None.
        url: where the run stands online.
        sync_command: how to upload an offline run.
    """
    raise NotImplementedError


def environment_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, read without importing them."""
    raise NotImplementedError


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit of the repository around `folder`, "-dirty" appended when tracked files differ.

    None outside a repository, or without git.

    Args:
        folder: None takes the folder of this package.
    """
    raise NotImplementedError
