"""Environments small enough that the right answer is known. Importing registers their ids."""

import os
import signal
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
    """The observation names an action; the reward is the share of it that was taken. 20 steps.

    Args:
        action_space: a name in `SPACES`.
        length: steps of an episode.
        form: of the observation: the action as a "vector" of its one-hots; for "discrete" actions
            also a "discrete" one, an "image" with one bright row, a "grid" with one full channel,
            or a "dict" with the vector in two halves.
    """

    def __init__(
        self, action_space: str = "discrete", length: int = 20, form: str = "vector"
    ) -> None:
        self.action_space = SPACES[action_space]
        self.length, self.form = length, form
        n = spaces.flatdim(self.action_space)
        half = spaces.Box(0.0, 1.0, (n // 2,))
        self.observation_space = {
            "vector": spaces.Box(0.0, 1.0, (n,)),
            "discrete": spaces.Discrete(n),
            "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
            "grid": spaces.Box(0, 1, (5, 5, n), bool),
            "dict": spaces.Dict({"left": half, "right": half}),
        }[form]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        self.wanted = self.action_space.sample()
        vector = np.asarray(spaces.flatten(self.action_space, self.wanted), np.float32)
        if self.form == "discrete":
            return int(self.wanted)
        if self.form == "image":
            image = np.zeros((36, 36, 3), np.uint8)
            image[9 * self.wanted : 9 * self.wanted + 9] = 255
            return image
        if self.form == "grid":
            return np.broadcast_to(vector > 0, (5, 5, len(vector))).copy()
        if self.form == "dict":
            half = len(vector) // 2
            return {"left": vector[:half], "right": vector[half:]}
        return vector

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = float(np.mean(np.asarray(action) == np.asarray(self.wanted)))
        self.t += 1
        return self._observe(), reward, self.t == self.length, False, {}


class OneState(gym.Env[np.ndarray, Any]):
    """One state, reward 1 a step, `length` steps: terminated or truncated as asked."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, truncate: bool, length: int = 1) -> None:
        self.truncate, self.length = truncate, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t == self.length
        return np.ones(1, np.float32), 1.0, over and not self.truncate, over and self.truncate, {}


class Remembering(gym.Env[np.ndarray, Any]):
    """Remembers over resets how many episodes and steps it has seen, and draws from NumPy's global
    stream; what it has seen decides observations, rewards and lengths of episodes."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.episodes = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episodes += 1
        self.left = 3 + (self.episodes * 7 + self.steps) % 9
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        drawn = np.random.uniform()  # noqa: NPY002
        return np.array([self.episodes / 10, np.sin(self.steps), drawn], np.float32)

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.left -= 1
        reward = float((self.episodes + int(action)) % 3)
        return self._observe(), reward, self.left == 0, False, {}


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


class Swallowing(OneState):
    """Interrupts the process at step `at` of its life, and catches what comes of it."""

    def __init__(self, at: int) -> None:
        super().__init__(truncate=False, length=10)
        self.at = at

    def step(self, action: Any) -> Any:
        self.at -= 1
        try:
            if self.at == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:  # as some environments do around a simulator
            pass
        return super().step(action)


gym.register("Remembering-v0", Remembering)
gym.register("Swallowing-v0", Swallowing)
gym.register("Broken-v0", Broken)
