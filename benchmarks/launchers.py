"""What a launcher adds to a run: compare.py with each of them beside train.py by hand.

    python -m benchmarks.launchers
    python -m benchmarks.launchers --rounds 5 --runs 8

The run is short (REINFORCE on CartPole, 1,000 steps), one at a time, in one thread, without
trackers. `first` is the wall time of a grid with one run: starting the launcher, the run, the
report. `each` is what one run more takes, from a grid with several less that one; `over by hand` is
that less the same by train.py in a shell. Ways take turns, round by round, and medians count. Ray
is started on this machine, and left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
SHARED = ("device=cpu", "tracking=disabled", "eval_episodes=1")
STEPS = 1000
EXPERIMENT = f"""
question: What does a launcher cost?
agents: {{reinforce: [agent=reinforce]}}
envs: {{cartpole: {{overrides: [env=cartpole], total_steps: {STEPS}, threshold: 475}}}}
seeds: 1
overrides: [{", ".join(SHARED)}]
"""


def call(script: str, *arguments: str, folder: str) -> None:
    """Run a command of this checkout to its end; RuntimeError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{script}: {(done.stdout.strip().splitlines() or ['no output'])[-1]}")


def by_hand(runs: int, folder: str) -> None:
    """train.py, one call after the other."""
    for seed in range(runs):
        settings = ("agent=reinforce", "env=cartpole", *SHARED, f"total_steps={STEPS}")
        call("train.py", *settings, f"seed={seed}", folder=folder)


def by_launcher(launcher: str) -> Callable[[int, str], None]:
    """compare.py with that launcher and one worker."""

    def run(runs: int, folder: str) -> None:
        (Path(folder) / "cost.yaml").write_text(EXPERIMENT)
        grid = ("experiment=cost.yaml", f"seeds={runs}", "workers=1", f"launcher={launcher}")
        call("compare.py", *grid, folder=folder)

    return run


def seconds(way: Callable[[int, str], None], runs: int) -> float:
    """Wall time of that many runs in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        way(runs, folder)
        return time.perf_counter() - began


def main() -> None:
    """Print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="of the grid with several, >= 2")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.runs < 2:
        parser.error("--rounds must be >= 1 and --runs >= 2")
    ways = {"train.py by hand": by_hand, "launcher=local": by_launcher("local")}
    if importlib.util.find_spec("ray") is not None:
        ways["launcher=ray"] = by_launcher("ray")
    one: dict[str, list[float]] = {name: [] for name in ways}
    more: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            one[name].append(seconds(way, 1))
            several = seconds(way, arguments.runs)
            more[name].append((several - one[name][-1]) / (arguments.runs - 1))
    hand = more["train.py by hand"]
    lines = [f"{'':20s}{'first s':>9s}{'each s':>9s}{'over by hand s':>16s}{'least to most':>18s}"]
    for name in ways:
        over = [a - b for a, b in zip(more[name], hand, strict=True)]
        spread = f"{min(over):+.2f} to {max(over):+.2f}"
        lines.append(
            f"{name:20s}{statistics.median(one[name]):9.2f}{statistics.median(more[name]):9.2f}"
            f"{statistics.median(over):+16.2f}{spread:>18s}"
        )
    if "launcher=ray" not in ways:
        lines.append('launcher=ray is not measured: pip install "gumbelrl[ray]"')
    text = "\n".join(lines)
    note = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{text}\n\n{note}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "launchers.txt").write_text(
        f"$ python -m benchmarks.launchers --rounds {arguments.rounds} --runs {arguments.runs}\n"
        f"{text}\n\n{note}\n"
    )


if __name__ == "__main__":
    main()
