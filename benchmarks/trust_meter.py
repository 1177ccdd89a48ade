"""What the trust meter costs, how its cosine scatters, and the prices behind `estimator="auto"`.

    python -m benchmarks.trust_meter

Meter: two GumbelSAC agents of the same seed, one with `trust_every` at its default and one with 0,
take turns on the same environment steps; their training is the same to the bit, so the ratio of a
round is the meter's. The scatter is over measurements of one batch. Auto: updates of the
estimators that it chooses among, over those of st_gumbel, taking turns on idle environments of
every size. Processor time of one core, medians over rounds; batch 128, hidden 64, 64 unless stated.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

RESULTS = Path(__file__).parent / "results"
WARM_UP = 320


class Idle(gym.Env[np.ndarray, Any]):
    """Noise to see, nothing to earn; actions of the sizes `nvec`."""

    observation_space = spaces.Box(-1.0, 1.0, (8,))

    def __init__(self, nvec: tuple[int, ...]) -> None:
        single = len(nvec) == 1
        self.action_space = spaces.Discrete(nvec[0]) if single else spaces.MultiDiscrete(nvec)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 8).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.uniform(-1, 1, 8).astype(np.float32), 0.0, False, False, {}


def make_sac(env: Any, **settings: Any) -> Any:
    """A GumbelSAC agent on one core, past its warm-up."""
    from gumbelrl.agents import GumbelSAC

    agent = GumbelSAC(
        "MlpPolicy", env, batch_size=128, learning_starts=300, seed=0, device="cpu", **settings
    )
    agent.learn(WARM_UP, log_interval=None)
    return agent


def take_turns(turns: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        # Forth and back, so that a drifting clock favours none.
        for name in sorted(turns, reverse=number % 2 == 1):
            began = time.process_time()
            turns[name]()
            seconds[name].append(time.process_time() - began)
    return seconds


def measure_on_batch(agent: Any, times: int) -> tuple[list[float], list[dict[str, float]]]:
    """Milliseconds and figures of repeated measurements of one batch from the agent's replay."""
    from gumbelrl.agents.critics import CriticObjective
    from gumbelrl.agents.trust_meter import TrustMeter

    policy, meter = agent.policy, TrustMeter(seed=0)
    batch = agent.replay_buffer.sample(agent.batch_size, agent.generator)
    dist = policy.dist(batch.obs)
    embedding = policy.critic.embed(policy.critic_features(batch.obs)).detach()
    milliseconds, figures = [], []
    for _ in range(times):
        began = time.process_time()
        figures.append(
            meter.measure(dist, CriticObjective(policy.critic, embedding), agent.estimator)
        )
        milliseconds.append((time.process_time() - began) * 1e3)
    return milliseconds, figures


def meter_table(rounds: int) -> Iterator[str]:
    """The meter on and off."""
    from gumbelrl.agents.trust_meter import REFERENCES, TRUST_EVERY
    from gumbelrl.envs import make_vec_env

    wide = {"net_arch": [256, 256]}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "CartPole-v1, heads": ("CartPole-v1", {"critic": "heads"}),
        "CoupledControl 8x5, action_in": ("gumbelrl/CoupledControl-v0", {"critic": "action_in"}),
        "CoupledControl 8x5, multilinear": (
            "gumbelrl/CoupledControl-v0",
            {"critic": "multilinear"},
        ),
        "CoupledControl 8x5, action_in, 256 wide": (
            "gumbelrl/CoupledControl-v0",
            {"critic": "action_in", **wide},
        ),
    }
    yield f"meter every {TRUST_EVERY} updates, 1 update a step"
    yield (
        f"{'':40s} {'ms/step':>8s} {'ms each':>8s} {'share':>7s} {'on/off':>7s} "
        f"{'(range)':>15s} {'cosine':>14s}  reference"
    )
    for name, (env, policy_kwargs) in cases.items():
        agents = {
            label: make_sac(make_vec_env(env), policy_kwargs=dict(policy_kwargs), trust_every=every)
            for label, every in {"off": 0, "on": TRUST_EVERY}.items()
        }
        turns = {
            label: lambda a=agent: a.learn(
                TRUST_EVERY, reset_num_timesteps=False, log_interval=None
            )
            for label, agent in agents.items()
        }
        seconds = take_turns(turns, rounds)
        step = statistics.median(seconds["off"]) / TRUST_EVERY * 1e3
        ratios = [on / off for on, off in zip(seconds["on"], seconds["off"], strict=True)]
        each, figures = measure_on_batch(agents["on"], 20)
        cosines = [row["estimator/cosine"] for row in figures]
        cost = statistics.median(each)
        spread = f"({min(ratios):.3f}-{max(ratios):.3f})"
        yield (
            f"{name:40s} {step:8.2f} {cost:8.1f} {cost / step / TRUST_EVERY:7.2%} "
            f"{statistics.median(ratios):7.3f} {spread:>15s} "
            f"{statistics.mean(cosines):6.3f} ± {statistics.stdev(cosines):.3f}  "
            f"{REFERENCES[int(figures[0]['estimator/reference'])]}"
        )


def auto_table(rounds: int) -> Iterator[str]:
    """Updates over those of st_gumbel."""
    from gumbelrl.agents.estimators import choose_estimator

    yield (
        f"{'critic':16s} {'nvec':>8s} {'prod':>9s} {'sum':>5s} {'st_gumbel':>10s} {'exact':>7s} "
        f"{'local_expectation':>18s}  auto"
    )
    sizes = [((k,), "heads", 64) for k in (2, 256)]
    sizes += [((k,), "action_in", 64) for k in (2, 16, 32, 64)]
    sizes += [((5,) * m, "action_in", 64) for m in (2, 3, 8, 10, 16, 32)]
    sizes += [((5,) * m, "multilinear", 64) for m in (2, 8, 32)]
    sizes += [((5,) * m, "action_in", 256) for m in (2, 8)]
    for nvec, critic, width in sizes:
        names = ["st_gumbel"]
        names += ["exact"] if np.prod(nvec) <= 125 or critic == "heads" else []
        names += ["local_expectation"] if len(nvec) > 1 else []
        policy_kwargs = {"critic": critic, "net_arch": [width, width]}
        turns = {}
        for name in names:
            agent = make_sac(
                Idle(nvec), estimator=name, trust_every=0, policy_kwargs=dict(policy_kwargs)
            )
            turns[name] = lambda a=agent: a.train(20, 128)
        seconds = take_turns(turns, rounds)
        base = seconds["st_gumbel"]
        times = {
            name: statistics.median([a / b for a, b in zip(own, base, strict=True)])
            for name, own in seconds.items()
        }
        label = str(nvec[0]) if len(nvec) == 1 else f"{nvec[0]}^{len(nvec)}"
        cells = {name: f"{times[name]:.2f}" if name in times else "" for name in times}
        yield (
            f"{critic + (', 256 wide' if width == 256 else ''):16s} {label:>8s} "
            f"{float(np.prod(nvec, dtype=float)):9.3g} {sum(nvec):5d} "
            f"{statistics.median(base) / 20 * 1e3:7.2f} ms {cells.get('exact', ''):>7s} "
            f"{cells.get('local_expectation', ''):>18s}  "
            f"{choose_estimator(nvec, per_factor=critic != 'action_in')}"
        )


def main() -> None:
    """Print both tables and store them."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    lines = []
    for line in itertools.chain(meter_table(rounds), [""], auto_table(rounds)):
        print(line, flush=True)
        lines.append(line)
    text = "\n".join(lines)
    note = f"{platform.machine()}, one core, torch {torch.__version__}, {rounds} rounds"
    print(f"\n{note}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trust_meter.txt").write_text(
        f"$ python -m benchmarks.trust_meter --rounds {rounds}\n{text}\n\n{note}\n"
    )


if __name__ == "__main__":
    main()
