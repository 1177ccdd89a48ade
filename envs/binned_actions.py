"""Continuous actions as a choice among evenly spaced values."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class BinnedActions(gymnasium.ActionWrapper):
    """Each number of a Box action becomes a choice of K evenly spaced values, the bounds included.

    The action space is MultiDiscrete([K] * M) for M numbers, also where M is 1. With an odd K the
    middle of the interval, often no torque at all, is one of the choices.

    Args:
        env: with a bounded Box action space.
        n_bins: K >= 2.
        multi_binary: make it MultiBinary(M) instead; K must be 2.

    Raises:
        ValueError: another action space, a bound at infinity, or a number of bins out of range.
    """

    def __init__(self, env: gymnasium.Env, n_bins: int, multi_binary: bool = False) -> None:
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, spaces.Box) or not box.is_bounded():
            raise ValueError(f"BinnedActions needs a bounded Box action space, got {box}")
        if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 2:
            raise ValueError(f"n_bins must be an integer >= 2, got {n_bins!r}")
        if multi_binary and n_bins != 2:
            raise ValueError(f"n_bins must be 2 with multi_binary, got {n_bins}")
        self.values = np.linspace(box.low.ravel(), box.high.ravel(), n_bins, axis=1)  # (M, K)
        self.values = self.values.astype(box.dtype)
        n_factors = len(self.values)
        self.action_space = (
            spaces.MultiBinary(n_factors)
            if multi_binary
            else spaces.MultiDiscrete([n_bins] * n_factors)
        )
        self._shape = box.shape

    def action(self, action: np.ndarray) -> np.ndarray:
        """Indices [M] -> the Box action they stand for."""
        chosen = np.asarray(action, dtype=np.int64)  # PPO's binary actions are floats
        return self.values[np.arange(len(self.values)), chosen].reshape(self._shape)
