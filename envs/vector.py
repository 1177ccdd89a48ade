"""An on-device environment as a Gymnasium vector environment: `gymnasium.make_vec`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gumbelrl.envs.driver import BatchedDriver, usable_device
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.registration import make_task
from gumbelrl.envs.single import as_indices
from gymnasium.vector.utils import batch_space


class OnDeviceVectorEnv(gymnasium.vector.VectorEnv):
    """N environments that step together, NumPy in and out, SAME_STEP autoreset.

    Where an episode ended, the observation is the next one's first and `infos["final_obs"][i]` the
    ended one's last (None elsewhere; `infos["_final_obs"]` is the mask), as in Gymnasium's
    SyncVectorEnv. On the CPU the arrays share memory with the driver's tensors: read, don't write.

    Args:
        task: an `OnDeviceEnv`, or the id of one.
        num_envs: N >= 1.
        max_episode_steps: time limit; None takes the task's.
        device: where the driver lives.
        kwargs: of the task's constructor, where `task` is an id.
    """

    metadata = {  # noqa: RUF012 - Gymnasium's convention
        "render_modes": [],
        "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: OnDeviceEnv | str,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}; nothing is drawn")
        device = usable_device(device)
        self.driver = BatchedDriver(
            make_task(task, **kwargs) if isinstance(task, str) else task,
            num_envs,
            device=device,
            max_episode_steps=max_episode_steps,
            validate=device.type == "cpu",
        )
        self.num_envs = num_envs
        self.single_observation_space = self.driver.env.observation_space
        self.single_action_space = self.driver.env.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """First observations [N, D]; one seed governs all N environments."""
        if seed is not None and not isinstance(seed, int | np.integer):
            raise ValueError(f"seed must be one integer for the whole batch, got {seed!r}")
        if options and "reset_mask" in options:
            raise ValueError("reset_mask is not supported: episodes restart by themselves")
        super().reset(seed=seed)
        return self.driver.reset(seed).numpy(force=True), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all; actions are indices, [N] or [N, M].

        Raises:
            ValueError: a soft action, a wrong shape, an index out of range.
            NonFiniteError: a state became NaN or infinite.
        """
        actions = as_indices(actions, self.action_space.shape or ())
        indices = torch.from_numpy(actions.astype(np.int64, copy=False)).to(self.driver.device)
        with torch.no_grad():
            step = self.driver.step(indices)
        terminated = step.terminated.numpy(force=True)
        truncated = step.truncated.numpy(force=True)
        infos: dict[str, Any] = {}
        ended = terminated | truncated
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            last = step.final_obs.numpy(force=True)
            for i in np.flatnonzero(ended):
                final_obs[i] = last[i]
            infos = {"final_obs": final_obs, "_final_obs": ended, "final_info": {}}
            infos["_final_info"] = ended
        return (
            step.obs.numpy(force=True),
            step.reward.numpy(force=True),
            terminated,
            truncated,
            infos,
        )

    def as_vec_env(self) -> Any:
        """The same environments, driver and all, as a Stable-Baselines3 `VecEnv`."""
        from gumbelrl.envs.vec_env import OnDeviceVecEnv

        return OnDeviceVecEnv(self.driver)
