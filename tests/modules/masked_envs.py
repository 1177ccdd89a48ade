"""Environments with action masks, of both conventions. Importing registers their ids."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from known_envs import SPACES


class RandomMask(gym.Env[np.ndarray, Any]):
    """A new random mask at every step, and an AssertionError when it is not heeded.

    Half of the rows of a mask allow a single category. Episodes end after `length` steps, every
    other one by truncation. The observation is the mask, so that a test can tell which mask a
    stored transition must have. The reward is the share of factors at their first allowed category.

    Args:
        action_space: a name in `SPACES`.
        convention: "method" (sb3-contrib) or "info" (Gymnasium's Taxi).
    """

    def __init__(
        self, action_space: str = "discrete", convention: str = "method", length: int = 7
    ) -> None:
        self.action_space = SPACES[action_space]
        self.convention, self.length = convention, length
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            self.nvec, self.start = [int(space.n)], int(space.start)
        elif isinstance(space, spaces.MultiBinary):
            self.nvec, self.start = [2] * int(space.n), 0
        else:
            self.nvec, self.start = [int(k) for k in space.nvec], 0
        self.observation_space = spaces.Box(0.0, 1.0, (sum(self.nvec),))
        self.episodes = self.steps = 0
        if convention == "method":
            self.action_masks = lambda: self.mask  # an attribute, as `hasattr` asks for it

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        parts = []
        for k in self.nvec:
            part = self.np_random.random(k) < 0.5
            if self.np_random.random() < 0.5 or not part.any():
                part = np.zeros(k, bool)
                part[self.np_random.integers(k)] = True
            parts.append(part)
        self.mask = np.concatenate(parts)
        info = {"action_mask": self.mask.astype(np.int8)} if self.convention == "info" else {}
        return self.mask.astype(np.float32), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episodes = 0, self.episodes + 1
        return self._draw()

    def step(self, action: Any) -> Any:
        indices = np.ravel(action) - self.start
        parts = np.split(self.mask, np.cumsum(self.nvec)[:-1])
        for index, part in zip(indices, parts, strict=True):
            assert part[index], f"masked action {action} with {self.mask.astype(int)}"
        reward = float(
            np.mean([index == part.argmax() for index, part in zip(indices, parts, strict=True)])
        )
        self.t, self.steps = self.t + 1, self.steps + 1
        over = self.t == self.length
        obs, info = self._draw()
        return obs, reward, over and self.episodes % 2 == 0, over and self.episodes % 2 == 1, info


class Odd(gym.Env[np.ndarray, Any]):
    """Masks that are wrong in the way `fault` names: "empty", "short", "late"."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(3)

    def __init__(self, fault: str) -> None:
        self.fault, self.t = fault, 0

    def _info(self) -> dict[str, Any]:
        mask = {"empty": [0, 0, 0], "short": [1, 1], "late": [1, 1, 1]}[self.fault]
        wrong = self.t == 5 or self.fault == "late"
        if self.fault == "late" and self.t < 5:
            return {}
        return {"action_mask": np.array(mask if wrong else [1, 0, 1], np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), self._info()

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, False, self._info()


class FactorMasks(gym.Env[np.ndarray, Any]):
    """Always the same mask of two factors, episodes of 3 steps that are truncated.

    The mask is a tuple of one array per factor; with `in_place` it is one array, in which a reset
    allows everything, and a step writes the mask.

    Args:
        convention: "method" or "info", as in `RandomMask`.
        in_place: see above.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, convention: str = "method", in_place: bool = False) -> None:
        self.convention, self.in_place = convention, in_place
        self.mask = np.ones(5, np.int8)
        if convention == "method":
            self.action_masks = self._masks

    def _masks(self) -> Any:
        return self.mask if self.in_place else (np.array([1, 0]), np.array([0, 1, 1]))

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._masks()} if self.convention == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        self.mask[:] = 1
        return np.zeros(1, np.float32), self._info()

    def step(self, action: Any) -> Any:
        self.t += 1
        self.mask[:] = [1, 0, 0, 1, 1]
        return np.zeros(1, np.float32), 0.0, False, self.t == 3, self._info()


gym.register("RandomMask-v0", RandomMask)
gym.register("FactorMasks-v0", FactorMasks)
gym.register("OddMask-v0", Odd)
