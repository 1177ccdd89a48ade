"""A replay buffer kept as tensors on the agent's device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gumbelrl.agents.action_spaces import FactoredActions
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from torch import Tensor


class Transitions(NamedTuple):
    """A batch of B transitions, on the buffer's device."""

    obs: Tensor  # (B, *obs_shape), the space's dtype
    actions: Tensor  # (B, M) int64 factor indices
    rewards: Tensor  # (B,) float32
    next_obs: Tensor  # (B, *obs_shape), the episode's own last one where it ended
    terminated: Tensor  # (B,) float32, 1 only where the episode terminated: never on truncation


class TensorReplayBuffer:
    """Ring of the last `buffer_size` transitions, one storage tensor per field.

    Rows are time steps of all N environments, [rows, N, ...]; sampling is uniform over the stored
    transitions and takes a `torch.Generator` on the buffer's device. It has the constructor and
    the `add` that Stable-Baselines3's off-policy algorithms call.

    Args:
        buffer_size: capacity in transitions (rounded down to a multiple of `n_envs`).
        observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space.
        action_space: a space that `FactoredActions` accepts.
        device: where the storage lives.
        n_envs: N, environments that step together.

    Raises:
        ValueError: capacity below one step of all environments, or a nested observation space.
    """

    FIELDS = ("obs", "next_obs", "actions", "rewards", "terminated")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "cpu",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is not supported by the tensor replay buffer")
        if isinstance(observation_space, spaces.Dict | spaces.Tuple):
            raise ValueError(
                f"observations must be arrays, got {observation_space}; wrap the environment in "
                "gymnasium.wrappers.FlattenObservation"
            )
        if buffer_size < n_envs:
            raise ValueError(f"buffer_size must be >= n_envs = {n_envs}, got {buffer_size}")
        self.device = torch.device(device)
        self.n_envs = n_envs
        self.rows = buffer_size // n_envs
        self.actions_codec = FactoredActions(action_space)
        shape = (self.rows, n_envs)
        obs_dtype = torch.from_numpy(np.empty(0, observation_space.dtype)).dtype
        if obs_dtype == torch.float64:
            obs_dtype = torch.float32  # the networks' dtype
        obs_shape = get_obs_shape(observation_space)
        place: dict[str, Any] = {"device": self.device}
        self.obs = torch.zeros((*shape, *obs_shape), dtype=obs_dtype, **place)
        self.next_obs = torch.zeros_like(self.obs)
        self.actions = torch.zeros(
            (*shape, self.actions_codec.n_factors), dtype=torch.int64, **place
        )
        self.rewards = torch.zeros(shape, **place)
        self.terminated = torch.zeros(shape, **place)
        self.pos = 0
        self.full = False

    def __len__(self) -> int:
        """Transitions stored."""
        return (self.rows if self.full else self.pos) * self.n_envs

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all N environments.

        `done` with `infos[i]["TimeLimit.truncated"]` is a truncation and does not count as
        termination, so the target still bootstraps from `next_obs`.
        """
        truncated = [info.get("TimeLimit.truncated", False) for info in infos]
        self.add_tensors(
            torch.as_tensor(obs),
            torch.as_tensor(next_obs),
            torch.from_numpy(self.actions_codec.to_indices(action)),
            torch.as_tensor(reward),
            torch.from_numpy(done & ~np.array(truncated, dtype=bool)),
        )

    def add_tensors(
        self, obs: Tensor, next_obs: Tensor, actions: Tensor, rewards: Tensor, terminated: Tensor
    ) -> None:
        """Store one step of all N environments: obs [N, ...], factor indices [N, M], the rest [N].

        `next_obs` is each episode's own last observation where it ended; `terminated` is bool.
        """
        row = self.pos
        self.obs[row] = obs.view_as(self.obs[row])
        self.next_obs[row] = next_obs.view_as(self.next_obs[row])
        self.actions[row] = actions
        self.rewards[row] = rewards
        self.terminated[row] = terminated
        self.pos += 1
        if self.pos == self.rows:
            self.pos, self.full = 0, True

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Transitions:
        """Draw `batch_size` transitions uniformly, with replacement."""
        if len(self) == 0:
            raise ValueError("cannot sample from an empty replay buffer; collect steps first")
        index = torch.randint(
            len(self), (batch_size,), generator=generator, device=self.device
        )  # (B,)
        return Transitions(
            obs=self.obs.flatten(0, 1).index_select(0, index),
            actions=self.actions.flatten(0, 1).index_select(0, index),
            rewards=self.rewards.flatten().index_select(0, index),
            next_obs=self.next_obs.flatten(0, 1).index_select(0, index),
            terminated=self.terminated.flatten().index_select(0, index),
        )

    def save(self, path: str | Path) -> None:
        """Write the stored transitions as safetensors; nothing in the file can execute."""
        from safetensors.torch import save_file

        filled = self.rows if self.full else self.pos
        tensors = {name: getattr(self, name)[:filled].contiguous() for name in self.FIELDS}
        save_file(tensors, str(path), metadata={"pos": str(self.pos), "full": str(int(self.full))})

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote into this buffer; ValueError when the shapes do not fit."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device=str(self.device)) as file:
            metadata = file.metadata()
            for name in self.FIELDS:
                stored, own = file.get_tensor(name), getattr(self, name)
                if stored.shape[0] > self.rows or stored.shape[1:] != own.shape[1:]:
                    raise ValueError(
                        f"replay in {path} does not fit: its {name} has shape "
                        f"{tuple(stored.shape)}, this buffer holds {tuple(own.shape)}; use the "
                        "same environment, n_envs and a buffer_size at least as large"
                    )
                own[: stored.shape[0]] = stored
            stored_rows = stored.shape[0]
        self.full = bool(int(metadata["full"])) and stored_rows == self.rows
        self.pos = int(metadata["pos"]) if self.full else stored_rows % self.rows
