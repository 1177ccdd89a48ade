"""What a batched, differentiable environment is: five pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor


class OnDeviceEnv:
    """A task as pure functions: S numbers of state, D of observation, M factors of K_m categories.

    One instance describes the task and holds no episode; `BatchedDriver` draws the noise and adds
    seeds, time limits and autoreset. Every function takes any leading batch axes, runs on the
    device of its arguments and never synchronises with it. Where the task allows, the functions
    are differentiable in `state` and `one_hot`.

    | call | shapes |
    |---|---|
    | `initial(noise)` | [..., n_initial_noise] -> state [..., S] |
    | `transition(state, one_hot, noise)` | [..., S], [..., ΣK], [..., noise] -> state [..., S] |
    | `observe(state)` | [..., S] -> [..., D] |
    | `reward(state, one_hot, next_state)` | [..., S], [..., ΣK], [..., S] -> [...] |
    | `terminated(state)` | [..., S] -> bool [...] |

    Noise is standard uniform in [0, 1). `one_hot` concatenates the factors' one-hots; a function
    must be finite at, and linear or smooth between, its corners, because agents differentiate
    there. A subclass sets the attributes below in its constructor, before anything is called.
    """

    state_dim: int
    observation_dim: int
    nvec: tuple[int, ...]
    n_initial_noise: int = 0
    n_transition_noise: int = 0
    max_episode_steps: int | None = None
    # What `observation_space` says: one bound for all numbers, or one each.
    observation_low: float | Sequence[float] = -math.inf
    observation_high: float | Sequence[float] = math.inf

    def initial(self, noise: Tensor) -> Tensor:
        """First state of an episode, [..., n_initial_noise] -> [..., S]."""
        raise NotImplementedError

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        """Next state, [..., S], [..., ΣK], [..., n_transition_noise] -> [..., S]."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """What the agent sees, [..., S] -> [..., D]; the state itself unless overridden."""
        return state

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        """Reward of one transition, [...]."""
        raise NotImplementedError

    def terminated(self, state: Tensor) -> Tensor:
        """Whether the episode has ended in `state` (time limits apart), bool [...]; here never."""
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    def reference(self) -> tuple[float, str]:
        """(expected return of one episode that a very good policy reaches, how it was found)."""
        raise NotImplementedError(f"{type(self).__name__} has no reference return")

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """Box of shape [D], float32."""
        shape = (self.observation_dim,)
        low = np.broadcast_to(np.asarray(self.observation_low, np.float32), shape)
        high = np.broadcast_to(np.asarray(self.observation_high, np.float32), shape)
        return gymnasium.spaces.Box(low.copy(), high.copy(), shape, np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete:
        """Discrete for one factor, MultiDiscrete for several."""
        if len(self.nvec) == 1:
            return gymnasium.spaces.Discrete(self.nvec[0])
        return gymnasium.spaces.MultiDiscrete(list(self.nvec))

    def constant(self, name: str, like: Tensor) -> Tensor:
        """The array in attribute `name` as a tensor of `like`'s device and dtype; copied once.

        A tensor built anew in every step would cost a copy to the device each time, and could not
        be captured in a CUDA graph.
        """
        cache: dict[tuple[str, torch.device, torch.dtype], Tensor]
        cache = self.__dict__.setdefault("_constants", {})
        key = (name, like.device, like.dtype)
        if key not in cache:
            with torch.inference_mode(False):  # autograd must be able to save it
                cache[key] = torch.as_tensor(
                    np.asarray(getattr(self, name)), device=like.device, dtype=like.dtype
                )
        return cache[key]


def check_task(task: object) -> OnDeviceEnv:
    """`task` if it is an `OnDeviceEnv` whose action space counts its `nvec` from 0.

    Drivers and agents count actions from 0; a space that starts elsewhere would shift every action
    by its start, silently.

    Raises:
        ValueError: it is not, or it does not.
    """
    if not isinstance(task, OnDeviceEnv):
        raise ValueError(f"env must be an OnDeviceEnv, got {type(task).__name__}")
    name, space = type(task).__name__, task.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        counts: tuple[int, ...] = (int(space.n),)
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        counts = tuple(int(n) for n in space.nvec.flat)
    else:
        raise ValueError(f"the action space of {name} must be Discrete or MultiDiscrete: {space}")
    if np.any(space.start):
        start = np.asarray(space.start).tolist()
        raise ValueError(
            f"the actions of {name} start at {start}, but an on-device environment counts them "
            "from 0: leave out `start`, and add it in `transition` where it matters"
        )
    if counts != tuple(task.nvec):
        raise ValueError(f"{name} has nvec {tuple(task.nvec)}, but its action space is {space}")
    return task


def columns(*numbers: Tensor) -> Tensor:
    """Put numbers [...] side by side, [..., len(numbers)], each contiguous in memory.

    Environments compute on one column at a time; `torch.stack(..., -1)` would interleave them and
    lose vectorised loads.
    """
    return torch.stack(numbers).movedim(0, -1)
