"""Mean returns by simulation: of any policy of the state, and of uniformly random actions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gumbelrl.envs.driver import BatchedDriver
from gumbelrl.envs.on_device import OnDeviceEnv
from torch import Tensor

StatePolicy = Callable[[Tensor], Tensor]
"""state [N, S] -> action indices, int64 [N, M]."""


@torch.no_grad()
def mean_return(
    task: OnDeviceEnv,
    policy: StatePolicy,
    *,
    n_episodes: int = 4096,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Mean return of the first episode of `n_episodes` environments.

    Raises:
        ValueError: a task without a time limit.
    """
    if task.max_episode_steps is None:
        raise ValueError(f"{type(task).__name__} has no time limit, so its episodes may not end")
    driver = BatchedDriver(task, n_episodes, seed=seed, dtype=dtype)
    returns = torch.zeros(n_episodes, dtype=dtype)
    running = torch.ones(n_episodes, dtype=torch.bool)
    for _ in range(task.max_episode_steps):
        step = driver.step(policy(driver.state))
        returns += torch.where(running, step.reward, 0.0)
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    return float(returns.mean())


def random_return(task: OnDeviceEnv, *, n_episodes: int = 4096, seed: int = 0) -> float:
    """Mean return of uniformly random actions: the 0 of a score whose 1 is `task.reference()`."""
    generator = torch.Generator().manual_seed(seed + 1)

    def policy(state: Tensor) -> Tensor:
        draws = [torch.randint(k, state.shape[:1], generator=generator) for k in task.nvec]
        return torch.stack(draws, -1)  # (N, M)

    return mean_return(task, policy, n_episodes=n_episodes, seed=seed)
