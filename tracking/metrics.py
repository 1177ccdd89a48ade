"""`metrics.jsonl`: one JSON object per row, first of all records and complete without the rest."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumbelrl.tracking.json_values import as_json, from_json
from gumbelrl.tracking.run_folder import write_atomically
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

if TYPE_CHECKING:
    from gumbelrl.tracking.evaluation import Evaluation

_log = logging.getLogger(__name__)


class JsonlWriter(KVWriter):
    """Stable-Baselines3 log output: `{"env_steps": 4000, "rollout/ep_rew_mean": 21.5, ...}`.

    Every value that depends on a clock stands under `time/`; the rest of a row is the same when
    the same command runs again. NaN and infinities are written as the strings "NaN", "Infinity"
    and "-Infinity", so every line is valid JSON; `read_metrics` turns them back. Keys excluded
    for "json" are left out, and so are values that JSON cannot hold (figures, videos).

    Each row is one write: a row stands whole or not at all. If a write fails (a full disk), one
    warning says so, training goes on, and rows are written again when there is room.

    Args:
        path: the file; its folder must exist.
        append: go on after the rows that stand there, instead of beginning anew; a last line cut
            off by a crash is removed first.

    Attributes:
        lost_rows: how many rows could not be written.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path = Path(path)
        self.lost_rows = 0
        flags = os.O_RDWR | os.O_CREAT | (0 if append else os.O_TRUNC) | getattr(os, "O_BINARY", 0)
        # No buffer of ours in between: a row that was written is in the file when we are killed.
        self._file = os.fdopen(os.open(self.path, flags, 0o644), "r+b", buffering=0)
        self._end = _end_of_last_row(self._file.read()) if append else 0
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append one row at `step` env steps."""
        row: dict[str, Any] = {"env_steps": int(step)}
        for key, value in filter_excluded_keys(key_values, key_excluded, "json").items():
            try:
                row[key] = as_json(value)
            except TypeError:
                continue  # a figure or a video: the trackers that can show it have it
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError("only a part of the row was written")
        except (OSError, ValueError) as error:
            self._take_back(error)
        else:
            self._end += len(line)

    def _take_back(self, error: Exception) -> None:
        if not self._file.closed:
            try:
                self._file.truncate(self._end)
                self._file.seek(self._end)
            except OSError:
                pass  # the next row meets the same trouble and comes here again
        self.lost_rows += 1
        if self.lost_rows == 1:
            _log.warning(
                "cannot write to %s: %s. Training goes on; rows are lost until it can be written.",
                self.path,
                error,
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class EpisodesWriter(JsonlWriter):
    """`evaluations.jsonl`: `{"env_steps": 4000, "seed": 7, "returns": [...], "lengths": [...]}`.

    One line per evaluation, written by `log_evaluation`; rows of metrics pass it by.
    """

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Nothing: they stand in `metrics.jsonl`."""

    def write_evaluation(self, evaluation: "Evaluation", env_steps: int) -> None:
        """Append one evaluation at `env_steps` training steps."""
        row = {
            "seed": evaluation.seed,
            "returns": evaluation.returns,
            "lengths": evaluation.lengths,
        }
        super().write(row, {}, env_steps)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl`; a last line cut off by a crash is left out.

    Raises:
        ValueError: a line before that is damaged; the message names it.
        FileNotFoundError: there is no such file.
    """
    return [row for _, row in _rows(Path(path))]


def cut_metrics(path: str | Path, env_steps: int) -> None:
    """Keep the rows up to `env_steps`: what a run that goes on from there would write twice goes.

    Raises:
        ValueError: a line is damaged; the message names it.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    kept = [line for line, row in _rows(path) if row["env_steps"] <= env_steps]
    write_atomically(path, b"".join(kept))


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of the file, and what stands in them."""
    content = path.read_bytes()
    lines = content[: _end_of_last_row(content)].splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = from_json(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is damaged: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("env_steps"), int):
            raise ValueError(f"line {number} of {path} is damaged: it is no row with env_steps")
        yield line, row


def _end_of_last_row(content: bytes) -> int:
    # A row counts once its newline is there: the newline is the last byte of its one write.
    return content.rfind(b"\n") + 1
