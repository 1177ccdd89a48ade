"""Environment steps per second of the on-device environments beside Gymnasium's.

    python -m benchmarks.environments
    python -m benchmarks.environments --references

CartPole against Gymnasium's vector environments and, where `gumbelrl[jax]` is installed, gymnax's
(compilation left out of its rows and told below), then the other environments, all with random
actions drawn beforehand, on one thread. Contenders take turns, round by round, and the median
round counts, in processor time, so that neither a drifting machine nor other work favours one of
them. `--references` prints, for every environment, the mean return of random actions and of the
reference instead.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gumbelrl.envs import make_driver, make_task, make_vec_env, on_device_ids
from gumbelrl.envs.simulation import random_return

from benchmarks import jax_peers

RESULTS = Path(__file__).parent / "results"
SIZES = (1, 64, 1024, 65536)
SECONDS = 0.15  # per contender, size and round
WARM_UP = 60  # steps, after which episodes no longer end all at once
SYNC_LIMIT = 1024  # the slowest contender is left out of larger batches

Step = Callable[[int], object]
SCAN = "gymnax, scan of 64 steps"  # the one contender whose call is more than one step


def contenders(n: int) -> dict[str, Step]:
    """Name -> one step of N CartPoles, given a step number."""
    rng = np.random.default_rng(0)
    numpy_actions = rng.integers(2, size=(64, n))
    indices = torch.from_numpy(numpy_actions)
    one_hots = torch.nn.functional.one_hot(indices, 2).float()
    steps: dict[str, Step] = {}

    def add_vector(name: str, env: gymnasium.vector.VectorEnv) -> None:
        env.reset(seed=0)
        steps[name] = lambda t: env.step(numpy_actions[t % 64])

    if n <= SYNC_LIMIT:
        add_vector(
            "gymnasium sync",
            gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="sync"),
        )
    add_vector(
        "gymnasium CartPoleVectorEnv",
        gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point"),
    )
    for name, actions in (("driver, one-hot", one_hots), ("driver, indices", indices)):
        driver = make_driver("CartPole-v1", n, seed=0)
        driver.validate = False
        steps[name] = lambda t, driver=driver, actions=actions: driver.step(actions[t % 64])
    add_vector("gumbelrl make_vec", gymnasium.make_vec("gumbelrl/CartPole-v1", num_envs=n))
    vec_env = make_vec_env("gumbelrl/CartPole-v1", n, seed=0)
    vec_env.reset()
    steps["gumbelrl VecEnv (SB3)"] = lambda t: vec_env.step(numpy_actions[t % 64])
    if jax_peers.installed():
        one, many, COMPILE_SECONDS[n] = jax_peers.gymnax_steps(n)
        steps["gymnax, a compiled step"], steps[SCAN] = one, many
    return steps


COMPILE_SECONDS: dict[int, float] = {}  # of gymnax, by N


def others(n: int) -> dict[str, Step]:
    """Id -> one step of N copies of every other environment, from indices."""
    generator = torch.Generator().manual_seed(0)
    steps: dict[str, Step] = {}
    for id in on_device_ids():
        if "CartPole" in id:
            continue
        driver = make_driver(id, n, seed=0)
        driver.validate = False
        draws = [torch.randint(k, (8, n), generator=generator) for k in driver.env.nvec]
        actions = torch.stack(draws, -1)  # (8, N, M)
        steps[f"driver, {id.removeprefix('gumbelrl/')}"] = (
            lambda t, driver=driver, actions=actions: driver.step(actions[t % 8])
        )
    return steps


def measure(steps: dict[str, Step], n: int, rounds: int) -> dict[str, float]:
    """Median environment steps per second of processor time of every contender."""
    for step in steps.values():
        for t in range(WARM_UP):
            step(t)
    calls = {name: 64 if name == SCAN else 1 for name in steps}
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            done, start = 0, time.process_time()
            while (seconds := time.process_time() - start) < SECONDS:
                step(done)
                done += 1
            speeds[name].append(n * done * calls[name] / seconds)
    return {name: statistics.median(values) for name, values in speeds.items()}


def throughput(rounds: int) -> list[str]:
    """Rows of the table: million environment steps per second."""
    columns = {n: measure(contenders(n), n, rounds) | measure(others(n), n, rounds) for n in SIZES}
    lines = [
        "million environment steps per second of processor time, CartPole-v1 unless named",
        f"{'N':30s}" + "".join(f"{n:>10,d}" for n in SIZES),
    ]
    for name in columns[SIZES[0]]:
        cells = (columns[n].get(name) for n in SIZES)
        lines.append(
            f"{name:30s}" + "".join(f"{c / 1e6:10.3f}" if c else f"{'-':>10s}" for c in cells)
        )
    if COMPILE_SECONDS:
        lines.append(
            "gymnax's steps were compiled first, in seconds of processor time: "
            + ", ".join(f"{s:.1f} at N = {n:,}" for n, s in COMPILE_SECONDS.items())
        )
    else:
        lines.append(f"gymnax {jax_peers.NOT_INSTALLED}")
    return lines


def references() -> list[str]:
    """Rows of the table of returns."""
    lines = [f"{'environment':20s} {'random':>9s} {'reference':>9s}  how"]
    for id in on_device_ids():
        task = make_task(id)
        value, how = task.reference()
        name = id.removeprefix("gumbelrl/")
        lines.append(f"{name:20s} {random_return(task):9.2f} {value:9.2f}  {how}")
    return lines


def main() -> None:
    """Print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--references", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if arguments.references:
        command, name, lines = "--references", "environment_references", references()
    else:
        command, name, lines = "", "environments", throughput(arguments.rounds)
    versions = [f"torch {torch.__version__.split('+')[0]}"]
    if jax_peers.installed():
        versions += [f"{name} {version(name)}" for name in ("jax", "gymnax")]
    head = [
        f"$ python -m benchmarks.environments {command}".rstrip(),
        f"2-core {platform.machine()} CPU, {', '.join(versions)}, one thread, beside other work",
    ]
    print("\n".join(head + lines))
    (RESULTS / f"{name}.txt").write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
