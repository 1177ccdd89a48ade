"""GumbelSHAC by the clock: training throughput, the price of many seeds, and sparse rewards.

    python -m benchmarks.shac
    python -m benchmarks.shac --only throughput|seeds|sparse|staying

Throughput is env steps per second of training on CartPole, evaluation left out, beside
Stable-Baselines3's PPO (rl_zoo3's settings) and A2C and, where `gumbelrl[jax]` is installed,
PureJaxRL's PPO as rejax carries it on, its compilation told below. They take turns in one run and
the median round counts, in processor time of one thread, so that other work favours none. With
1,024 environments our critic takes each of its eight steps on an eighth of the window, and rejax's
PPO has windows of 100 steps in 5 epochs of 50 batches.
Sparse: Acrobot and MountainCar pay −1 a step until the goal, so a first-order gradient sees nothing
but the value function. "goals seen" counts the training episodes that reached the goal, "std of V"
is the value function's spread over the states that the environments were in at the end: where no
episode reached the goal, V is flat and there is nothing to climb.
Staying: what becomes of a solved CartPole when training goes on, ten seeds, and what the settings
of the actor's Adam do to it. A solved task has a small gradient, which Adam scales up again as soon
as its second moment has forgotten the larger ones.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def rates(agents: dict[str, tuple[Any, int]]) -> dict[str, list[float]]:
    """Processor seconds per round of each agent; an agent comes with its env steps a round."""
    for agent, steps in agents.values():
        agent.learn(steps, log_interval=None)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(ROUNDS):
        for name, (agent, steps) in agents.items():
            began = time.process_time()
            agent.learn(steps, reset_num_timesteps=False, log_interval=None)
            seconds[name].append(time.process_time() - began)
    return seconds


def throughput() -> list[str]:
    """GumbelSHAC at N = 16, 64 and 1,024 beside PPO and A2C."""
    from gumbelrl.agents import GumbelSHAC
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import A2C

    from benchmarks import jax_peers
    from benchmarks.cartpole import make_zoo_ppo

    def shac(n_envs: int, value_batches: int = 1) -> Any:
        return GumbelSHAC(
            "MlpPolicy",
            "CartPole-v1",
            n_envs=n_envs,
            value_batches=value_batches,
            seed=0,
            device="cpu",
        )

    agents: dict[str, tuple[Any, int]] = {
        "SB3 PPO, zoo settings, 8 envs": (make_zoo_ppo(0), 2_048),
        "SB3 A2C, 8 envs": (A2C("MlpPolicy", make_vec_env("CartPole-v1", 8), device="cpu"), 4_000),
        "GumbelSHAC, 16 envs": (shac(16), 16 * 16 * 16),
        "GumbelSHAC, 64 envs": (shac(64), 64 * 16 * 16),
        "GumbelSHAC, 1,024 envs": (shac(1024, value_batches=8), 1024 * 16 * 4),
    }
    compiled = {}
    if jax_peers.installed():
        small = jax_peers.RejaxPPO(0)
        large = jax_peers.RejaxPPO(0, num_envs=1024, num_minibatches=50)
        agents["rejax PPO, its settings, 5 envs"] = (small, 5_000)
        agents["rejax PPO, 1,024 envs"] = (large, 1024 * 100)
        compiled = {5: small.compile_seconds, 1024: large.compile_seconds}
    seconds = rates(agents)
    lines = [f"{'training on CartPole-v1':32s} {'steps/s':>10s} {'times PPO':>10s}"]
    ppo = agents["SB3 PPO, zoo settings, 8 envs"][1] / statistics.median(
        seconds["SB3 PPO, zoo settings, 8 envs"]
    )
    for name, (_, steps) in agents.items():
        rate = steps / statistics.median(seconds[name])
        lines.append(f"{name:32s} {rate:10,.0f} {rate / ppo:10.1f}")
    if compiled:
        told = ", ".join(f"{s:.1f} s with {n:,}" for n, s in compiled.items())
        lines.append(f"rejax's PPO was compiled first: {told} environments")
    else:
        lines.append(f"rejax's PPO {jax_peers.NOT_INSTALLED}")
    return lines


def price_of_seeds() -> list[str]:
    """Processor seconds of S seeds at once over those of one."""
    from gumbelrl.agents import GumbelSHAC

    steps = 16 * 16 * 16
    agents = {
        f"{n_seeds} seeds": (
            GumbelSHAC("MlpPolicy", "CartPole-v1", n_seeds=n_seeds, seed=0, device="cpu"),
            steps,
        )
        for n_seeds in (1, 4, 16)
    }
    seconds = {name: statistics.median(times) for name, times in rates(agents).items()}
    lines = [f"{'seeds trained at once':32s} {'s':>10s} {'times one':>10s}"]
    for name, value in seconds.items():
        lines.append(f"{name:32s} {value:10.2f} {value / seconds['1 seeds']:10.2f}")
    return lines


def sparse() -> list[str]:
    """Mean return of five seeds on Acrobot and MountainCar, several settings, 200,000 steps."""
    import torch
    from gumbelrl.agents import GumbelSHAC
    from stable_baselines3.common.callbacks import BaseCallback

    class Goals(BaseCallback):
        seen = torch.zeros(5)

        def _on_step(self) -> bool:
            self.seen = self.seen + self.locals["step"].terminated.sum(-1)
            return True

    settings: dict[str, dict[str, Any]] = {
        "defaults": {},
        "γ .99, H 32, entropy .05": {"gamma": 0.99, "horizon": 32, "ent_coef": 0.05},
    }
    lines = [
        f"{'sparse rewards':16s} {'settings':26s} {'random':>6s} {'mean':>7s}  "
        f"{'five seeds':26s} {'goals seen':>26s} {'std of V':>9s}"
    ]
    for id in ("Acrobot-v1", "MountainCar-v0"):
        for label, chosen in settings.items():
            agent = GumbelSHAC("MlpPolicy", id, n_seeds=5, seed=0, device="cpu", **chosen)
            low = agent.evaluate_seeds(100, deterministic=False).mean().item()
            goals = Goals()
            agent.learn(200_000, callback=goals, log_interval=None)
            scores = agent.evaluate_seeds(100).tolist()
            with torch.no_grad():
                value = agent.policy.value_net(agent.driver.observe()).squeeze(-1)  # (S, N)
            lines.append(
                f"{id:16s} {label:26s} {low:6.0f} {statistics.mean(scores):7.1f}  "
                f"{listed(scores):26s} {listed(goals.seen.tolist()):>26s} "
                f"{value.std(-1).mean().item():9.2f}"
            )
    return lines


def listed(numbers: list[float]) -> str:
    return " ".join(f"{number:.0f}" for number in numbers)


def staying() -> list[str]:
    """CartPole: steps to 475, then the share of ten seeds that have it after more training."""
    from gumbelrl.agents import GumbelSHAC

    settings: dict[str, dict[str, Any]] = {
        "defaults, β₂ .95": {},
        "β₂ .99": {"actor_beta2": 0.99},
        "β₂ .999": {"actor_beta2": 0.999},
        "rate falling to 0": {"learning_rate": lambda left: 3e-3 * left},
        "ε 1e-3": {"eps": 1e-3},
    }
    marks = (20_000, 50_000, 100_000)
    lines = [
        f"{'staying at 475, ten seeds':26s} {'median steps to 475':>20s}"
        + "".join(f"{f'held @{mark // 1000} k':>13s}" for mark in marks)
        + f"{'mean @100 k':>13s}"
    ]
    for label, chosen in settings.items():
        chosen = dict(chosen)
        eps = chosen.pop("eps", 1e-8)
        agent = GumbelSHAC("MlpPolicy", "CartPole-v1", n_seeds=10, seed=0, device="cpu", **chosen)
        agent.actor_optimizer.param_groups[0]["eps"] = eps
        first = [float("inf")] * 10
        means: dict[int, list[float]] = {}

        def watch(*_: Any, agent: Any = agent, first: Any = first, means: Any = means) -> bool:
            steps = agent.num_timesteps
            if steps % 1_024 == 0:
                for i, score in enumerate(agent.evaluate_seeds(20, seed=steps).tolist()):
                    if score >= 475:
                        first[i] = min(first[i], steps)
            for mark in marks:
                if steps >= mark and mark not in means:
                    means[mark] = agent.evaluate_seeds(100).tolist()
            return True

        agent.learn(marks[-1], callback=watch, log_interval=None)
        held = [sum(score >= 475 for score in means[mark]) for mark in marks]
        lines.append(
            f"{label:26s} {statistics.median(first):20,.0f}"
            + "".join(f"{f'{count} / 10':>13s}" for count in held)
            + f"{statistics.mean(means[marks[-1]]):13.0f}"
        )
    return lines


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "throughput": throughput,
    "seeds": price_of_seeds,
    "sparse": sparse,
    "staying": staying,
}


def store(name: str, lines: list[str]) -> None:
    """Put a table into the results in place of its former self."""
    path = RESULTS / "shac.txt"
    text = path.read_text() if path.exists() else ""
    blocks = dict(block.split("\n", 1) for block in text.split("$ ")[1:])
    command = "python -m benchmarks.shac --only {}"
    note = (
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread; seconds are processor "
        "time, beside other work"
    )
    blocks[command.format(name)] = "\n".join([*lines, note, "\n"])
    ordered = [c for c in map(command.format, SECTIONS) if c in blocks]
    RESULTS.mkdir(exist_ok=True)
    path.write_text("".join(f"$ {c}\n{blocks[c].rstrip()}\n\n" for c in ordered).rstrip() + "\n")


def main() -> None:
    """Print the tables and store each as it is done."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SECTIONS), help="one table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else SECTIONS:
        lines = SECTIONS[name]()
        print("\n".join(lines), "\n", flush=True)
        store(name, lines)


if __name__ == "__main__":
    main()
