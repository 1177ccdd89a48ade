"""CartPole-v1 to a mean return of 475: our agents beside Stable-Baselines3's PPO.

    python -m benchmarks.cartpole              ten seeds each, the table and the learning curves
    python -m benchmarks.cartpole --agents rejax_ppo      ten seeds, put beside the stored ones
    python -m benchmarks.cartpole --seeds 3 --agents gumbel_sac,ppo      printed, not stored
    python -m benchmarks.cartpole --plot       table and curves again from the stored results

GumbelSHAC trains on the on-device CartPole, which equals Gymnasium's step by step, the others on
Gymnasium's; all are evaluated on Gymnasium's. Every agent is stopped at 50,000 environment steps,
evaluated deterministically every 1,000 steps with 10 episodes, and has reached the threshold when
100 further episodes confirm a mean of 475.
PPO has rl_zoo3's tuned settings, read from its package. rejax's PPO, PureJaxRL's carried on, has
those that rejax publishes for CartPole, trains on gymnax's CartPole and needs `gumbelrl[jax]`.
Seconds are processor time of one thread (what other work takes does not count), training alone:
evaluation, start-up and JAX's compilation apart, the last one told below.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import jax_peers

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "cartpole.png"
ENV, THRESHOLD, BUDGET, EVERY = "CartPole-v1", 475.0, 50_000, 1_000
AGENTS = {
    "gumbel_sac": "GumbelSAC, st_gumbel",
    "gumbel_sac_exact": "GumbelSAC, exact",
    "gumbel_shac": "GumbelSHAC, st_gumbel",
    "gumbel_shac_b2": "GumbelSHAC, β₂ .99",
    "reinforce": "REINFORCE, learned value",
    "ppo": "SB3 PPO, zoo settings",
    "rejax_ppo": "rejax PPO, its settings",
}


def make_agent(name: str, seed: int) -> Any:
    """An agent as its users get it: our defaults, the zoo's settings for PPO."""
    from gumbelrl.agents import REINFORCE, GumbelSAC, GumbelSHAC
    from gumbelrl.envs import make_vec_env

    if name == "rejax_ppo":
        return jax_peers.RejaxPPO(seed)
    if name == "ppo":
        return make_zoo_ppo(seed)
    if name.startswith("gumbel_shac"):
        beta2 = 0.99 if name == "gumbel_shac_b2" else 0.95  # the latter is the default
        return GumbelSHAC("MlpPolicy", ENV, actor_beta2=beta2, seed=seed, device="cpu")
    env = make_vec_env(ENV, seed=seed)
    if name == "reinforce":
        return REINFORCE("MlpPolicy", env, seed=seed, device="cpu")
    estimator = "exact" if name == "gumbel_sac_exact" else "st_gumbel"
    return GumbelSAC("MlpPolicy", env, estimator=estimator, seed=seed, device="cpu")


def make_zoo_ppo(seed: int) -> Any:
    """PPO with rl_zoo3's settings; `lin_x` falls linearly from x to 0 over the budget."""
    import rl_zoo3
    import yaml
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import PPO

    path = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"
    settings = yaml.safe_load(path.read_text())[ENV]
    env = make_vec_env(ENV, settings.pop("n_envs"), seed=seed)
    settings.pop("n_timesteps")
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("lin_"):
            initial = float(value.removeprefix("lin_"))
            settings[key] = lambda remaining, initial=initial: remaining * initial
    return PPO(settings.pop("policy"), env, seed=seed, device="cpu", **settings)


def run(task: tuple[str, int]) -> dict[str, Any]:
    """One seed of one agent, as JSON data."""
    import torch
    from gumbelrl.envs import make_vec_env
    from gumbelrl.tracking import EvaluationCallback
    from stable_baselines3.common.logger import Logger

    torch.set_num_threads(1)
    name, seed = task
    agent = make_agent(name, seed)
    agent.set_logger(Logger(None, []))
    curve: list[tuple[int, float]] = []
    seconds = 0.0  # of training, up to the last evaluation

    class Curve(EvaluationCallback):
        def _evaluate(self, number: int) -> bool:
            nonlocal seconds, resumed
            seconds += time.process_time() - resumed
            go_on = super()._evaluate(number)
            assert self.last is not None
            curve.append((self.num_timesteps, self.last.mean))
            resumed = time.process_time()
            return go_on

    evaluation = Curve(
        lambda n_envs, seed: make_vec_env(ENV, n_envs, seed=seed),
        eval_every=EVERY,
        seed=seed,
        episodes=100,
        stop_at_return=THRESHOLD,
    )
    resumed = time.process_time()
    agent.learn(BUDGET, callback=evaluation, log_interval=None)
    reached = evaluation.reached
    return {
        "agent": name,
        "seed": seed,
        "steps": reached.env_steps if reached else None,
        "seconds": seconds if reached else None,
        "clock": "processor",
        "compile_seconds": getattr(agent, "compile_seconds", 0.0),
        "env_steps": agent.num_timesteps,
        "curve": curve,
    }


def median(values: list[float | None]) -> float | None:
    """Median with runs that never got there counted as later than all others."""
    ordered = statistics.median([float("inf") if v is None else v for v in values])
    return None if ordered == float("inf") else ordered


def table(results: list[dict[str, Any]]) -> str:
    """One row per agent; under them what is to be known of their seconds."""
    notes: list[str] = []
    lines = [f"{'agent':26s} {'reached':>8s} {'median steps':>13s} {'range':>17s} {'median s':>9s}"]
    for name, label in AGENTS.items():
        rows = [r for r in results if r["agent"] == name]
        if not rows:
            continue
        steps = [r["steps"] for r in rows]
        there = [s for s in steps if s is not None]
        middle, seconds = median(steps), median([r["seconds"] for r in rows])
        lines.append(
            f"{label:26s} {len(there):>3d} / {len(rows):<2d} "
            f"{f'{middle:,.0f}' if middle else 'never':>13s} "
            f"{f'{min(there):,} to {max(there):,}' if there else '-':>17s} "
            f"{f'{seconds:.1f}' if seconds else '-':>9s}"
            f"{'' if rows[0].get('clock') == 'processor' else ' *'}"
        )
        compiled = statistics.median(r.get("compile_seconds", 0.0) for r in rows)
        if compiled:
            notes.append(f"{label}: {compiled:.1f} s more to compile, in processor time")
    if not any(r["agent"] == "rejax_ppo" for r in results) and not jax_peers.installed():
        notes.append(f"rejax PPO {jax_peers.NOT_INSTALLED}")
    if any(r.get("clock") != "processor" for r in results):
        notes.append("* wall time, of an earlier run")
    return "\n".join([*lines, *notes])


def plot(results: list[dict[str, Any]]) -> None:
    """Evaluation return against steps: every seed thin, the median thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    grid = np.arange(EVERY, BUDGET + 1, EVERY)
    for index, (name, label) in enumerate(AGENTS.items()):
        rows = [r for r in results if r["agent"] == name]
        if not rows:
            continue
        # A run ends once it holds the threshold; it is drawn on at that level.
        curves = [
            np.interp(grid, *np.array(r["curve"], float).T, right=r["curve"][-1][1]) for r in rows
        ]
        for curve in curves:
            axis.plot(grid, curve, color=f"C{index}", alpha=0.15, linewidth=0.8)
        axis.plot(grid, np.median(curves, 0), color=f"C{index}", linewidth=2.2, label=label)
    axis.axhline(THRESHOLD, color="0.6", linewidth=0.8, linestyle="--")
    axis.set(xlabel="environment steps", ylabel="mean return of 10 episodes", ylim=(0, 510))
    last = max(step for r in results for step, _ in r["curve"])
    axis.set_xlim(0, last + EVERY)
    title = "CartPole-v1, ten seeds: thin lines are runs, which end once they hold 475"
    axis.set_title(title, loc="left", fontsize=10)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g} k" if x else "0")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    print(f"drew {PICTURE.relative_to(PICTURE.parents[1])}")


def show(runs: list[dict[str, Any]], machine: str) -> None:
    """Write the table and the picture."""
    text = f"$ python -m benchmarks.cartpole\n{table(runs)}\n\n{machine}\n"
    (RESULTS / "cartpole.txt").write_text(text)
    plot(runs)


def main() -> None:
    """Run what is asked for, print the table, store everything beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this, less one")
    available = [name for name in AGENTS if name != "rejax_ppo" or jax_peers.installed()]
    parser.add_argument("--agents", help=f"names, with commas: {', '.join(AGENTS)}; else all")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--plot", action="store_true", help="only show the stored results")
    options = parser.parse_args()
    path = RESULTS / "cartpole.json"
    if options.plot:
        stored = json.loads(path.read_text())
        show(stored["runs"], stored["machine"])
        return
    names = options.agents.split(",") if options.agents else available
    unknown = sorted(set(names) - set(AGENTS))
    if unknown or options.seeds < 1:
        parser.error(
            f"agents are {', '.join(AGENTS)} and seeds >= 1, got {unknown or options.seeds}"
        )
    if "rejax_ppo" not in available and "rejax_ppo" in names:
        parser.error(f"rejax {jax_peers.NOT_INSTALLED}")
    tasks = [(name, seed) for name in names for seed in range(options.seeds)]
    began = time.perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:
        results = []
        for result in pool.map(run, tasks):
            results.append(result)
            print(f"{result['agent']} seed {result['seed']}: {result['steps']} steps", flush=True)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU, {options.workers} runs at a time, "
        "one thread each"
    )
    text = table(results)
    print(f"\n{text}\n\n{machine}; {time.perf_counter() - began:.0f} s in all")
    if options.seeds == 10:
        RESULTS.mkdir(exist_ok=True)
        stored = json.loads(path.read_text())["runs"] if path.exists() else []
        runs = [r for r in stored if r["agent"] not in names] + results
        path.write_text(json.dumps({"machine": machine, "runs": runs}))
        show(runs, machine)


if __name__ == "__main__":
    main()
