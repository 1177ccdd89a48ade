"""What it costs to make environments anew at a checkpoint, and to beat every five seconds.

    python -m benchmarks.rebuilding [--rounds 30]

Milliseconds of processor time: medians of closing the environments, making new ones and resetting
them, as train.py does at every scheduled checkpoint (every 10,000 steps by default). Beside it what
stepping them 10,000 times with random actions takes, which is the least that a segment between two
checkpoints can cost: agents come on top. Worker processes are timed by the clock on the wall.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gumbelrl.envs import make_vec_env, rebuild
from gumbelrl.tracking import Heartbeat
from gumbelrl.tracking.heartbeat import BEAT_SECONDS

BINS = {"wrapper": "gumbelrl.envs.BinnedActions", "n_bins": 7}
ENVS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {},
    "LunarLander-v3": {},
    "HalfCheetah-v5": {"wrappers": [BINS]},
    "MinAtar/Breakout-v1": {"max_episode_steps": 5000},
    "gumbelrl/CartPole-v1": {},
}
SEGMENT = 10_000  # env steps


def milliseconds(work: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Median of what one call takes."""
    times = []
    for _ in range(rounds):
        began = clock()
        work()
        times.append(clock() - began)
    return 1000 * statistics.median(times)


def row(id: str, n_envs: int, rounds: int, vectorization: str = "sync") -> str:
    """One line of the table."""
    clock = time.process_time if vectorization == "sync" else time.perf_counter

    def make() -> Any:
        return make_vec_env(id, n_envs, 0, vectorization=vectorization, **ENVS[id])

    env = make()

    def again() -> None:
        rebuild(env, make)
        env.reset()

    again()
    cost = milliseconds(again, rounds, clock)
    env.action_space.seed(0)
    actions = [
        np.stack([env.action_space.sample() for _ in range(n_envs)])
        for _ in range(SEGMENT // n_envs)
    ]
    segment = milliseconds(lambda: [env.step(action) for action in actions], 1, clock)
    env.close()
    name = f"{id:22s} {vectorization:6s} {n_envs:6d}"
    return f"{name} {cost:10.2f} {segment:14.0f} {cost / segment:8.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'environment':22s} {'':6s} {'n_envs':>6s} {'ms anew':>10s} {'ms for 10,000':>14s}"
        f" {'share':>8s}"
    )
    for id in ENVS:
        for n_envs in (1, 8):
            print(row(id, n_envs, args.rounds), flush=True)
    print(row("CartPole-v1", 8, max(1, args.rounds // 10), "async"))
    with tempfile.TemporaryDirectory() as folder:
        heart = Heartbeat(Path(folder) / "heartbeat.json", lambda: 0)
        beat = milliseconds(heart._beat, 200, time.thread_time)
    print(
        f"\none beat of the heart: {beat:.3f} ms every {BEAT_SECONDS:g} s, "
        f"{beat / BEAT_SECONDS / 1000:.5%} of the time"
    )
    print(f"{platform.machine()}, one thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
