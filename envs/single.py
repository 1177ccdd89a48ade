"""An on-device environment as one ordinary Gymnasium environment: NumPy in and out."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gumbelrl.envs.driver import BatchedDriver, NonFiniteError
from gumbelrl.envs.on_device import OnDeviceEnv, check_task
from gumbelrl.envs.registration import make_task


class SingleEnv(gymnasium.Env):
    """One environment on the CPU, for evaluation and for libraries that know Gymnasium only.

    Noise comes from Gymnasium's `np_random`. The time limit is `gymnasium.make`'s.

    Args:
        task: an `OnDeviceEnv`, or the id of one.
        render_mode: None; nothing is drawn.
        kwargs: of the task's constructor, where `task` is an id.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's convention
    render_mode = None

    def __init__(
        self, task: OnDeviceEnv | str, render_mode: str | None = None, **kwargs: Any
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}; nothing is drawn")
        self.task = make_task(task, **kwargs) if isinstance(task, str) else check_task(task)
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space
        self.state: torch.Tensor | None = None  # (S,)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.task.initial(self._noise(self.task.n_initial_noise))
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            ValueError: an action that is not an index (or indices) in range.
            NonFiniteError: the state became NaN or infinite.
        """
        if self.state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        indices = as_indices(action, self.action_space.shape or ())
        if not self.action_space.contains(indices):
            raise ValueError(f"the action must be in {self.action_space}, got {action!r}")
        one_hot = torch.zeros(sum(self.task.nvec))
        start = 0
        for k, index in zip(self.task.nvec, np.atleast_1d(indices), strict=True):
            one_hot[start + int(index)] = 1.0
            start += k
        with torch.no_grad():
            next_state = self.task.transition(
                self.state, one_hot, self._noise(self.task.n_transition_noise)
            )
            self._steps += 1
            if not math.isfinite(float(next_state.sum())):
                raise NonFiniteError(
                    f"the state became {next_state.tolist()} (environment 0, step {self._steps} "
                    "of its episode); nothing was returned"
                )
            reward = float(self.task.reward(self.state, one_hot, next_state))
            self.state = next_state
            terminated = bool(self.task.terminated(next_state))
        return self._observe(), reward, terminated, False, {}

    def as_vec_env(self, max_episode_steps: int | None = None) -> Any:
        """The same task as a Stable-Baselines3 `VecEnv` of one, with a `driver`.

        Gymnasium keeps a changed time limit in its wrapper: pass `env.spec.max_episode_steps`.
        """
        from gumbelrl.envs.vec_env import OnDeviceVecEnv

        return OnDeviceVecEnv(
            BatchedDriver(self.task, 1, max_episode_steps=max_episode_steps, validate=True)
        )

    def _noise(self, n: int) -> torch.Tensor:
        return torch.from_numpy(self.np_random.random(n, dtype=np.float32))

    def _observe(self) -> np.ndarray:
        assert self.state is not None
        with torch.no_grad():
            return self.task.observe(self.state).numpy()


def as_indices(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`actions` as an array; ValueError unless they are integers of this shape."""
    if isinstance(actions, torch.Tensor):
        actions = actions.numpy(force=True)  # a soft action may carry a graph: told below
    actions = np.asarray(actions)
    if actions.dtype.kind not in "iu":
        raise ValueError(
            f"this environment wants action indices (integers), got {actions.dtype} of shape "
            f"{actions.shape}; a soft or one-hot action goes to BatchedDriver.step"
        )
    if actions.shape != shape:
        raise ValueError(f"actions must have shape {shape}, got {actions.shape}")
    return actions
