"""Environment steps per second of GumbelSAC beside Stable-Baselines3's SAC and DQN.

    python -m benchmarks.speed

Same hidden widths, batch (256) and one update per environment step, on one core, in one run. SAC
is continuous (Pendulum-v1), the others act in CartPole-v1; DQN trains one network where the
actor-critics train three, so it is there for scale. Agents take turns, round by round, and the
median round counts, so that a machine whose speed drifts does not favour one of them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WARM_UP, STEPS = 400, 600


def make_agents(width: int) -> dict[str, Any]:
    """The agents under comparison, warmed up."""
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import DQN, SAC

    shared: dict[str, Any] = {"batch_size": 256, "learning_starts": 300, "device": "cpu", "seed": 0}
    arch = {"net_arch": [width, width]}  # copied for each: Stable-Baselines3 writes into it
    each_step = {"train_freq": 1, "gradient_steps": 1}
    agents: dict[str, Any] = {
        "SB3 SAC": SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(arch), **each_step, **shared),
        "SB3 DQN": DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(arch), **each_step, **shared),
    }
    for critic in ("heads", "action_in"):
        agents[f"GumbelSAC, {critic}"] = GumbelSAC(
            "MlpPolicy",
            make_vec_env("CartPole-v1"),
            policy_kwargs={**arch, "critic": critic},
            **each_step,
            **shared,
        )
    for agent in agents.values():
        agent.learn(WARM_UP)
    return agents


def main() -> None:
    """Print the table and store it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    lines = [f"{'width':>5s} {'agent':22s} {'steps/s':>8s} {'ms/step':>8s} {'times SAC':>10s}"]
    for width in (64, 256):
        agents = make_agents(width)
        seconds: dict[str, list[float]] = {name: [] for name in agents}
        for _ in range(rounds):
            for name, agent in agents.items():
                began = time.perf_counter()
                agent.learn(STEPS, reset_num_timesteps=False, log_interval=None)
                seconds[name].append((time.perf_counter() - began) / STEPS)
        sac = seconds["SB3 SAC"]
        for name, times in seconds.items():
            middle = statistics.median(times)
            ratio = statistics.median([a / b for a, b in zip(sac, times, strict=True)])
            lines.append(
                f"{width:5d} {name:22s} {1 / middle:8.0f} {middle * 1e3:8.2f} {ratio:10.2f}"
            )
    text = "\n".join(lines)
    note = f"{platform.machine()}, one core, torch {torch.__version__}, {rounds} rounds"
    print(f"{text}\n\n{note}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.txt").write_text(
        f"$ python -m benchmarks.speed --rounds {rounds}\n{text}\n\n{note}\n"
    )


if __name__ == "__main__":
    main()
