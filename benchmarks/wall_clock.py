"""Seconds from typing a training command to its end at a given return, beside PPO and DQN.

    python -m benchmarks.wall_clock                     run what is missing, print the table
    python -m benchmarks.wall_clock --task cartpole --agent ppo --seeds 3
    python -m benchmarks.wall_clock --tables            print it from the runs that are kept

A run is `python train.py agent=... env=... stop_at_return=...`, one command for all agents, with
the settings of configs/tuned/ where they are. It ends once 10 deterministic episodes reach the
return on average and 100 others confirm it. Seconds are of the whole process: Python's start,
imports, training, evaluations, checkpoints and the end. Processor seconds stand beside, for wall
time holds what else the machine did; `training` is wall time until the return was reached, start-up
and evaluations left out. An agent's budget of steps is the one its settings are for, so that their
schedules run as they were tuned; a run that ends there without the return counts as later than all
others. GumbelSHAC trains in the on-device CartPole, which equals Gymnasium's step by step; on
LunarLander, which has no differentiable form, it is left out, and so is REINFORCE, which does not
get there. Finished runs are kept in results/wall_clock.json with their commands and not run
again.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import kept_runs
from benchmarks.cartpole import median
from benchmarks.learning import LABELS as SHELF

RESULTS = Path(__file__).parent / "results"
KEPT, TABLE = RESULTS / "wall_clock.json", RESULTS / "wall_clock.txt"


@dataclass(frozen=True)
class Task:
    """What is typed beside agent and seed, the return to reach, and each agent's steps."""

    overrides: tuple[str, ...]
    threshold: int
    steps: Mapping[str, int]


AGENTS = ("gumbel_sac", "gumbel_shac", "reinforce", "ppo", "dqn")
TASKS = {
    "cartpole": Task(
        ("env=cartpole",),
        475,
        {name: 50_000 if name == "dqn" else 100_000 for name in AGENTS},
    ),
    "lunarlander": Task(
        ("env=lunarlander", "eval_every=10000"),
        200,
        {"gumbel_sac": 300_000, "ppo": 1_000_000, "dqn": 100_000},
    ),
}
LABELS = {**SHELF, "gumbel_sac": "GumbelSAC", "gumbel_shac": "GumbelSHAC"}
COLUMNS = {
    "wall_seconds": "wall s",
    "processor_seconds": "processor s",
    "train_seconds": "training s",
    "env_steps": "env steps",
}


def run(task: str, agent: str, seed: int) -> dict[str, Any]:
    """Train once; the row that is kept.

    Raises:
        RuntimeError: train.py failed; its last line.
    """
    spec = TASKS[task]
    overrides = [
        f"agent={agent}",
        *spec.overrides,
        f"stop_at_return={spec.threshold}",
        f"total_steps={spec.steps[agent]}",
        f"seed={seed}",
    ]
    ended = kept_runs.train(overrides)
    reached = ended.summary["reached"]
    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "reached": reached is not None,
        "env_steps": ended.summary["env_steps"],
        "wall_seconds": round(ended.wall_seconds, 2),
        "processor_seconds": round(ended.processor_seconds, 2),
        "train_seconds": round(
            reached["train_seconds"] if reached else ended.summary["train_seconds"], 2
        ),
        "commit": ended.summary["git_commit"],
        "command": f"python train.py {' '.join(overrides)}",
    }


def columns(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Median and range of the runs, those that did not get there later than all others."""
    values = [row[key] if row["reached"] else None for row in rows]
    there = [value for value in values if value is not None]

    def short(value: float | None) -> str:
        if value is None:
            return "never"
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

    least = short(min(there) if there else None)
    most = short(max(there) if len(there) == len(values) else None)
    return f"{short(median(values)):>12s}{f'{least} to {most}':>20s}"


def table(kept: Sequence[Mapping[str, Any]]) -> str:
    """One line for each agent that has runs."""
    lines = [
        f"{'task':18s} {'agent':10s} {'budget':>9s} {'reached':>8s}"
        + "".join(f"{name:>12s}{'range':>20s}" for name in COLUMNS.values())
    ]
    for task, spec in TASKS.items():
        title = f"{task} to {spec.threshold}"
        for agent in spec.steps:
            rows = [row for row in kept if (row["task"], row["agent"]) == (task, agent)]
            if not rows:
                continue
            label = LABELS[agent]
            there = sum(row["reached"] for row in rows)
            lines.append(
                f"{title:18s} {label:10s} {spec.steps[agent]:9,d} {there:4d} / {len(rows)}"
                + "".join(columns(rows, key) for key in COLUMNS)
            )
            title = ""
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="these tasks alone")
    parser.add_argument("--agent", action="append", choices=AGENTS, help="these agents alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    jobs = [
        (task, agent, seed)
        for seed in range(0 if options.tables else options.seeds)
        for task in options.task or TASKS
        for agent in options.agent or AGENTS
        if agent in TASKS[task].steps
    ]
    kept = kept_runs.complete(
        KEPT,
        jobs,
        run,
        lambda row: (
            f"{'reached' if row['reached'] else 'never reached it'}: {row['wall_seconds']:.1f} s, "
            f"{row['processor_seconds']:.1f} s of the processor, {row['env_steps']:,} steps"
        ),
        minutes=options.minutes,
    )
    if not kept:
        return
    note = (
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one run at a time, one thread each"
    )
    text = f"$ python -m benchmarks.wall_clock\n{table(kept)}\n\n{note}\n"
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
