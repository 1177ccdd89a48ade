"""Updates as CUDA graphs beside their eager selves, Stable-Baselines3 and the CPU, in one run.

    python -m benchmarks.captured [--rounds 5] [--only sac|acting|shac] [--out FILE]

Same hidden widths and batch, one update per environment step. `update` is replay sample and
gradient step alone, `step+update` the whole loop with CartPole-v1 (Pendulum-v1 for SAC) on the
host. Agents take turns; the median of the rounds counts, each ended by waiting for the device. DQN
trains one network where the actor-critics train three, so it is there for scale.

Acting is from observations on the host to actions there, by N observations. `on the CPU` has the
policy there and leaves out what it would take to bring the weights after every update.

GumbelSHAC's window is 16 steps of N copies of the environment and the updates from them, by N.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

UPDATES, STEPS = 100, 100
WAYS = (("eager", "cuda", "never"), ("captured", "cuda", "auto"), ("on the CPU", "cpu", "auto"))


def make_agents(width: int, batch: int) -> dict[str, Any]:
    """The agents under comparison, warmed up."""
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import DQN, SAC

    shared: dict[str, Any] = {
        "batch_size": batch, "learning_starts": 100, "device": "cuda", "seed": 0,
        "train_freq": 1, "gradient_steps": 1,
    }  # fmt: skip
    arch = {"net_arch": [width, width]}  # copied for each: Stable-Baselines3 writes into it
    agents: dict[str, Any] = {
        f"GumbelSAC, {name}": GumbelSAC(
            "MlpPolicy",
            make_vec_env("CartPole-v1"),
            compile=way,
            policy_kwargs=dict(arch),
            **shared,
        )
        for name, way in (("eager", "never"), ("captured", "auto"))
    }
    agents["SB3 SAC"] = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(arch), **shared)
    agents["SB3 DQN"] = DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(arch), **shared)
    for agent in agents.values():
        agent.learn(200, log_interval=None)
    return agents


def milliseconds(work: Callable[[], Any], count: int) -> float:
    """Of one of the `count` things that `work` does."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count * 1e3


def measure(agent: Any, batch: int) -> tuple[float, float]:
    """Milliseconds of an update, and of a step with its update."""
    update = milliseconds(lambda: agent.train(UPDATES, batch), UPDATES)
    step = milliseconds(
        lambda: agent.learn(STEPS, reset_num_timesteps=False, log_interval=None), STEPS
    )
    return update, step


def sac_rows(rounds: int) -> Iterator[str]:
    """A table of GumbelSAC's updates beside Stable-Baselines3's agents, line by line."""
    yield "milliseconds; `gain`: eager GumbelSAC over the row"
    yield (
        f"{'width':>5s} {'batch':>6s} {'agent':20s}{'update':>9s}{'gain':>7s}"
        f"{'step+update':>14s}{'gain':>7s}"
    )
    for width in (64, 256):
        for batch in (256, 4096):
            agents = make_agents(width, batch)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in agents}
            for _ in range(rounds):
                for name, agent in agents.items():
                    times[name].append(measure(agent, batch))
            middle = {
                name: [statistics.median(column) for column in zip(*rows, strict=True)]
                for name, rows in times.items()
            }
            eager = middle["GumbelSAC, eager"]
            for name, (update, step) in middle.items():
                yield (
                    f"{width:5d} {batch:6d} {name:20s}{update:9.3f}{eager[0] / update:7.2f}"
                    f"{step:14.3f}{eager[1] / step:7.2f}"
                )


ACTING = (1, 8, 64, 512, 4096)
ACTS = 200


def acting_rows(rounds: int) -> Iterator[str]:
    """A table of GumbelSAC's choice of actions, line by line."""
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.envs import make_vec_env

    yield f"{'width':>5s} {'observations':>12s} {'acting':12s}{'ms':>9s}{'gain':>7s}"
    for width in (64, 256):
        agents = {
            name: GumbelSAC(
                "MlpPolicy",
                make_vec_env("CartPole-v1"),
                device=device,
                compile=way,
                policy_kwargs={"net_arch": [width, width]},
                seed=0,
            )
            for name, device, way in WAYS
        }
        for count in ACTING:
            obs = np.random.default_rng(0).standard_normal((count, 4), dtype=np.float32)

            def act(agent: GumbelSAC, times: int, obs: np.ndarray = obs) -> None:
                for _ in range(times):
                    given, _ = agent.policy.obs_to_tensor(obs)
                    agent.exploration.choose(given, None, 0.0).cpu().numpy()

            times: dict[str, list[float]] = {name: [] for name in agents}
            for agent in agents.values():
                act(agent, 10)
            for _ in range(rounds):
                for name, agent in agents.items():
                    times[name].append(milliseconds(partial(act, agent, ACTS), ACTS))
            middle = {name: statistics.median(values) for name, values in times.items()}
            for name, ms in middle.items():
                gain = middle["eager"] / ms
                yield f"{width:5d} {count:12d} {name:12s}{ms:9.3f}{gain:7.2f}"


SHAC_ENVS = ("CartPole-v1", "CoupledControl-v0")
SHAC_COPIES = (16, 1024, 16384)
WINDOWS, CPU_WINDOWS = 30, 1


def shac_rows(rounds: int) -> Iterator[str]:
    """A table of GumbelSHAC's windows, line by line."""
    from gumbelrl.agents import GumbelSHAC

    yield (
        f"{'environment':18s}{'copies':>8s} {'window':12s}{'ms':>9s}{'gain':>7s}"
        f"{'env steps/s':>14s}"
    )
    for env in SHAC_ENVS:
        for n_envs in SHAC_COPIES:
            agents = {
                name: GumbelSHAC(
                    "MlpPolicy", env, n_envs=n_envs, seed=0, device=device, compile=way
                )
                for name, device, way in WAYS
            }
            size = n_envs * 16
            times: dict[str, list[float]] = {name: [] for name in agents}
            for agent in agents.values():
                agent.learn((1 if agent.device.type == "cpu" else 6) * size, log_interval=None)
            for _ in range(rounds):
                for name, agent in agents.items():
                    count = CPU_WINDOWS if agent.device.type == "cpu" else WINDOWS
                    learn = partial(
                        agent.learn, count * size, reset_num_timesteps=False, log_interval=None
                    )
                    times[name].append(milliseconds(learn, count))
            middle = {name: statistics.median(values) for name, values in times.items()}
            for name, ms in middle.items():
                yield (
                    f"{env:18s}{n_envs:8d} {name:12s}{ms:9.2f}{middle['eager'] / ms:7.2f}"
                    f"{size / ms * 1e3:14,.0f}"
                )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("sac", "acting", "shac"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "captured needs a CUDA device; on the CPU: benchmarks.speed\n")
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.rounds} rounds"]
    print(lines[0], flush=True)
    tables = {"sac": sac_rows, "acting": acting_rows, "shac": shac_rows}
    for name in (args.only,) if args.only else tables:
        for line in tables[name](args.rounds):
            print(line, flush=True)
            lines.append(line)
    if args.out is not None:
        args.out.write_text("$ python -m benchmarks.captured\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
