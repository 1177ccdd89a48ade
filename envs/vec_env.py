"""An on-device environment as a Stable-Baselines3 `VecEnv`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gumbelrl.envs.driver import BatchedDriver
from gumbelrl.envs.single import as_indices
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv


class OnDeviceVecEnv(VecEnv):
    """The N environments of a `BatchedDriver`, for Stable-Baselines3's algorithms.

    Infos carry what `DummyVecEnv` and `Monitor` put there, at the step where an episode ends:
    `terminal_observation`, `TimeLimit.truncated` and `episode` (r: return, l: length in steps,
    t: seconds since the start). On the CPU observations, rewards and dones share memory with the
    driver's tensors: read, don't write.

    `seed(s)` seeds the one generator of all N environments at the next reset.

    Args:
        driver: with one batch axis.
    """

    def __init__(self, driver: BatchedDriver) -> None:
        if len(driver.batch_shape) != 1:
            raise ValueError(
                f"a VecEnv needs a driver with one batch axis, got {driver.batch_shape}"
            )
        self.driver = driver
        super().__init__(
            driver.batch_shape[0], driver.env.observation_space, driver.env.action_space
        )
        self._action_shape = (self.num_envs, *(self.action_space.shape or ()))
        self._actions = driver.elapsed  # replaced by step_async
        self._start = time.time()
        self._returns = np.zeros(self.num_envs)

    def reset(self) -> np.ndarray:
        obs = self.driver.reset(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        return obs.numpy(force=True)

    def step_async(self, actions: np.ndarray) -> None:
        """Take action indices, [N] or [N, M]; ValueError for a soft action or a wrong shape."""
        actions = as_indices(actions, self._action_shape)
        indices = torch.from_numpy(actions.astype(np.int64, copy=False))
        self._actions = indices.to(self.driver.device)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        lengths = self.driver.elapsed  # before this step
        with torch.no_grad():
            step = self.driver.step(self._actions)
        rewards = step.reward.numpy(force=True)
        dones = (step.terminated | step.truncated).numpy(force=True)
        self._returns += rewards
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            seconds = round(time.time() - self._start, 6)
            final_obs = step.final_obs.numpy(force=True)
            terminated = step.terminated.numpy(force=True)
            for i in np.flatnonzero(dones):
                infos[i] = {
                    "terminal_observation": final_obs[i],
                    "TimeLimit.truncated": not terminated[i],
                    "episode": {
                        "r": round(float(self._returns[i]), 6),
                        "l": int(lengths[i]) + 1,
                        "t": seconds,
                    },
                }
            self._returns[dones] = 0
        return step.obs.numpy(force=True), rewards, dones, infos

    def as_vec_env(self) -> OnDeviceVecEnv:
        return self

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        value = None if attr_name == "render_mode" else getattr(self.driver.env, attr_name)
        return [value] * len(self._indices(indices))

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        raise NotImplementedError(
            f"{attr_name} cannot be set: all environments share one task; make a new one"
        )

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        method = getattr(self.driver.env, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type, indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        # Episode statistics are in the infos, so whoever looks for a Monitor finds one.
        return [issubclass(Monitor, wrapper_class)] * len(self._indices(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs

    def _indices(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        return list(self._get_indices(indices))
