"""Environments closed and made anew behind the agent that trains in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from gumbelrl.envs.make import MakeEnvError
from gumbelrl.envs.normalization import read_statistics, write_statistics
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize


def rebuild(env: VecEnv, make: Callable[[], VecEnv]) -> None:
    """Close environments and put new ones in their place; `env` stays the same object.

    Whatever environments and wrappers remember across resets is gone, but for the running
    statistics of a `VecNormalize`, which are carried over: they are a part of what is trained.

    Args:
        env: what `make` made earlier.
        make: makes the new ones.

    Raises:
        MakeEnvError: they cannot be made, or have other spaces.
    """
    normalize = unwrap_vec_normalize(env)
    statistics = None if normalize is None else read_statistics(normalize)
    with contextlib.suppress(Exception):  # nothing more is asked of them
        env.close()
    try:
        new = make()
    except Exception as error:  # whatever a constructor raises
        said = str(error).strip().splitlines()
        raise MakeEnvError(said[0] if said else type(error).__name__) from error
    for name in ("num_envs", "observation_space", "action_space"):
        was, now = getattr(env, name), getattr(new, name)
        if was != now:
            new.close()
            raise MakeEnvError(f"made anew, the environments have {name} {now}; it was {was}")
    # The agent, its wrappers and the loop that is collecting hold `env` itself, so the new ones
    # move into it.
    env.__class__, env.__dict__ = new.__class__, new.__dict__
    normalize = unwrap_vec_normalize(env)
    if normalize is not None and statistics is not None:
        write_statistics(normalize, statistics)
