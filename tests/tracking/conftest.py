"""A one-step environment that needs no rendering and no extra, and outputs that remember."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class Corridor(gym.Env[np.ndarray, int]):
    """Episodes of a drawn length of 3 to 9 steps; the reward of a step is the action taken."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._observation(), float(action), self.left == 0, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)


class Envs:
    """`make_env` that counts what it made and what was closed."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.closed = 0

    def __call__(self, n_envs: int, seed: int) -> VecEnv:
        self.made.append((n_envs, seed))
        env = DummyVecEnv([lambda: Monitor(Corridor()) for _ in range(n_envs)])
        env.seed(seed)
        close = env.close

        def counted() -> None:
            self.closed += 1
            close()

        env.close = counted  # type: ignore[method-assign]
        return env


@pytest.fixture
def envs() -> Envs:
    return Envs()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """No W&B key, mode or netrc of whoever runs the tests, and one thread."""
    torch.set_num_threads(1)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
