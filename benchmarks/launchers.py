"""What a launcher adds to each run, beside running train.py by hand.

    python -m benchmarks.launchers             twelve short runs each way, one at a time

The runs are so short that a run is little but start and end. `first` is what happens once: the grid
is composed and checked, Ray started and stopped, the report written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = ["agent=reinforce", "env=cartpole", "total_steps=400", "eval_episodes=3", "device=cpu"]
EXPERIMENT = f"""
question: What does a launcher cost?
agents: {{reinforce: []}}
envs: {{cartpole: {{overrides: [{", ".join(RUN[:2])}], total_steps: 400}}}}
overrides: [{", ".join(RUN[3:])}]
"""


def by_hand(folder: Path, runs: int) -> float:
    """Seconds of that many runs, one after the other."""
    began = time.perf_counter()
    for seed in range(runs):
        command = ["-m", "gumbelrl.train", *RUN, f"seed={seed}", f"run_dir={folder / str(seed)}"]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def by_launcher(folder: Path, runs: int, name: str) -> float:
    """The same as a grid, one run at a time."""
    folder.mkdir()
    (folder / "short.yaml").write_text(EXPERIMENT)
    settings = [f"launcher={name}", "workers=1", f"seeds={runs}", f"out={folder / 'grid'}"]
    command = ["-m", "gumbelrl.compare", f"experiment={folder / 'short.yaml'}", *settings]
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=12)
    runs = parser.parse_args().runs
    few = max(runs // 4, 1)
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    print("launcher          s/run  more than by hand   first, s")
    with contextlib.ExitStack() as stack:
        root = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        hand = by_hand(root / "hand", runs) / runs
        print(f"by hand       {hand:9.2f}")
        for name in ("local", "ray"):
            # Two sizes tell what each run takes from what happens once.
            small = by_launcher(root / f"{name}-few", few, name)
            large = by_launcher(root / name, runs, name)
            each = (large - small) / (runs - few)
            once = small - few * each
            print(f"launcher={name:5}{each:9.2f}{each - hand:+19.2f}{once:11.1f}")
    print(f"\n{os.cpu_count()}-core {platform.machine()}, {runs} runs")


if __name__ == "__main__":
    main()
