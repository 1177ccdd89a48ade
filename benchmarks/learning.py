"""The learning table: what each agent reaches on each task, over seeds, by `train.py` itself.

    python -m benchmarks.learning                        run what is missing, print the table
    python -m benchmarks.learning --task acrobot --agent st_gumbel --agent dqn --seeds 5
    python -m benchmarks.learning --tables               print it from the runs that are kept

A run is the command `python train.py` with the overrides of its task and agent (settings tuned for
the pair apply by themselves; configs/tuned/ says where they come from). Its figure is the
deterministic evaluation of 100 episodes after the last step, in environments of its own. Finished
runs are kept in results/learning.json with their commands and are not run again.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import kept_runs

RESULTS = Path(__file__).parent / "results"
KEPT, TABLE = RESULTS / "learning.json", RESULTS / "learning.txt"


@dataclass(frozen=True)
class Task:
    """A row block: overrides of train.py, the budget, and what we aim at."""

    overrides: tuple[str, ...]
    steps: int
    aim: str
    agents: tuple[str, ...]


OURS = ("st_gumbel", "reinmax", "straight_through", "exact", "reinforce")
TASKS = {
    "acrobot": Task(("env=acrobot",), 100_000, "≥ −80", (*OURS, "ppo", "dqn")),
    "mountaincar": Task(("env=mountaincar",), 150_000, "≥ −110", (*OURS, "ppo", "dqn")),
    "lunarlander": Task(("env=lunarlander",), 300_000, "≥ 250", (*OURS, "ppo", "dqn")),
    "taxi": Task(("env=taxi",), 60_000, "≥ 7.5", (*OURS, "maskable_ppo", "optimum")),
    "breakout": Task(("env=minatar_breakout",), 500_000, "ahead of DQN", (*OURS, "ppo", "dqn")),
}
AGENTS: dict[str, tuple[str, ...]] = {
    **{
        name: ("agent=gumbel_sac", f"agent.estimator={name}")
        for name in ("st_gumbel", "reinmax", "straight_through", "exact", "local_expectation")
    },
    "optimum": (),  # computed, not learned
    **{name: (f"agent={name}",) for name in ("reinforce", "ppo", "dqn", "maskable_ppo", "sac")},
}
LABELS = {
    "reinforce": "REINFORCE",
    "ppo": "SB3 PPO",
    "dqn": "SB3 DQN",
    "maskable_ppo": "MaskablePPO",
    "sac": "SB3 SAC, continuous",
    "optimum": "optimum, same starts",
}


class TaxiOptimum:
    """The best policy of Taxi, by value iteration on its table of transitions."""

    def __init__(self, gamma: float = 0.999) -> None:
        import gymnasium
        import numpy as np

        table = gymnasium.make("Taxi-v4").unwrapped.P  # type: ignore[attr-defined]
        self.q = np.zeros((len(table), len(table[0])))
        for _ in range(300):  # longer than any way
            value = self.q.max(1)
            for s, actions in table.items():
                for a, outcomes in actions.items():
                    self.q[s, a] = sum(
                        p * (r + gamma * (not done) * value[s2]) for p, s2, r, done in outcomes
                    )

    def predict(self, obs: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
        """Greedy actions [N] in states [N]."""
        return self.q[obs].argmax(1), state


def optimum(task: str, seed: int) -> dict[str, Any]:
    """What the best policy gets in the episodes of a run's final evaluation."""
    from gumbelrl.envs import make_vec_env
    from gumbelrl.tracking import evaluate, final_evaluation_seed

    def make_env(n_envs: int, env_seed: int) -> Any:
        return make_vec_env("Taxi-v4", n_envs, env_seed)

    best = evaluate(TaxiOptimum(), make_env, 100, final_evaluation_seed(seed)).mean
    return {
        "task": task,
        "agent": "optimum",
        "seed": seed,
        "return": best,
        "curve": [],
        "train_seconds": 0.0,
        "commit": None,
        "command": "python -m benchmarks.learning --task taxi --agent optimum",
    }


def run(task: str, agent: str, seed: int) -> dict[str, Any]:
    """Train once; the row that is kept.

    Raises:
        RuntimeError: train.py failed; its last line.
    """
    if agent == "optimum":
        return optimum(task, seed)
    spec = TASKS[task]
    overrides = [*AGENTS[agent], *spec.overrides, f"total_steps={spec.steps}", f"seed={seed}"]
    ended = kept_runs.train([*overrides, f"eval_every={spec.steps // 10}"])
    rows = [row for row in ended.metrics if "eval/return_mean" in row]
    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "return": ended.summary["eval"]["return_mean"],
        "curve": [[row["env_steps"], round(row["eval/return_mean"], 2)] for row in rows],
        "train_seconds": ended.summary["train_seconds"],
        "cores": os.cpu_count(),
        "commit": ended.summary["git_commit"],
        "command": f"python train.py {' '.join(overrides)}",
    }


def interquartile(returns: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Interquartile mean over seeds, and its 95 % bootstrap interval from three seeds on."""
    import numpy as np
    from scipy.stats import bootstrap, trim_mean

    mean = float(trim_mean(returns, 0.25))
    if len(returns) < 3:
        return mean, None
    if len(set(returns)) == 1:
        return mean, (mean, mean)
    found = bootstrap(
        (np.asarray(returns),),
        lambda x, axis: trim_mean(x, 0.25, axis=axis),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return mean, (float(found.confidence_interval.low), float(found.confidence_interval.high))


def table(kept: list[dict[str, Any]]) -> str:
    """All tasks as text, one line for each agent that has runs."""
    lines = [
        f"{'task, env steps, aim':32s} {'agent':26s} {'seeds':>5s} {'IQM':>8s} "
        f"{'95 % interval':>20s} {'train s':>8s}  returns"
    ]
    for task, spec in TASKS.items():
        title = f"{task}, {spec.steps // 1000} k, {spec.aim}"
        for agent in spec.agents:
            runs = [row for row in kept if (row["task"], row["agent"]) == (task, agent)]
            if not runs:
                continue
            returns = [row["return"] for row in sorted(runs, key=lambda row: row["seed"])]
            mean, interval = interquartile(returns)
            span = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "too few seeds"
            seconds = statistics.median(row["train_seconds"] for row in runs)
            label = LABELS.get(agent, f"GumbelSAC {agent}")
            lines.append(
                f"{title:32s} {label:26s} {len(runs):5d} {mean:8.2f} {span:>20s} {seconds:8.0f}  "
                + " ".join(f"{value:.2f}" for value in returns)
            )
            title = ""
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=list(TASKS), help="these tasks alone")
    parser.add_argument("--agent", action="append", choices=list(AGENTS), help="these agents alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    wanted = [
        (task, agent, seed)
        for seed in range(0 if options.tables else options.seeds)
        for task in options.task or TASKS
        for agent in TASKS[task].agents
        if agent in (options.agent or AGENTS)
    ]
    kept = kept_runs.complete(
        KEPT,
        wanted,
        run,
        lambda row: f"{row['return']:.1f} after {row['train_seconds']:.0f} s",
        workers=options.workers,
        minutes=options.minutes,
    )
    if not kept:
        return
    cores = sorted({row.get("cores", 2) for row in kept})
    note = (
        f"x86_64 machines of {' and '.join(map(str, cores))} cores, on the CPU, one thread a run; "
        "seconds are the machine's that made the run"
    )
    text = f"$ python -m benchmarks.learning\n{table(kept)}\n\n{note}\n"
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
