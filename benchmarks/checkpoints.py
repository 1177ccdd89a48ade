"""What it takes to write a replay: ours in chunks, torch.save, Stable-Baselines3's pickle.

    python -m benchmarks.checkpoints > benchmarks/results/checkpoints.txt
    python -m benchmarks.checkpoints --sizes 1000

Each row is a process of its own with a full replay, no two chunks of it alike. It writes it once,
takes 10,000 more steps and writes it again; every file is synced to the disk. Seconds are processor
time, the median of three pairs of writes; memory is how far the resident set grew over what the
replay itself takes, sampled every 2 ms, at worst. `torch.save` and the pickle get the same arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (1_000, 100_000, 1_000_000)
STEPS = 10_000
CONTENTS = {"CartPole": ((4,), "float32"), "MinAtar": ((10, 10, 4), "bool")}
WRITERS = ("chunks", "torch.save", "pickle")
Save = Callable[[Path, Path | None], None]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure(work: Callable[[], None]) -> tuple[float, int]:
    """Processor seconds, and bytes by which the resident set grew at most."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    done.set()
    thread.join()
    return seconds, max(peak, resident()) - before


def written(folder: Path, earlier: Path | None) -> int:
    """Bytes of the files that are not links to those of an earlier write."""
    known = {path.stat().st_ino for path in earlier.rglob("*")} if earlier else set()
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(file.st_size for file in files if file.st_ino not in known)


def sync(path: Path) -> None:
    """Have a file on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def replay(writer: str, size: int, content: str) -> tuple[Save, Callable[[int], None]]:
    """`save(folder, earlier)` and `add(steps)` of a full replay."""
    import numpy as np
    import torch
    from gumbelrl.agents.replay import TensorReplayBuffer
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.save_util import save_to_pkl

    shape, dtype = CONTENTS[content]
    obs_space, act_space = spaces.Box(0, 1, shape, np.dtype(dtype).type), spaces.Discrete(6)
    rng = np.random.default_rng(0)
    random = rng.random((2, 1, *shape)).astype("float32")
    obs, next_obs = (random > 0.5 if dtype == "bool" else random).astype(dtype)
    buffer: Any = ReplayBuffer(size, obs_space, act_space, device="cpu")
    if writer != "pickle":
        buffer = TensorReplayBuffer(size, obs_space, act_space)

    def add(steps: int) -> None:
        for _ in range(steps):
            buffer.add(obs, next_obs, np.array([3]), rng.random(1), np.array([False]), [{}])

    for name in ("obs", "next_obs", "observations", "next_observations"):
        array = getattr(buffer, name, None)
        if array is not None:
            array[:] = 1  # every page is in memory
    torch.as_tensor(buffer.rewards).random_()  # shares the memory of an array
    buffer.full = True

    def save(folder: Path, earlier: Path | None) -> None:
        if writer == "chunks":
            buffer.save(folder, earlier)
            return
        folder.mkdir()
        if writer == "pickle":
            save_to_pkl(folder / "replay.pkl", buffer)
        else:
            torch.save(dict(buffer._tensors()), folder / "replay.pt")
        sync(next(folder.iterdir()))

    return save, add


def row(writer: str, size: int, content: str) -> dict[str, float]:
    """One row of the table, measured in this process."""
    import torch

    torch.set_num_threads(1)
    save, add = replay(writer, size, content)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        earlier: Path | None = None
        for number in range(3):
            for name in ("first", "next"):
                folder = Path(root) / f"{number}-{name}"
                base = earlier if name == "next" else None
                seconds, peak = measure(lambda folder=folder, base=base: save(folder, base))
                found.setdefault(f"{name} s", []).append(seconds)
                found.setdefault(f"{name} MB", []).append(written(folder, base) / 1e6)
                found.setdefault("memory MB", []).append(peak / 1e6)
                earlier = folder
                add(STEPS)
    memory = max(found.pop("memory MB"))
    return {name: statistics.median(values) for name, values in found.items()} | {"memory": memory}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--row", nargs=3, metavar=("WRITER", "SIZE", "CONTENT"))
    arguments = parser.parse_args()
    if arguments.row:
        writer, size, content = arguments.row
        print(json.dumps(row(writer, int(size), content)))
        return
    print("                                 first write       10,000 steps later   memory")
    print("content   transitions  writer      CPU s        MB      CPU s        MB       MB")
    for content in CONTENTS:
        for size in arguments.sizes:
            for writer in WRITERS:
                command = [sys.executable, "-m", "benchmarks.checkpoints"]
                command += ["--row", writer, str(size), content]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                of = json.loads(ran.stdout.splitlines()[-1])
                print(
                    f"{content:9}{size:12,}  {writer:10}{of['first s']:7.3f}{of['first MB']:10.2f}"
                    f"{of['next s']:11.3f}{of['next MB']:10.2f}{of['memory']:9.1f}",
                    flush=True,
                )
    print(f"\n{os.cpu_count()}-core {platform.machine()}, no GPU")


if __name__ == "__main__":
    main()
