"""Finding the differentiable environment behind what a user gave.

Environments are recognised by what they offer, not by their class, because agents and
environments do not import each other: an on-device environment's vector forms carry `driver`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv

MODULE, NAMESPACE = "gumbelrl.envs:", "gumbelrl/"  # Gymnasium imports what stands before a colon


def differentiable_ids() -> list[str]:
    """Registered ids that can be differentiated."""
    return sorted(id for id in gymnasium.registry if id.startswith(NAMESPACE))


def as_differentiable_env(env: Any) -> VecEnv:
    """A Stable-Baselines3 `VecEnv` with a `driver`, from one or from an id.

    Raises:
        ValueError: an environment without a driver; names those that have one.
    """
    if isinstance(env, str):
        id = env if env.startswith(NAMESPACE) else NAMESPACE + env
        try:
            return gymnasium.make_vec(MODULE + id, num_envs=1).unwrapped.as_vec_env()  # type: ignore[attr-defined]
        except gymnasium.error.UnregisteredEnv:
            pass  # the message below names what there is
    elif isinstance(env, VecEnv) and find_driver(env) is not None:
        return env
    elif hasattr(getattr(env, "unwrapped", None), "as_vec_env"):
        return env.unwrapped.as_vec_env()
    raise ValueError(
        f"GumbelSHAC backpropagates through the environment, and {env} cannot be differentiated. "
        f"These can: {', '.join(differentiable_ids())}. GumbelSAC trains on any environment"
    )


def find_driver(env: VecEnv) -> Any:
    """The driver behind a `VecEnv` and its wrappers, or None."""
    inner: Any = env
    while inner is not None:
        if hasattr(inner, "driver"):
            return inner.driver
        inner = getattr(inner, "venv", None)
    return None


def new_driver(env: VecEnv, shape: tuple[int, ...], device: torch.device, seed: int) -> Any:
    """A driver of the same task with batch axes `shape`, independent of the given one's state."""
    driver = find_driver(env)
    return type(driver)(
        driver.env, shape, device=device, seed=seed, max_episode_steps=driver.max_episode_steps
    )
