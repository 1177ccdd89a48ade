"""How long the report of many runs takes: simulated run folders, read, counted, drawn, written.

    python -m benchmarks.report_speed              1,000 runs: 10 agents, 5 environments, 20 seeds
    python -m benchmarks.report_speed --seeds 5    250 of them

Each run folder holds what train.py leaves: a configuration of 60 lines, 100 evaluations, 100 rows
of other metrics, a summary. Making the folders is not counted; importing SciPy and matplotlib is.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "modules"))

from simulated_runs import write_comparison

AGENTS, ENVS = 10, 5
SETTINGS = {f"setting_{i:02d}": i / 7 for i in range(45)}


def main() -> None:
    """Make the folders, write the report, print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="of each agent and environment")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        out = write_comparison(
            Path(folder),
            {
                f"agent {i}": {"half_way": 6000 + 900 * i, "settings": {**SETTINGS, "gamma": i}}
                for i in range(AGENTS)
            },
            [f"Task{i}-v0" for i in range(ENVS)],
            seeds=seeds,
            evaluations=100,
            diagnostics=True,
        )
        began = time.perf_counter()
        from gumbelrl.comparison.records import read_runs
        from gumbelrl.comparison.report import write_report

        imported = time.perf_counter()
        read_runs(out)
        read = time.perf_counter()
        write_report(out)
        written = time.perf_counter()
        size = (out / "report.html").stat().st_size
    print(f"{AGENTS * ENVS * seeds:,} runs, one thread, {platform.machine()}")
    print(f"{'import':24s} {imported - began:6.1f} s")
    print(f"{'read':24s} {read - imported:6.1f} s")
    print(f"{'read and report':24s} {written - read:6.1f} s")
    print(f"{'report.html':24s} {size / 1e6:6.1f} MB")


if __name__ == "__main__":
    main()
