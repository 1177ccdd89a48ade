"""`metrics.csv`: the rows of `metrics.jsonl` as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from gumbelrl.tracking.json_values import as_json
from gumbelrl.tracking.run_folder import write_atomically
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys


class CsvWriter(KVWriter):
    """Stable-Baselines3 log output: one line per row, `env_steps` first, a column per metric.

    A metric that appears later gets a column at the right, empty in earlier rows. (The library's
    own `CSVOutputFormat` has no step, orders new columns by chance, empties the file when it is
    opened and refuses figures.)

    Args:
        path: the file; what stood there is replaced.
        rows: earlier rows, as `read_metrics` gives them.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = Path(path)
        self._columns = ["env_steps"]
        self._file: TextIO | None = None
        earlier = list(rows)
        for row in earlier:
            self._columns += [key for key in row if key not in self._columns]
        self._begin(earlier)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append one row at `step` env steps; keys excluded for "csv" are left out."""
        row: dict[str, Any] = {"env_steps": int(step)}
        for key, value in filter_excluded_keys(key_values, key_excluded, "csv").items():
            try:
                row[key] = as_json(value)
            except TypeError:
                continue  # a figure or a video: the trackers that can show it have it
        new = [key for key in row if key not in self._columns]
        if new:
            with open(self.path, newline="", encoding="utf-8") as file:
                earlier = list(csv.DictReader(file))
            self._columns += new
            self._begin(earlier)
        assert self._file is not None
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()

    def _begin(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file anew, with today's columns."""
        self.close()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())
        self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115
