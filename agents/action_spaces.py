"""Discrete, MultiDiscrete and MultiBinary actions as M categorical factors, and back."""

from __future__ import annotations

import math

import numpy as np
from gumbelrl.gumbel.choices import DoesNotApply
from gymnasium import spaces


class FactoredActions:
    """An action space seen as M categorical factors of K_1..K_M categories.

    | space | M | nvec | `start` |
    |---|---|---|---|
    | `Discrete(n, start=s)` | 1 | (n,) | s |
    | `MultiDiscrete(nvec)` | nvec.size | nvec, flattened | its own, flattened |
    | `MultiBinary(n)` | n | (2, ..., 2) | 0 |

    Factor indices count from 0 whatever the space's `start`.

    Raises:
        DoesNotApply: for any other space; the message names the agents that serve it.
    """

    def __init__(self, space: spaces.Space) -> None:
        if isinstance(space, spaces.Discrete):
            self.nvec: tuple[int, ...] = (int(space.n),)
            self.start = np.array([int(space.start)], dtype=np.int64)  # (M,)
        elif isinstance(space, spaces.MultiDiscrete):
            self.nvec = tuple(int(k) for k in space.nvec.reshape(-1))
            self.start = np.asarray(space.start, dtype=np.int64).reshape(-1)
        elif isinstance(space, spaces.MultiBinary):
            self.nvec = (2,) * math.prod(space.shape)
            self.start = np.zeros(len(self.nvec), dtype=np.int64)
        elif isinstance(space, spaces.Box):
            raise DoesNotApply(
                f"this agent needs a discrete action space, got the continuous {space}. Use "
                "Stable-Baselines3's SAC, TD3 or PPO for it, or bin each dimension with "
                "gymnasium.wrappers.TransformAction into a MultiDiscrete space"
            )
        else:
            raise DoesNotApply(
                f"action space must be Discrete, MultiDiscrete or MultiBinary, got {space}. "
                "Flatten nested actions into one MultiDiscrete space with a wrapper"
            )
        self.shape = space.shape
        self.dtype = space.dtype

    @property
    def n_factors(self) -> int:
        """M, the number of categorical factors."""
        return len(self.nvec)

    @property
    def n_categories(self) -> int:
        """ΣK, the width of the concatenated one-hot."""
        return sum(self.nvec)

    @property
    def offsets(self) -> np.ndarray:
        """Where each factor's categories begin in the concatenated one-hot, int64 [M]."""
        return np.concatenate([[0], np.cumsum(self.nvec)[:-1]])

    @property
    def max_entropy(self) -> float:
        """Entropy of the uniform policy in nats, Σ_m log K_m."""
        return sum(math.log(k) for k in self.nvec)

    def to_indices(self, actions: np.ndarray) -> np.ndarray:
        """Environment actions [N, *shape] -> factor indices int64 [N, M]."""
        return np.asarray(actions, dtype=np.int64).reshape(-1, self.n_factors) - self.start

    def to_actions(self, indices: np.ndarray) -> np.ndarray:
        """Factor indices [N, M] -> environment actions [N, *shape] in the space's dtype."""
        return (indices + self.start).reshape(-1, *(self.shape or ())).astype(self.dtype)
