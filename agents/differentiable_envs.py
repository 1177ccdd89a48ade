"""Finding the differentiable environment behind what a user gave.

Environments are recognised by what they offer, not by their class, because agents and
environments do not import each other: an on-device environment's vector forms carry `driver`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import torch
from gumbelrl.gumbel.choices import DoesNotApply
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor

# Wrappers that change nothing of what an agent learns from.
TRANSPARENT = (VecMonitor, VecCheckNan)
HARMLESS = ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "Monitor")

MODULE, NAMESPACE = "gumbelrl.envs:", "gumbelrl/"  # Gymnasium imports what stands before a colon


def differentiable_ids() -> list[str]:
    """Registered ids that can be differentiated."""
    return sorted(id for id in gymnasium.registry if id.startswith(NAMESPACE))


def as_differentiable_env(env: Any) -> VecEnv:
    """A Stable-Baselines3 `VecEnv` with a `driver`, from one, from a single one, or from an id.

    Raises:
        ValueError: an environment without a driver (names those that have one), or wrappers that
            would be left out, because the agent steps the tensors itself.
    """
    if isinstance(env, str):
        id = env if "/" in env else NAMESPACE + env
        try:
            vector = gymnasium.make_vec(MODULE + id, num_envs=1).unwrapped
        except gymnasium.error.Error:
            pass  # the message below names what there is
        else:
            if hasattr(vector, "as_vec_env"):
                return vector.as_vec_env()
    elif isinstance(env, VecEnv):
        wrappers = [type(w).__name__ for w in _layers(env) if not isinstance(w, TRANSPARENT)]
        if find_driver(env) is not None:
            _refuse_wrappers(wrappers[:-1])
            return env
    elif isinstance(env, gymnasium.Env) and hasattr(env.unwrapped, "as_vec_env"):
        inner, wrappers = env, []
        while isinstance(inner, gymnasium.Wrapper):
            wrappers.append(type(inner).__name__)
            inner = inner.env
        _refuse_wrappers([w for w in wrappers if w not in HARMLESS])
        vec_env = env.unwrapped.as_vec_env()
        if env.spec is not None and env.spec.max_episode_steps is not None:
            vec_env.driver.max_episode_steps = env.spec.max_episode_steps
        return vec_env
    name = getattr(getattr(env, "spec", None), "id", None) or _inner_id(env) or env
    if name in differentiable_ids():  # the environment itself could be
        raise DoesNotApply(
            f"GumbelSHAC steps the tensors of {name} itself, so wrappers, worker processes "
            "(vectorization=async) and rendering would be left out; give it without them"
        )
    raise DoesNotApply(
        f"GumbelSHAC backpropagates through the environment, and {name} cannot be differentiated. "
        f"These can: {', '.join(differentiable_ids())}. GumbelSAC trains on any environment"
    )


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """A `VecEnv` and what it wraps, outermost first."""
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def _refuse_wrappers(names: list[str]) -> None:
    if names:
        raise DoesNotApply(
            f"GumbelSHAC steps the environment's tensors itself, so {', '.join(names)} around it "
            "would be left out; give the environment without"
        )


def _inner_id(env: Any) -> str | None:
    """The id of the Gymnasium environments behind a `VecEnv`, where it can be told."""
    if not isinstance(env, VecEnv):
        return None
    spec = env.get_attr("spec")[0]
    return spec.id if spec is not None else None


def find_driver(env: VecEnv) -> Any:
    """The driver behind a `VecEnv` and its wrappers, or None."""
    *_, inner = _layers(env)
    return getattr(inner, "driver", None)


def new_driver(env: VecEnv, shape: tuple[int, ...], device: torch.device, seed: int) -> Any:
    """A driver of the same task with batch axes `shape`, independent of the given one's state."""
    driver = find_driver(env)
    return type(driver)(
        driver.env,
        shape,
        device=device,
        seed=seed,
        max_episode_steps=driver.max_episode_steps,
        validate=torch.device(device).type == "cpu",  # elsewhere the look would wait for the device
    )
