"""A replay buffer kept as tensors on the agent's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.replay_files import ReplayWriter, open_replay
from gumbelrl.gumbel.choices import DoesNotApply
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

Observations = Tensor | dict[str, Tensor]
Rows = Tensor | np.ndarray


class Transitions(NamedTuple):
    """A batch of B transitions over n steps, on the buffer's device."""

    obs: Observations  # (B, *obs_shape), the space's dtype
    actions: Tensor  # (B, M) int64 factor indices
    rewards: Tensor  # (B,) float32, r_t + γ r_{t+1} + … + γ^{k−1} r_{t+k−1}
    next_obs: Observations  # (B, *obs_shape) s_{t+k}, the episode's own last one where it ended
    discounts: Tensor  # (B,) γ^k, 0 where s_{t+k} is terminal: the weight of its value
    masks: Tensor | None  # (B, ΣK) bool, actions allowed at `obs`
    next_masks: Tensor | None  # (B, ΣK) bool, at `next_obs`


class RowSender:
    """Copies values from the host to a GPU by way of pinned memory, so that nobody waits.

    Args:
        targets: tensors on the GPU, as `send` will get them.
    """

    def __init__(self, targets: Sequence[Tensor]) -> None:
        self.host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in targets]
        self._arrays = [tensor.numpy() for tensor in self.host]
        self._sent = torch.cuda.Event()

    def send(self, values: Sequence[Rows], targets: Sequence[Tensor]) -> None:
        """Write the values into the targets; those that are on the GPU go there directly."""
        self._sent.synchronize()  # the last ones have left: long ago, as a rule
        sources = []
        for value, target, host, array in zip(
            values, targets, self.host, self._arrays, strict=True
        ):
            if isinstance(value, Tensor) and value.device == target.device:
                sources.append(value.view_as(target))
            else:
                array[...] = np.reshape(value, array.shape)
                sources.append(host)
        torch._foreach_copy_(list(targets), sources, non_blocking=True)
        self._sent.record()


class TensorReplayBuffer:
    """Ring of the last `buffer_size` transitions, one storage tensor per field.

    Rows are time steps of all N environments, [rows, N, ...]; sampling is uniform over the stored
    transitions and takes a `torch.Generator` on the buffer's device. Returns over several steps are
    summed when they are sampled. It has the constructor and the `add` that Stable-Baselines3's
    off-policy algorithms call.

    Args:
        buffer_size: capacity in transitions (rounded down to a multiple of `n_envs`).
        observation_space: an array space, or a Dict of array spaces.
        action_space: a space that `FactoredActions` accepts.
        device: where the storage lives.
        n_envs: N, environments that step together.

    Raises:
        ValueError: capacity below one step of all environments, or a nested observation space.
    """

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
        if buffer_size < n_envs:
            raise ValueError(f"buffer_size must be >= n_envs = {n_envs}, got {buffer_size}")
        self.device = torch.device(device)
        self.n_envs = n_envs
        self.rows = buffer_size // n_envs
        self.actions_codec = FactoredActions(action_space)
        self.obs = self._storage_of(observation_space)
        self.next_obs = self._storage_of(observation_space)
        self.actions = self._storage((self.actions_codec.n_factors,), torch.int64)
        self.rewards = self._storage()
        self.terminated = self._storage(dtype=torch.bool)  # the task's end: nothing comes after
        self.ended = self._storage(dtype=torch.bool)  # any end: the next row is another episode
        self.masks: Tensor | None = None  # made with the first mask that comes
        self.next_masks: Tensor | None = None
        self.step_masks: tuple[Tensor | None, Tensor | None] = (None, None)
        """Masks [N, ΣK] before and after the step that `add` stores next."""
        self.pos = 0
        self.full = False
        self._writer = self._new_writer()
        self._sender: RowSender | None = None  # to a GPU
        # What sampling needs to know, where a captured graph reads it anew at every replay.
        self._size_and_pos = torch.zeros(2, dtype=torch.int64, device=self.device)

    def _new_writer(self) -> ReplayWriter:
        # Masks may come later: the storages decide how many rows a chunk has.
        return ReplayWriter(sum(part[:1].nbytes for _, part in self._tensors()))

    def _storage(self, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros((self.rows, self.n_envs, *shape), dtype=dtype, device=self.device)

    def _storage_of(self, space: spaces.Space) -> Observations:
        if isinstance(space, spaces.Dict):
            parts = {key: self._storage_of(part) for key, part in space.spaces.items()}
            if all(isinstance(part, Tensor) for part in parts.values()):
                return parts  # type: ignore[return-value]
        if isinstance(space, spaces.Dict | spaces.Tuple):
            raise DoesNotApply(
                f"observations must be an array or a dictionary of arrays, got {space}; wrap the "
                "environment in gymnasium.wrappers.FlattenObservation"
            )
        dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        dtype = torch.float32 if dtype == torch.float64 else dtype  # the networks' dtype
        return self._storage(get_obs_shape(space), dtype)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Transitions stored."""
        return (self.rows if self.full else self.pos) * self.n_envs

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        next_obs: np.ndarray | dict[str, np.ndarray],
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
        masks, next_masks = self.step_masks
        self.add_step(
            obs,
            next_obs,
            self.actions_codec.to_indices(action),
            reward,
            terminated=done & ~np.array(truncated, dtype=bool),
            ended=done,
            masks=masks,
            next_masks=next_masks,
        )

    def add_step(
        self,
        obs: Any,
        next_obs: Any,
        actions: Rows,
        rewards: Rows,
        *,
        terminated: Rows,
        ended: Rows,
        masks: Rows | None = None,
        next_masks: Rows | None = None,
    ) -> None:
        """Store one step of all N environments, given as tensors or as arrays.

        Args:
            obs: [N, ...] before the step.
            next_obs: [N, ...] after it, each episode's own last observation where it ended.
            actions: int64 factor indices [N, M].
            rewards: [N].
            terminated: bool [N], never true on truncation.
            ended: bool [N], terminated or truncated.
            masks, next_masks: bool [N, ΣK] at `obs` and `next_obs`, or None for both.
        """
        row = self.pos
        self._writer.touch(row)
        parts: list[tuple[Tensor, Rows]] = []
        for storage, value in ((self.obs, obs), (self.next_obs, next_obs)):
            given = value if isinstance(value, dict) else {"": value}
            for key, whole in (storage if isinstance(storage, dict) else {"": storage}).items():
                part = given[key]
                if part.ndim == whole.ndim - 1 and part.shape != whole.shape[1:]:
                    raise ValueError(
                        f"observations must have shape {tuple(whole.shape[1:])}, got "
                        f"{tuple(part.shape)}; where VecNormalize is around images, wrap "
                        "VecTransposeImage inside it"
                    )
                parts.append((whole, part))
        parts += [
            (self.actions, actions),
            (self.rewards, rewards),
            (self.terminated, terminated),
            (self.ended, ended),
        ]
        if masks is not None and next_masks is not None:
            parts += zip(self._mask_storages(), (masks, next_masks), strict=True)
        self._write_row(row, parts)
        self.pos += 1
        if self.pos == self.rows:
            self.pos, self.full = 0, True
        self._moved()

    def _mask_storages(self) -> tuple[Tensor, Tensor]:
        """Those of masks and next masks, made with the first that come."""
        if self.masks is None or self.next_masks is None:
            shape = (self.actions_codec.n_categories,)
            self.masks = self._storage(shape, torch.bool).fill_(True)
            self.next_masks = self._storage(shape, torch.bool).fill_(True)
            self._writer = self._new_writer()
        return self.masks, self.next_masks

    def _write_row(self, row: int, parts: Sequence[tuple[Tensor, Rows]]) -> None:
        """Write values [N, ...] into storages [rows, N, ...]."""
        if self.device.type == "cpu":  # by NumPy, in a tenth of the time
            for storage, values in parts:
                array = values.numpy() if isinstance(values, Tensor) else values
                storage.numpy()[row] = np.reshape(array, storage.shape[1:])
            return
        targets = [storage[row] for storage, _ in parts]
        if self._sender is None or len(self._sender.host) != len(targets):
            self._sender = RowSender(targets)
        self._sender.send([values for _, values in parts], targets)

    def cut(self, restarted: Tensor | None = None) -> None:
        """Say that environments were started anew: nothing follows their last transition.

        Args:
            restarted: bool [N]; None is all of them.
        """
        if len(self) > 0:
            everywhere = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
            self._writer.touch((self.pos - 1) % self.rows)
            self.ended[self.pos - 1] |= everywhere if restarted is None else restarted

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        gamma: float = 0.99,
        n_steps: int = 1,
    ) -> Transitions:
        """Draw `batch_size` transitions uniformly, with replacement.

        A transition over n steps is shorter where an episode ends and before the newest row.
        """
        if len(self) == 0:
            raise ValueError("cannot sample from an empty replay buffer; collect steps first")
        first = self._draw(batch_size, generator)  # (B,) places in the flattened storage
        if n_steps == 1:
            last, rewards = first, self.rewards.flatten()[first]
            discounts = gamma * (~self.terminated.flatten()[first])
        else:
            last, rewards, discounts = self._follow(first, gamma, n_steps)

        def take(storage: Tensor, index: Tensor) -> Tensor:
            return storage.flatten(0, 1).index_select(0, index)

        return Transitions(
            obs=map_observations(lambda x: take(x, first), self.obs),
            actions=take(self.actions, first),
            rewards=rewards,
            next_obs=map_observations(lambda x: take(x, last), self.next_obs),
            discounts=discounts,
            masks=None if self.masks is None else take(self.masks, first),
            next_masks=None if self.next_masks is None else take(self.next_masks, last),
        )

    def _draw(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        if self.device.type == "cpu":
            return torch.randint(len(self), (batch_size,), generator=generator)
        u = torch.rand(batch_size, dtype=torch.float64, generator=generator, device=self.device)
        return (u * self._size_and_pos[0]).long()

    def _moved(self) -> None:
        """Tell the device how many transitions there are, and where the next row goes."""
        if self.device.type != "cpu":
            self._size_and_pos[0].fill_(len(self))
            self._size_and_pos[1].fill_(self.pos)

    def _follow(self, first: Tensor, gamma: float, n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """From places [B], go on for up to n steps: last places, discounted rewards, discounts."""
        row, env = first // self.n_envs, first % self.n_envs
        step = torch.arange(n_steps, device=self.device)
        place = (row.unsqueeze(1) + step) % self.rows * self.n_envs + env.unsqueeze(1)  # (B, n)
        pos = self.pos if self.device.type == "cpu" else self._size_and_pos[1]
        newest = (pos - 1 - row) % self.rows  # rows that come after, in time
        stop = self.ended.flatten()[place] | (step >= newest.unsqueeze(1))  # (B, n)
        # Step k counts unless one before it was the last.
        runs = (stop.cumsum(1) - stop.long()) == 0  # (B, n): true, ..., true, false, ...
        powers = gamma**step  # (n,)
        rewards = (self.rewards.flatten()[place] * powers * runs).sum(1)
        length = runs.sum(1)  # (B,) k >= 1
        last = place.gather(1, length.unsqueeze(1) - 1).squeeze(1)
        return last, rewards, gamma**length * (~self.terminated.flatten()[last])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("obs", "next_obs"):
            value = getattr(self, name)
            if isinstance(value, dict):
                yield from ((f"{name}/{key}", part) for key, part in value.items())
            else:
                yield name, value
        for name in ("actions", "rewards", "terminated", "ended", "masks", "next_masks"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def save(self, path: str | Path, earlier: Path | None = None) -> dict[str, str]:
        """Write the stored transitions into a folder; nothing in it can execute.

        Args:
            path: the folder, made if missing.
            earlier: one that an earlier save has filled; chunks that have not changed since are
                linked from it.

        Returns:
            The sha256 of every chunk by its file's name.
        """
        filled = self.rows if self.full else self.pos
        position = {"pos": self.pos, "full": int(self.full)}
        return self._writer.write(path, dict(self._tensors()), filled, position, earlier)

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote into this buffer, chunk by chunk.

        A full ring goes on in a larger one, its oldest row first.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: it is damaged, or does not fit. The buffer is then empty.
        """
        stored = open_replay(path)
        if "masks" in stored.shapes:
            self._mask_storages()
        storages = dict(self._tensors())
        stored.check_fits(storages, self.rows)
        self._writer.touch_all()
        self.pos, self.full = 0, False
        pos, was_full = int(stored.position["pos"]), bool(stored.position["full"])
        full = was_full and stored.rows == self.rows
        stored.read_into(storages, oldest=pos if was_full and not full else 0)
        self.full = full
        self.pos = pos if full else stored.rows % self.rows
        self._moved()


def normalized(batch: Transitions, env: VecNormalize, n_steps: int) -> Transitions:
    """Observations and rewards as `env` gives them now; the replay keeps them raw. Waits for a GPU.

    Args:
        batch: sampled with returns over `n_steps`.
    """

    def normalize(obs: Any) -> Any:
        host = map_observations(lambda part: part.cpu().numpy(), obs)
        return map_observations(
            lambda part: torch.as_tensor(part, dtype=torch.float32, device=batch.rewards.device),
            env.normalize_obs(host),
        )

    rewards = batch.rewards
    if env.norm_reward:
        # Linear, so that it may follow the summing over n steps.
        unit = float(np.sqrt(env.ret_rms.var + env.epsilon))
        limit = env.clip_reward * n_steps
        rewards = (rewards / unit).clamp(-limit, limit)
    return batch._replace(
        obs=normalize(batch.obs), next_obs=normalize(batch.next_obs), rewards=rewards
    )


def map_observations(function: Any, obs: Any) -> Any:
    """The function of an array observation, or of each part of a dictionary."""
    if isinstance(obs, Mapping):
        return {key: function(part) for key, part in obs.items()}
    return function(obs)
