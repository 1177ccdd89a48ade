"""REINFORCE's baselines and rollouts on CartPole-v1 and Acrobot-v1, tuned with equal effort.

    python -m benchmarks.reinforce              CartPole: tune, then five seeds each, and the table
    python -m benchmarks.reinforce --acrobot    Acrobot: the defaults and fixed rollouts, 3 seeds

Every pair of a baseline and a rollout tries the same three learning rates of the actor on two seeds
that are not used again, 8,000 steps each. The rate with the highest mean evaluation return on the
way goes on to five new seeds. All else is the class's default: networks (64, 64), one environment
and one episode per update, two for leave-one-out, which needs them; fixed rollouts are of four
environments and 64 steps. An agent is stopped at 50,000 environment steps, evaluated
deterministically every 1,000 (2,000 while tuning) with 10 episodes, and has reached the threshold
when 100 further episodes confirm a mean of 475.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BASELINES = ("value", "leave_one_out", "running", "none")
ROLLOUTS = ("episodes", "steps")
RATES = (3e-3, 1e-2, 3e-2)
TUNING_SEEDS, TUNING_BUDGET, TUNING_EVERY = (100, 101), 8_000, 2_000
SEEDS, BUDGET, EVERY, THRESHOLD = (0, 1, 2, 3, 4), 50_000, 1_000, 475.0
ACROBOT_SEEDS, ACROBOT_BUDGET = (0, 1, 2), 100_000


def make_agent(env_id: str, baseline: str, rollout: str, seed: int, **settings: Any) -> Any:
    """REINFORCE as it is compared here."""
    from gumbelrl.agents import REINFORCE
    from gumbelrl.envs import make_vec_env

    return REINFORCE(
        "MlpPolicy",
        make_vec_env(env_id, 4 if rollout == "steps" else 1, seed=seed),
        baseline=baseline,
        rollout=rollout,
        n_episodes=2 if baseline == "leave_one_out" else 1,
        seed=seed,
        device="cpu",
        **settings,
    )


def learn_cartpole(
    baseline: str, rollout: str, rate: float, seed: int, budget: int, **evaluation: Any
) -> Any:
    """Train one agent; returns what was evaluated on the way."""
    from gumbelrl.envs import make_vec_env
    from gumbelrl.tracking import EvaluationCallback
    from stable_baselines3.common.logger import Logger

    class Evaluation(EvaluationCallback):
        returns: tuple[float, ...] = ()

        def _evaluate(self, number: int) -> bool:
            go_on = super()._evaluate(number)
            assert self.last is not None
            self.returns = (*self.returns, self.last.mean)
            return go_on

    agent = make_agent("CartPole-v1", baseline, rollout, seed, learning_rate=rate)
    agent.set_logger(Logger(None, []))
    callback = Evaluation(
        lambda n_envs, seed: make_vec_env("CartPole-v1", n_envs, seed=seed), seed=seed, **evaluation
    )
    agent.learn(budget, callback=callback, log_interval=None)
    return callback


def tuning_score(baseline: str, rollout: str, rate: float) -> float:
    """Mean evaluation return on the way."""
    runs = [
        learn_cartpole(baseline, rollout, rate, seed, TUNING_BUDGET, eval_every=TUNING_EVERY)
        for seed in TUNING_SEEDS
    ]
    return statistics.mean(value for run in runs for value in run.returns)


def steps_to_threshold(baseline: str, rollout: str, rate: float, seed: int) -> int | None:
    """Environment steps until 475 is held over 100 episodes, None where it never is."""
    settings = {"eval_every": EVERY, "episodes": 100, "stop_at_return": THRESHOLD}
    run = learn_cartpole(baseline, rollout, rate, seed, BUDGET, **settings)
    return run.reached.env_steps if run.reached else None


def cartpole_row(baseline: str, rollout: str) -> str:
    """One line of the table: the rates tried, the one taken, and its five seeds."""
    scores = {rate: tuning_score(baseline, rollout, rate) for rate in RATES}
    best = max(scores, key=lambda rate: scores[rate])
    steps = [steps_to_threshold(baseline, rollout, best, seed) for seed in SEEDS]
    there = [s for s in steps if s is not None]
    middle = statistics.median([float("inf") if s is None else s for s in steps])
    tried = "".join(f"{scores[rate]:7.0f}" for rate in RATES)
    return (
        f"{baseline:14s} {rollout:9s}{tried}{best:10.0e}{len(there):6d} / {len(steps)}"
        f"{'never' if middle == float('inf') else f'{middle:,.0f}':>9s}   "
        + (f"{min(there):,} to {max(there):,}" if there else "-")
    )


def cartpole_table() -> str:
    """All baselines and rollouts."""
    rates = "".join(f"{rate:7.0e}" for rate in RATES)
    lines = [
        "CartPole-v1: mean evaluation return on the way to 8,000 steps for each learning rate",
        "tried, the rate taken, seeds that reach 475 over 100 episodes, and their steps",
        f"{'baseline':14s} {'rollout':9s}{rates}"
        f"{'taken':>10s}{'reached':>10s}{'median':>9s}   range",
    ]
    print("\n".join(lines), flush=True)
    for baseline in BASELINES:
        for rollout in ROLLOUTS:
            lines.append(cartpole_row(baseline, rollout))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def acrobot_table() -> str:
    """The learned value with either rollout: 100 deterministic episodes after the last update."""
    from gumbelrl.envs import make_vec_env
    from gumbelrl.tracking import evaluate
    from stable_baselines3.common.logger import Logger

    lines = [
        f"Acrobot-v1 after {ACROBOT_BUDGET:,} steps, baseline 'value', defaults:",
        "mean return of 100 deterministic episodes",
        f"{'rollout':9s}" + "".join(f"{f'seed {seed}':>10s}" for seed in ACROBOT_SEEDS),
    ]
    for rollout in ROLLOUTS:
        means = []
        for seed in ACROBOT_SEEDS:
            agent = make_agent("Acrobot-v1", "value", rollout, seed)
            agent.set_logger(Logger(None, []))
            agent.learn(ACROBOT_BUDGET, log_interval=None)
            result = evaluate(
                agent,
                lambda n_envs, seed: make_vec_env("Acrobot-v1", n_envs, seed=seed),
                100,
                seed=seed,
            )
            means.append(result.mean)
        lines.append(f"{rollout:9s}" + "".join(f"{mean:10.1f}" for mean in means))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for, print the table and keep it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--acrobot", action="store_true", help="Acrobot instead of CartPole")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    text = acrobot_table() if options.acrobot else cartpole_table()
    seconds = time.process_time() - began
    machine = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread"
    flag = " --acrobot" if options.acrobot else ""
    report = f"$ python -m benchmarks.reinforce{flag}\n{text}\n\n"
    report += f"{machine}; {seconds:.0f} s of processor time in all\n"
    print(report)
    RESULTS.mkdir(exist_ok=True)
    name = "reinforce_acrobot.txt" if options.acrobot else "reinforce.txt"
    (RESULTS / name).write_text(report)


if __name__ == "__main__":
    main()
