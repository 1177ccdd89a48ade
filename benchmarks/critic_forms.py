"""Two forms of critic on factored actions: a perceptron on the one-hots, and a multilinear one.

    python -m benchmarks.critic_forms                 all that is missing, then the tables
    python -m benchmarks.critic_forms --minutes 20    stop starting runs after so long
    python -m benchmarks.critic_forms --only ring     those whose task, critic, estimator match
    python -m benchmarks.critic_forms --tables        only the tables

GumbelSAC, two hidden layers of 128 units, the settings of `benchmarks.pathwise`, which were found
with `action_in`. Scores are (R − random) / (reference − random) of deterministic policies, the
references the tasks' own. The cosine is that of the estimator's mean gradient with the local
expectation's, both of the trained critic, on 16 states of the replay. Finished runs are kept in
benchmarks/results/critic_forms.json.

Straight-through on the multilinear critic is its local expectation, so both rows show one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.registration import register_on_device
from torch import Tensor

from benchmarks.pathwise import evaluate, make_scorer

RESULTS = Path(__file__).parent / "results"
STORE = RESULTS / "critic_forms.json"

# name: (id, arguments, environment steps)
TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "coupled control, 8 x 5": ("CoupledControl-v0", {"n_factors": 8}, 12_000),
    "inventory, 4 x 6": ("Inventory-v0", {}, 6_000),
    "spin ring, 10 x 2, pairs": ("SpinRing-v0", {"order": 2}, 12_000),
    "spin ring, 10 x 2, triples": ("SpinRing-v0", {"order": 3}, 12_000),
    "coupled control, 32 x 5": ("CoupledControl-v0", {"n_factors": 32}, 24_000),
}
RUNS = (
    ("action_in", "st_gumbel"),
    ("multilinear", "st_gumbel"),
    ("action_in", "straight_through"),
    ("multilinear", "straight_through"),
    ("action_in", "reinmax"),
    ("multilinear", "reinmax"),
    ("action_in", "rloo"),
    ("multilinear", "rloo"),
    ("action_in", "local_expectation"),
)
SEEDS = 3


class SpinRing(OnDeviceEnv):
    """Set n binary spins of a ring against random couplings; one step an episode.

        reward = mean_i (J_i Π_{j < order} s_{i + j} + h_i s_i),    s = ±1,    J, h in [-1, 1]

    The observation is (J, h). With order 2 the reward has interactions of pairs alone, whose signs
    the state decides; order 3 is beyond a critic of pairs. To the agents ten factors of two are
    what MultiBinary(10) is.
    """

    nvec = (2,) * 10
    max_episode_steps = 1
    state_dim = observation_dim = n_initial_noise = 20

    def __init__(self, order: int = 2) -> None:
        self.order = order

    def initial(self, noise: Tensor) -> Tensor:
        return 2 * noise - 1

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        return state

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        coupling, field = state.chunk(2, -1)  # (..., n)
        spin = 2 * one_hot[..., 1::2] - 1
        product = spin
        for shift in range(1, self.order):
            product = product * spin.roll(-shift, -1)
        return (coupling * product + field * spin).mean(-1)

    def terminated(self, state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0], dtype=torch.bool)

    def reference(self) -> tuple[float, str]:
        generator = torch.Generator().manual_seed(0)
        state = self.initial(torch.rand(4096, self.n_initial_noise, generator=generator))
        spins = torch.cartesian_prod(*[torch.eye(2)[0]] * len(self.nvec))  # (1024, n) of 0 and 1
        one_hot = torch.stack((1 - spins, spins), -1).flatten(-2).unsqueeze(1)  # (1024, 1, 20)
        best = self.reward(state, one_hot, state).amax(0)
        return float(best.mean()), "exact: all 1,024 settings"


register_on_device("gumbelrl/SpinRing-v0", "benchmarks.critic_forms:SpinRing", 1)


def make_agent(job: dict[str, Any]) -> Any:
    """The agent of a job, on its task."""
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.envs import make_vec_env

    id, kwargs, _ = TASKS[job["task"]]
    return GumbelSAC(
        "MlpPolicy",
        make_vec_env(f"gumbelrl/{id}", 8, seed=job["seed"], kwargs=kwargs),
        learning_rate=1e-3,
        batch_size=256,
        polyak=0.005,
        gradient_steps=4,
        gamma=0.95,
        estimator=job["estimator"],
        policy_kwargs={"net_arch": [128, 128], "critic": job["critic"]},
        seed=job["seed"],
        device="cpu",
    )


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job: adds its score, its cosine and the processor time of an update."""
    id, kwargs, _ = TASKS[job["task"]]
    agent = make_agent(job)
    began = time.process_time()
    agent.learn(job["budget"], log_interval=None)
    seconds = time.process_time() - began
    score = make_scorer(id, kwargs)(evaluate(agent, id, kwargs)[0])
    ms = 1e3 * seconds / agent._n_updates
    return {**job, "score": score, "cosine": cosine(agent), "ms": ms}


def cosine(agent: Any) -> float:
    """Between the mean gradients of the agent's estimator and of local expectation."""
    from gumbelrl.agents.critics import CriticObjective
    from gumbelrl.gumbel.diagnostics import gradient_report

    generator = torch.Generator().manual_seed(0)
    policy, obs = agent.policy, agent.replay_buffer.sample(16, generator).obs
    embedding = policy.critic.embed(policy.critic_features(obs)).detach()
    objective = CriticObjective(policy.critic, embedding)
    dist = policy.dist(obs)
    report = gradient_report(agent.estimator, dist, objective, n=32, generator=generator)
    return report.cosine


def jobs() -> list[dict[str, Any]]:
    """Everything the tables need, the rows that matter most first, seed by seed."""
    return [
        {
            "task": task,
            "critic": critic,
            "estimator": estimator,
            "seed": seed,
            "budget": TASKS[task][2],
        }
        for some in (RUNS[:4], RUNS[4:])
        for seed in range(SEEDS)
        for task in TASKS
        for critic, estimator in some
        # 160 forwards an update: fifty times the time of the others.
        if (estimator, TASKS[task][1].get("n_factors")) != ("local_expectation", 32)
    ]


def key(job: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two runs the same run."""
    return tuple(job[name] for name in ("task", "critic", "estimator", "seed", "budget"))


def tables(runs: list[dict[str, Any]]) -> str:
    """A row per task and estimator, the two critics side by side."""
    estimators = list(dict.fromkeys(estimator for _, estimator in RUNS))
    cells = f"{'score':>6s} {'(min to max)':>15s} {'seeds':>5s} {'cosine':>6s}"
    lines = [
        f"{'':45s}{'action_in':>35s}   {'multilinear':>35s}",
        f"{'task, factors x categories':27s} {'estimator':17s}{cells}   {cells}"
        f"{'ms an update':>15s}",
    ]
    for task in TASKS:
        for estimator in estimators:
            row, times = f"{task:27s} {estimator:17s}", []
            for critic in ("action_in", "multilinear"):
                name = estimator
                if (critic, name) == ("multilinear", "local_expectation"):
                    name = "straight_through"
                chosen = [r for r in runs if key(r)[:3] == (task, critic, name)]
                if not chosen:
                    row += f"{'-':>6s}{'':32s}"
                    times.append("-")
                    continue
                scores = [r["score"] for r in chosen]
                span = f"({min(scores):.2f} to {max(scores):.2f})"
                alignment = sum(r["cosine"] for r in chosen) / len(chosen)
                row += f"{sum(scores) / len(scores):6.2f} {span:>15s} {len(chosen):5d} "
                row += f"{alignment:6.2f}   "
                times.append(f"{sorted(r['ms'] for r in chosen)[len(chosen) // 2]:.1f}")
            if times != ["-", "-"]:
                lines.append(f"{row}{' / '.join(times):>12s}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, store each run as it ends, print and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start none later")
    parser.add_argument("--only", default="", help="runs whose description contains this")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(STORE.read_text()) if STORE.exists() else []
    done = {key(r) for r in runs}
    began = time.monotonic()
    for job in jobs():
        if options.tables or time.monotonic() - began > 60 * options.minutes:
            break
        described = f"{job['task']}, {job['critic']}, {job['estimator']}, seed {job['seed']}"
        if key(job) in done or options.only not in described:
            continue
        runs.append(run(job))
        STORE.write_text(json.dumps(runs, indent=0))
        print(runs[-1], flush=True)
    wanted = {key(job) for job in jobs()}
    runs = [r for r in runs if key(r) in wanted]
    steps = "\n".join(f"{task}: {steps:,} environment steps" for task, (*_, steps) in TASKS.items())
    note = (
        f"Rows without a finished run are left out.\n{steps}\nProcessor time of an update, "
        f"collection included; {platform.machine()}, {os.cpu_count()} cores, no GPU, one thread"
    )
    text = f"$ python -m benchmarks.critic_forms\n{tables(runs)}\n{note}\n"
    print(f"\n{text}")
    (RESULTS / "critic_forms.txt").write_text(text)


if __name__ == "__main__":
    main()
