"""Runs of train.py as processes of their own, and the files in which finished ones are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parent.parent / "train.py"
Row = dict[str, Any]
Job = tuple[str, str, int]
"""Task, agent and seed: what tells one run of a table from another."""


@dataclass(frozen=True)
class Ended:
    """A run of train.py that came to its end.

    Args:
        summary: its summary.json.
        metrics: its rows of metrics.jsonl.
        wall_seconds: from starting the process to its end.
        processor_seconds: of the process and those that it waited for; what else the machine did
            meanwhile is not in it.
    """

    summary: Row
    metrics: list[Row]
    wall_seconds: float
    processor_seconds: float


def train(overrides: Sequence[str]) -> Ended:
    """One run on the CPU, without trackers, in a folder that does not stay.

    Raises:
        RuntimeError: train.py failed; its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run_dir={folder}/run", "tracking=disabled", "device=cpu"]
        output = Path(folder) / "output"
        with output.open("w") as stream:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *overrides, *own], stdout=stream, stderr=stream
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # nobody else waits for it
        if process.returncode != 0:
            raise RuntimeError((output.read_text().strip().splitlines() or ["no message"])[-1])
        run = Path(folder) / "run"
        return Ended(
            summary=json.loads((run / "summary.json").read_text()),
            metrics=[*map(json.loads, (run / "metrics.jsonl").read_text().splitlines())],
            wall_seconds=wall,
            processor_seconds=usage.ru_utime + usage.ru_stime,
        )


def read(path: Path) -> list[Row]:
    """All rows that are kept."""
    return json.loads(path.read_text()) if path.exists() else []


def write(path: Path, rows: Iterable[Row]) -> None:
    """Keep these rows, one a line; the file is the old or the new one, whenever this ends."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    os.replace(temporary, path)


def complete(
    path: Path,
    jobs: Iterable[Job],
    run: Callable[[str, str, int], Row],
    tell: Callable[[Row], str],
    *,
    workers: int = 1,
    minutes: float = float("inf"),
) -> list[Row]:
    """Run what is not kept yet, keep each row as it comes.

    Args:
        path: where the rows are kept.
        jobs: the wanted ones, in this order.
        run: one job's row, which holds its "task", "agent" and "seed"; RuntimeError says why there
            is none.
        tell: what is printed of a new row.
        workers: runs side by side.
        minutes: begin no run after these.

    Returns:
        All rows that are kept, those of other jobs among them.
    """
    kept = read(path)
    have = {(row["task"], row["agent"], row["seed"]) for row in kept}
    began = time.monotonic()
    one_at_a_time = threading.Lock()

    def work(job: Job) -> None:
        if job in have or time.monotonic() - began > 60 * minutes:
            return
        try:
            row = run(*job)
        except RuntimeError as error:
            print(*job, f"failed: {error}", flush=True)
            return
        with one_at_a_time:
            kept.append(row)
            write(path, kept)
            print(*job, tell(row), flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, jobs))
    return kept
