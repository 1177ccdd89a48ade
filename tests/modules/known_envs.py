"""Environments small enough that the right answer is known. Importing registers their ids."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SPACES = {
    "discrete": spaces.Discrete(4),
    "discrete_start": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}


class Identity(gym.Env[np.ndarray, Any]):
    """The observation names an action; the reward is the share of it that was taken. 20 steps."""

    def __init__(self, action_space: str = "discrete", length: int = 20) -> None:
        self.action_space = SPACES[action_space]
        self.length = length
        self.observation_space = spaces.Box(0.0, 1.0, (spaces.flatdim(self.action_space),))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        self.wanted = self.action_space.sample()
        return np.asarray(spaces.flatten(self.action_space, self.wanted), np.float32)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = float(np.mean(np.asarray(action) == np.asarray(self.wanted)))
        self.t += 1
        return self._observe(), reward, self.t == self.length, False, {}


class OneState(gym.Env[np.ndarray, Any]):
    """One state, reward 1 a step, every step the last: terminated or truncated as asked."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, truncate: bool) -> None:
        self.truncate = truncate

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.ones(1, np.float32), 1.0, not self.truncate, self.truncate, {}


class Broken(gym.Env[np.ndarray, Any]):
    """Turns NaN or infinite at step `at`, in its reward or its observation's second entry."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, field: str = "reward", value: float = float("nan"), at: int = 30) -> None:
        self.field, self.value, self.at = field, value, at
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        broken = self.t == self.at
        obs = np.zeros(2, np.float32)
        if broken and self.field == "observation":
            obs[1] = self.value
        reward = self.value if broken and self.field == "reward" else 0.0
        return obs, reward, self.t % 10 == 0, False, {}


gym.register("Identity-v0", Identity)
gym.register("OneState-v0", OneState)
gym.register("Broken-v0", Broken)
