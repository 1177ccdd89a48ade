"""How long a command line takes to its help and to its first environment step, beside peers.

    python -m benchmarks.startup
    python -m benchmarks.startup --rounds 11

Every row is a process of its own. Wall time runs from before the process is started, which the
interpreter's own start is part of, to the moment at which it prints its help or enters the first
`step` of CartPole; processor time is what it has used by then. Rows take turns, round by round, and
medians count. Below them stands which imports that time goes into, by `python -X importtime`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

REACHED = """
import os, sys

def reached(*_):
    used = os.times()
    print("REACHED", used.user + used.system, flush=True)
    os._exit(0)
"""
UNTIL_STEP = """
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
CartPoleEnv.step = reached
"""
TRAIN = "from gumbelrl import train\ntrain.main(sys.argv[1:])"
HELP = f"{TRAIN}\nreached()"
SB3 = """
from stable_baselines3 import {agent}
{agent}("MlpPolicy", "CartPole-v1", device="cpu").learn(1000)
"""
# What is typed, and a program that does the same and says when it is there.
ROWS = {
    "python train.py --help": (REACHED + HELP, ["--help"]),
    "python train.py": (REACHED + UNTIL_STEP + TRAIN, ["device=cpu"]),
    "python train.py agent=reinforce": (
        REACHED + UNTIL_STEP + TRAIN,
        ["device=cpu", "agent=reinforce"],
    ),
    "python train.py agent=ppo": (REACHED + UNTIL_STEP + TRAIN, ["device=cpu", "agent=ppo"]),
    "SB3: PPO(...).learn()": (REACHED + UNTIL_STEP + SB3.format(agent="PPO"), []),
    "SB3: DQN(...).learn()": (REACHED + UNTIL_STEP + SB3.format(agent="DQN"), []),
    "import stable_baselines3": (REACHED + "import stable_baselines3\nreached()", []),
    "import torch": (REACHED + "import torch\nreached()", []),
}


def measure(code: str, arguments: list[str], folder: str) -> tuple[float, float]:
    """Wall and processor seconds until a program says that it is there."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("REACHED"):
            wall = time.perf_counter() - began
            process.wait()
            return wall, float(line.split()[1])
    raise RuntimeError(f"{arguments} ended with exit code {process.wait()} before it was there")


def environment() -> dict[str, str]:
    """One thread, and W&B as for a user without a key: it writes on this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**kept, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def heaviest_imports(count: int, folder: str) -> list[str]:
    """The packages whose own modules take longest on the way to the first step."""
    code, arguments = ROWS["python train.py"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments, "tracking=disabled"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    microseconds: dict[str, int] = {}
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").rpartition("|")
        if line.startswith("import time:") and own.split("|")[0].strip().isdigit():
            package = name.strip().split(".")[0]
            microseconds[package] = microseconds.get(package, 0) + int(own.split("|")[0])
    first = sorted(microseconds.items(), key=lambda item: -item[1])[:count]
    return [f"{name:24s}{used / 1e6:6.2f}" for name, used in first]


def main() -> None:
    """Print the tables and store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for code, arguments in ROWS.values():
            measure(code, arguments, folder)  # its files are in the system's cache from here on
        for _ in range(rounds):
            for name, (code, arguments) in ROWS.items():
                taken[name].append(measure(code, arguments, folder))
        imports = heaviest_imports(8, folder)
    lines = [f"{'':34s}{'wall s':>8s}{'processor s':>13s}{'wall, least to most':>22s}"]
    for name, times in taken.items():
        walls, used = zip(*times, strict=True)
        spread = f"{min(walls):.2f} to {max(walls):.2f}"
        lines.append(
            f"{name:34s}{statistics.median(walls):8.2f}{statistics.median(used):13.2f}{spread:>22s}"
        )
    lines += ["", "imports on the way of `python train.py`, seconds, by package", *imports]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "wandb"))
    python = platform.python_version()
    text = "\n".join(lines)
    note = f"{platform.machine()}, {os.cpu_count()} cores, Python {python}, {versions}"
    print(f"{text}\n\n{note}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.txt").write_text(
        f"$ python -m benchmarks.startup --rounds {rounds}\n{text}\n\n{note}\n"
    )


if __name__ == "__main__":
    main()
