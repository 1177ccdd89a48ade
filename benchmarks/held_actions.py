"""How often random actions alone reach the goal, by how long each is held.

    python -m benchmarks.held_actions

GumbelSAC's `uniform_hold` against ε-greedy's independent draws, before anything is learned: the
share of episodes of random actions that reach the goal within the time limit, where every reward is
−1 until then, so that nothing can be learned before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gumbelrl.agents.exploration import HeldActions
from gumbelrl.envs import make_driver
from gumbelrl.gumbel import FactoredCategorical

RESULTS = Path(__file__).parent / "results"
TASKS = ("Acrobot-v1", "MountainCar-v0")
HOLDS = (1, 2, 3, 5, 8, 12, 20, 40)  # mean number of steps
EPISODES = 4000


def share_that_reaches(task: str, hold: float, seed: int = 0) -> float:
    """Of `EPISODES` episodes of uniformly random actions, each held for `hold` steps on average."""
    driver = make_driver(task, EPISODES, seed=seed)
    driver.reset()
    (k,) = driver.env.nvec
    uniform = FactoredCategorical(torch.zeros(EPISODES, k))
    actions = HeldActions(EPISODES, 1, hold)
    generator = torch.Generator().manual_seed(seed)
    reached = torch.zeros(EPISODES, dtype=torch.bool)
    for _ in range(driver.max_episode_steps):
        step = driver.step(actions.choose(uniform, 1.0, generator))
        reached |= step.terminated
        actions.end(step.terminated)
    return reached.float().mean().item()


def main() -> None:
    """Print the table and keep it."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines = [f"{'steps held, on average':24s}" + "".join(f"{hold:>8d}" for hold in HOLDS)]
    for task in TASKS:
        shares = (share_that_reaches(task, hold) for hold in HOLDS)
        lines.append(f"{task:24s}" + "".join(f"{share:>8.2%}" for share in shares))
    lines.append(f"share of {EPISODES:,} episodes of random actions that reach the goal")
    text = "\n".join(lines)
    print(text)
    (RESULTS / "held_actions.txt").write_text(f"$ python -m benchmarks.held_actions\n{text}\n")


if __name__ == "__main__":
    main()
