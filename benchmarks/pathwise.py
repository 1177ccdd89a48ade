"""Tasks whose dynamics carry a gradient: GumbelSHAC beside REINFORCE, PPO and GumbelSAC.

    python -m benchmarks.pathwise                  all that is missing, then the tables
    python -m benchmarks.pathwise --tables         only the tables and the picture
    python -m benchmarks.pathwise --only growth    coupled control with 1 to 256 factors

Scores are (R − random) / (reference − random) of deterministic policies over 256 episodes; the
references are the environments' own. All agents have two hidden layers of 128 units and γ = 0.95,
and each had two to five settings tried on coupled control with 8 factors. Seeds of GumbelSHAC
train together in one process. In the table of growing factors, training stops at 0.9, of three
seeds with up to 400,000 steps; with 256 factors both have one seed, REINFORCE 100,000 steps.
Finished runs are kept in benchmarks/results/pathwise.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STORE = RESULTS / "pathwise.json"
PICTURE = Path(__file__).parents[1] / "docs" / "factors.png"

TASKS = ["CoupledControl-v0", "SwitchedLQR-v0", "Inventory-v0", "SpeakerListener-v0"]
ESTIMATORS = ["st_gumbel", "straight_through", "reinmax", "gumbel_rao"]
STEADY, EXPLORING = "gumbel_shac st_gumbel steady", "gumbel_shac reinmax exploring"
SETTINGS = {STEADY: {"actor_beta2": 0.99}, EXPLORING: {"ent_coef": 0.1}}  # others: defaults
LABELS = {
    **{f"gumbel_shac {name}": f"GumbelSHAC, {name}" for name in ESTIMATORS},
    STEADY: "GumbelSHAC, st_gumbel, β₂ .99",
    EXPLORING: "GumbelSHAC, reinmax, α .1",
    "reinforce": "REINFORCE, learned value",
    "ppo": "SB3 PPO",
    "gumbel_sac": "GumbelSAC, st_gumbel",
}
BUDGETS = {"reinforce": 100_000, "ppo": 100_000, "gumbel_sac": 12_000}  # GumbelSHAC: 100,000
SEEDS = 5
GROWTH, GROWTH_SEEDS, GROWTH_BUDGET = (1, 4, 16, 64, 256), 3, 400_000
# Seeds and budget where a run takes long: 512 numbers of state, 1,280 logits.
CAPPED = {
    ("gumbel_shac st_gumbel", 256): (1, GROWTH_BUDGET),
    ("reinforce", 256): (1, 100_000),
}
GOAL = 0.9
EQUAL_SECONDS = (1, 5, 20)  # of training, at which scores are compared


def make_agent(name: str, id: str, kwargs: dict[str, Any], seed: int, n_seeds: int) -> Any:
    """An agent on a task; `n_seeds` counts for GumbelSHAC alone."""
    import gymnasium
    from gumbelrl.agents import REINFORCE, GumbelSAC, GumbelSHAC
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import PPO

    arch: dict[str, Any] = {"net_arch": [128, 128]}
    shared: dict[str, Any] = {
        "gamma": 0.95,
        "seed": seed,
        "device": "cpu",
        "policy_kwargs": arch,
    }
    if name.startswith("gumbel_shac"):
        env = gymnasium.make_vec(f"gumbelrl.envs:gumbelrl/{id}", num_envs=1, **kwargs)
        vec_env = env.unwrapped.as_vec_env()  # type: ignore[attr-defined]
        estimator = name.split()[1]
        shared |= SETTINGS.get(name, {})
        return GumbelSHAC("MlpPolicy", vec_env, estimator=estimator, n_seeds=n_seeds, **shared)
    n_envs = {"reinforce": 4, "ppo": 16, "gumbel_sac": 8}[name]
    env = make_vec_env(f"gumbelrl/{id}", n_envs, seed=seed, kwargs=kwargs)
    if name == "reinforce":
        return REINFORCE("MlpPolicy", env, learning_rate=3e-3, **shared)
    if name == "ppo":
        return PPO("MlpPolicy", env, n_steps=64, batch_size=256, learning_rate=1e-3, **shared)
    return GumbelSAC(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        batch_size=256,
        polyak=0.005,
        gradient_steps=4,
        **shared,
    )


def make_scorer(id: str, kwargs: dict[str, Any]) -> Callable[[float], float]:
    """Return -> score."""
    from gumbelrl.envs.registration import make_task
    from gumbelrl.envs.simulation import random_return

    task = make_task(f"gumbelrl/{id}", **kwargs)
    reference, low = task.reference()[0], random_return(task)
    return lambda value: (value - low) / (reference - low)


def evaluate(agent: Any, id: str, kwargs: dict[str, Any]) -> list[float]:
    """Mean returns of the deterministic policy, one per seed that the agent holds."""
    import torch
    from gumbelrl.envs.registration import make_task
    from gumbelrl.envs.simulation import mean_return

    if hasattr(agent, "evaluate_seeds"):
        return agent.evaluate_seeds(256, seed=1).tolist()
    task = make_task(f"gumbelrl/{id}", **kwargs)

    def policy(state: torch.Tensor) -> torch.Tensor:
        obs = task.observe(state)
        if hasattr(agent.policy, "dist"):
            return agent.policy.dist(obs).mode()
        return agent.policy.get_distribution(obs).mode().view(len(obs), -1)

    return [mean_return(task, policy, n_episodes=256, seed=1)]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job; its curve is rows of (env steps, seconds of training, scores)."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    id, kwargs, every = job["task"], job["kwargs"], job["every"]
    score = make_scorer(id, kwargs)
    agent = make_agent(job["agent"], id, kwargs, job["seed"], job["n_seeds"])
    curve: list[tuple[int, float, list[float]]] = []

    class Curve(BaseCallback):
        number, started, evaluating = 0, 0.0, 0.0

        def _on_training_start(self) -> None:
            self.started = time.process_time()

        def _on_step(self) -> bool:
            if self.num_timesteps // every <= self.number:
                return True
            self.number = self.num_timesteps // every
            began = time.process_time()
            scores = [score(value) for value in evaluate(self.model, id, kwargs)]
            curve.append((self.num_timesteps, began - self.started - self.evaluating, scores))
            self.evaluating += time.process_time() - began
            return not (job["stop"] and min(scores) >= GOAL)

    agent.learn(job["budget"], callback=Curve(), log_interval=None)
    return {**job, "curve": curve}


def jobs() -> list[dict[str, Any]]:
    """Everything the tables need, the quick ones first."""
    wanted = []
    for task in TASKS:
        for agent in LABELS:
            if agent == EXPLORING and task != "SpeakerListener-v0":
                continue
            batched = agent.startswith("gumbel_shac")
            for seed in range(1 if batched else SEEDS):
                wanted.append(
                    {
                        "table": "tasks",
                        "task": task,
                        "kwargs": {},
                        "agent": agent,
                        "seed": seed,
                        "n_seeds": SEEDS if batched else 1,
                        "budget": BUDGETS.get(agent, 100_000),
                        "every": 2_000,
                        "stop": False,
                    }
                )
    for n_factors in GROWTH:
        for agent in ("gumbel_shac st_gumbel", "reinforce", STEADY):
            if agent == STEADY and n_factors == max(GROWTH):
                continue  # the default alone takes long enough there
            batched = agent.startswith("gumbel_shac")
            seeds, budget = CAPPED.get((agent, n_factors), (GROWTH_SEEDS, GROWTH_BUDGET))
            for seed in range(1 if batched else seeds):
                wanted.append(
                    {
                        "table": "growth",
                        "task": "CoupledControl-v0",
                        "kwargs": {"n_factors": n_factors},
                        "agent": agent,
                        "seed": seed,
                        "n_seeds": seeds if batched else 1,
                        "budget": budget,
                        "every": 2_000,
                        "stop": True,
                    }
                )
    return wanted


def key(job: dict[str, Any]) -> str:
    """What makes two runs the same run."""
    return json.dumps({k: v for k, v in job.items() if k != "curve"}, sort_keys=True)


def pick(runs: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The runs that fit."""
    return [r for r in runs if all(r[k] == v for k, v in wanted.items())]


def seed_curves(runs: list[dict[str, Any]]) -> list[list[tuple[int, float, float]]]:
    """One curve of (steps, seconds, score) per seed, batched runs taken apart."""
    return [
        [(steps, seconds, scores[i]) for steps, seconds, scores in r["curve"]]
        for r in runs
        for i in range(r["n_seeds"])
    ]


def first_at_goal(curve: list[tuple[int, float, float]]) -> tuple[float, float]:
    """(steps, seconds) at the first score of 0.9 or better; infinity if there is none."""
    for steps, seconds, score in curve:
        if score >= GOAL:
            return steps, seconds
    return float("inf"), float("inf")


def score_after(curve: list[tuple[int, float, float]], seconds: float) -> float | None:
    """The last score within so many seconds, that of the budget's end after it; None before any."""
    within = [score for _, clock, score in curve if clock <= seconds]
    return within[-1] if within else None


def median(values: list[float]) -> float:
    """Median; infinity counts as later than everything."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def text_of(value: float, form: str = ",.0f") -> str:
    return "-" if value == float("inf") else format(value, form)


def tables(runs: list[dict[str, Any]]) -> str:
    """The table of the four tasks, then that of growing factors."""
    import numpy as np

    at = (10_000, 30_000, 100_000)
    lines = [
        f"{'task':20s} {'agent':30s}"
        + "".join(f"{f'@{step // 1000} k':>8s}" for step in at)
        + "".join(f"{f'@{seconds} s':>7s}" for seconds in EQUAL_SECONDS)
        + f"{'best':>7s} {'steps to .9':>12s} {'s to .9':>8s} {'reached':>8s}"
    ]
    for task in TASKS:
        for agent, label in LABELS.items():
            chosen = pick(runs, table="tasks", task=task, agent=agent)
            curves = seed_curves(chosen)
            if not curves:
                continue
            row = f"{task:20s} {label:30s}"
            for step in at:
                there = [c for c in curves if c[-1][0] >= 0.99 * step]
                values = [min(c, key=lambda p: abs(p[0] - step))[2] for c in there]
                row += f"{np.mean(values):8.2f}" if values else f"{'-':>8s}"
            # Seeds that trained together share the clock: a seed's share is what it cost.
            share = chosen[0]["n_seeds"]
            for seconds in EQUAL_SECONDS:
                values = [score_after(c, seconds * share) for c in curves]
                row += f"{'-':>7s}" if None in values else f"{np.mean(values):7.2f}"
            goals = [first_at_goal(c) for c in curves]
            best = np.mean([max(p[2] for p in c) for c in curves])
            reached = sum(steps < float("inf") for steps, _ in goals)
            lines.append(
                f"{row}{best:7.2f} {text_of(median([g[0] for g in goals])):>12s} "
                f"{text_of(median([g[1] / share for g in goals]), '.1f'):>8s} "
                f"{reached:>4d} / {len(goals)}"
            )
        lines.append("")
    lines.append(
        f"{'factors':>8s} {'GumbelSHAC steps to .9':>24s} {'REINFORCE':>12s} {'ratio':>7s}"
        f"{'last scores':>18s} {'β₂ .99':>8s}"
    )
    for n_factors in GROWTH:
        middle: dict[str, Any] = {}
        last = []
        for agent in ("gumbel_shac st_gumbel", "reinforce"):
            chosen = pick(runs, table="growth", agent=agent, kwargs={"n_factors": n_factors})
            curves = seed_curves(chosen)
            if not curves:
                continue
            steps, budget = median([first_at_goal(c)[0] for c in curves]), chosen[0]["budget"]
            beyond = steps == float("inf")
            middle[agent] = (budget if beyond else steps, "> " if beyond else "")
            last.append(np.mean([c[-1][2] for c in curves]))
        if len(middle) < 2:
            continue
        curves = seed_curves(
            pick(runs, table="growth", agent=STEADY, kwargs={"n_factors": n_factors})
        )
        steady = text_of(median([first_at_goal(c)[0] for c in curves])) if curves else "-"
        (shac, shac_more), (other, more) = middle.values()
        ratio = f"{more}{other / shac:.1f}" if not shac_more else "-"
        lines.append(
            f"{n_factors:8d} {f'{shac_more}{shac:,}':>24s} "
            f"{f'{more}{other:,}':>12s} {ratio:>7s}"
            f"{f'{last[0]:.2f} and {last[1]:.2f}':>18s} {steady:>8s}"
        )
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]]) -> None:
    """Steps to 0.9 against the number of factors; a hollow mark never got there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    names = {"gumbel_shac st_gumbel": "GumbelSHAC, st_gumbel", "reinforce": "REINFORCE"}
    for index, (agent, label) in enumerate(names.items()):
        for n_factors in GROWTH:
            chosen = pick(runs, table="growth", agent=agent, kwargs={"n_factors": n_factors})
            for curve in seed_curves(chosen):
                steps = first_at_goal(curve)[0]
                there = steps < float("inf")
                axis.plot(
                    n_factors,
                    steps if there else curve[-1][0],
                    "o" if there else "^",
                    color=f"C{index}",
                    fillstyle="full" if there else "none",
                )
        axis.plot([], [], "o", color=f"C{index}", label=label)
    axis.plot([], [], "^", color="0.5", fillstyle="none", label="not within the budget")
    axis.set(xscale="log", yscale="log", xlabel="factors", ylabel="environment steps to 0.9")
    axis.set_title("Coupled control, 5 torques a joint", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    """Run what is missing, store each run as it ends, print and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", choices=("tasks", "growth"), help="one of the two tables")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    runs = json.loads(STORE.read_text()) if STORE.exists() else []
    done = {key(r) for r in runs}
    missing = [
        job for job in jobs() if key(job) not in done and options.only in (None, job["table"])
    ]
    if not options.tables and missing:
        with ProcessPoolExecutor(options.workers) as pool:
            for number, result in enumerate(pool.map(run, missing), start=1):
                runs.append(result)
                STORE.write_text(json.dumps(runs))
                last = [round(score, 2) for score in result["curve"][-1][2]]
                print(
                    f"{number}/{len(missing)} {result['task']} {result['kwargs'] or ''} "
                    f"{result['agent']} seed {result['seed']}: {last}",
                    flush=True,
                )
    note = (
        "compare steps: seconds are of one thread beside other work, wall time in the older runs,\n"
        "processor time in the newer ones\n"
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    )
    text = f"$ python -m benchmarks.pathwise\n{tables(runs)}\n\n{note}\n"
    print(f"\n{text}")
    (RESULTS / "pathwise.txt").write_text(text)
    plot(runs)


if __name__ == "__main__":
    main()
