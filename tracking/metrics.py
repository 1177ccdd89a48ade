"""`metrics.jsonl`: one JSON object per row, first of all records and complete without the rest."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter


class JsonlWriter(KVWriter):
    """Stable-Baselines3 log output: `{"env_steps": 4000, "rollout/ep_rew_mean": 21.5, ...}`.

    Every value that depends on a clock stands under `time/`; the rest of a row is the same when
    the same command runs again. NaN and infinities are written as the strings "NaN", "Infinity"
    and "-Infinity", so every line is valid JSON; `read_metrics` turns them back. Keys excluded
    for "json" or "jsonl" are left out, and so are values that JSON cannot hold (figures, videos).

    Each row is one write: a row stands whole or not at all. If a write fails (a full disk), one
    warning says so, training goes on, and rows are written again when there is room.

    Args:
        path: the file; its folder must exist.
        append: go on after the rows that stand there, instead of beginning anew; a last line cut
            off by a crash is removed first.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        raise NotImplementedError

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append one row at `step` env steps."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        raise NotImplementedError


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl`; a last line cut off by a crash is left out.

    Raises:
        ValueError: a line before the last is damaged; the message names it.
        FileNotFoundError: there is no such file.
    """
    raise NotImplementedError
