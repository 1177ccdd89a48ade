"""Running statistics of Stable-Baselines3's `VecNormalize`, as arrays that a file can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize


def read_statistics(env: VecNormalize) -> dict[str, np.ndarray]:
    """Mean, variance (float64, the shape of what is normalised) and count of everything followed:
    `obs/mean`, of dict observations `obs/<key>/mean`, and `return/mean`, ..."""
    return {
        f"{name}/{field}": np.array(getattr(running, field), dtype=np.float64)
        for name, running in _running(env)
        for field in ("mean", "var", "count")
    }


def write_statistics(env: VecNormalize, statistics: Mapping[str, np.ndarray]) -> None:
    """Go on from what `read_statistics` returned.

    Raises:
        ValueError: something is missing, or of another shape.
    """
    for name, running in _running(env):
        for field in ("mean", "var", "count"):
            array = statistics.get(f"{name}/{field}")
            shape = np.shape(getattr(running, field))
            if array is None or array.shape != shape:
                stored = "there is none" if array is None else f"it has shape {array.shape}"
                raise ValueError(
                    f"statistics of {name}/{field} must have shape {shape}, but {stored}; they are "
                    "of another environment or of other normalize_* settings"
                )
            setattr(running, field, float(array) if field == "count" else array.copy())


def freeze_statistics(env: VecEnv, statistics: Mapping[str, np.ndarray]) -> None:
    """Make an environment evaluate: it normalises observations by these and follows nothing, and
    its rewards are the raw ones. One that does not normalise is left as it is."""
    normalize = unwrap_vec_normalize(env)
    if normalize is not None:
        write_statistics(normalize, statistics)
        normalize.training = False
        normalize.norm_reward = False


def _running(env: VecNormalize) -> Iterator[tuple[str, RunningMeanStd]]:
    if env.norm_obs:
        if isinstance(env.obs_rms, dict):
            yield from ((f"obs/{key}", running) for key, running in env.obs_rms.items())
        else:
            yield "obs", env.obs_rms
    yield "return", env.ret_rms
