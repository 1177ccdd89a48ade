"""Stepping many copies of an on-device environment: seeds, time limits, autoreset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from gumbelrl.envs.on_device import OnDeviceEnv, check_task
from torch import Tensor


class NonFiniteError(ValueError):
    """NaN or infinity from an environment: which step, which field. Nothing was trained on it."""


class Step(NamedTuple):
    """One transition of every environment, SAME_STEP autoreset."""

    obs: Tensor  # [..., D], the next episode's first where this one ended
    reward: Tensor  # [...]
    terminated: Tensor  # bool [...], the task ended: no bootstrap
    truncated: Tensor  # bool [...], the time limit was reached (both may be true, as in Gymnasium)
    final_obs: (
        Tensor  # [..., D], after this transition everywhere, before any reset, with its graph
    )


class BatchedDriver:
    """Holds the episodes of N environments as tensors on one device.

    `step` takes a float one-hot [..., ΣK], through which it is differentiable where that carries a
    graph, or int64 indices [..., M] ([...] too for one factor). Episodes that end restart in the
    same step; their gradient is cut there. `detach` cuts it everywhere, at the end of a horizon.

    | attribute | what it is |
    |---|---|
    | `state` | [..., S], with the graph of the steps since `detach` |
    | `elapsed` | int64 [...], steps taken in the present episode |
    | `generator` | draws all noise; with `state` and `elapsed` all that resuming needs |
    | `batch_shape`, `n_envs` | the leading axes and their product |

    Args:
        env: the task.
        n_envs: N >= 1, or leading batch axes such as (n_seeds, N).
        device: where everything lives.
        dtype: float32 or float64.
        seed: of the generator; None draws one from the operating system.
        max_episode_steps: time limit in steps; None takes the environment's.
        validate: check in every step that indices are in range and states finite, and raise
            otherwise. It waits for the device, so it is off here and on in the adapters on the CPU.

    Raises:
        ValueError: n_envs or max_episode_steps below 1, a task whose actions do not count from 0,
            a device that is not there; an action of the wrong type, shape, dtype or device. That a
            float action is a one-hot is not checked.
        NonFiniteError: with `validate`, a state or a reward that is NaN or infinite.
    """

    def __init__(
        self,
        env: OnDeviceEnv,
        n_envs: int | tuple[int, ...],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
        max_episode_steps: int | None = None,
        validate: bool = False,
    ) -> None:
        self.batch_shape = _batch_shape(n_envs)
        self.n_envs = math.prod(self.batch_shape)
        check_task(env)
        device = usable_device(device)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if max_episode_steps is None:
            max_episode_steps = env.max_episode_steps
        elif max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be >= 1, got {max_episode_steps}")
        self.env = env
        self.dtype = dtype
        self.max_episode_steps = max_episode_steps
        self.validate = validate
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

        self.elapsed = torch.zeros(self.batch_shape, dtype=torch.int64, device=device)
        self.device = self.elapsed.device  # "cuda" has become "cuda:0"
        self._no_noise = torch.zeros((*self.batch_shape, 0), dtype=dtype, device=device)
        # Indices -> one-hot in one comparison: column j belongs to this factor, means this value.
        self._factor = torch.tensor(
            [m for m, k in enumerate(env.nvec) for _ in range(k)], device=device
        )  # (ΣK,)
        self._value = torch.tensor([i for k in env.nvec for i in range(k)], device=device)  # (ΣK,)
        self._equal_factors = len(set(env.nvec)) == 1
        self._ends = (
            max_episode_steps is not None or type(env).terminated is not OnDeviceEnv.terminated
        )
        # On the CPU the number of ended episodes is known at no cost, so only theirs are drawn.
        self._draw_ended_only = self.device.type == "cpu"
        self.state = self.reset_state()

    def reset_state(self) -> Tensor:
        """Fresh initial states for every environment, [..., S]; drawn, not installed."""
        return self.env.initial(self._noise(self.env.n_initial_noise))

    def reset(self, seed: int | None = None) -> Tensor:
        """Start every episode anew and return the observations [..., D]; `seed` reseeds first."""
        if seed is not None:
            self.generator.manual_seed(int(seed))
        self.state = self.reset_state()
        self.elapsed = torch.zeros_like(self.elapsed)
        return self.env.observe(self.state)

    def observe(self) -> Tensor:
        """Observations of the present state, [..., D]."""
        return self.env.observe(self.state)

    def step(self, action: Tensor) -> Step:
        """Advance every environment by one step; see the class for actions and errors."""
        one_hot = self.one_hot(action)  # [..., ΣK]
        noise = self._noise(self.env.n_transition_noise)
        next_state = self.env.transition(self.state, one_hot, noise)  # [..., S]
        reward = self.env.reward(self.state, one_hot, next_state)  # [...]
        if self.validate:
            self._check_finite("state", next_state)
            self._check_finite("reward", reward.unsqueeze(-1))
        final_obs = self.env.observe(next_state)  # [..., D]
        terminated = self.env.terminated(next_state)  # [...]
        elapsed = self.elapsed + 1
        if self.max_episode_steps is None:
            truncated = torch.zeros_like(terminated)
        else:
            truncated = elapsed >= self.max_episode_steps
        self.state, self.elapsed, obs = next_state, elapsed, final_obs
        if self._ends:
            obs = self._restart(terminated | truncated, final_obs)
        return Step(obs, reward, terminated, truncated, final_obs)

    def detach(self) -> None:
        """Cut the graph of the present state: the next step starts a new horizon."""
        self.state = self.state.detach()

    def one_hot(self, action: Tensor) -> Tensor:
        """A checked action as float one-hot [..., ΣK]; indices [..., M] are converted."""
        if not isinstance(action, Tensor):
            raise ValueError(f"an action must be a torch tensor, got {type(action).__name__}")
        if action.device != self.device:
            raise ValueError(
                f"the action is on {action.device}, the environments are on {self.device}; "
                f"use action.to({str(self.device)!r})"
            )
        n_factors, n_columns = len(self.env.nvec), len(self._value)
        if action.dtype == self.dtype:
            if action.shape != (*self.batch_shape, n_columns):
                raise ValueError(
                    f"a one-hot action must have shape {[*self.batch_shape, n_columns]}, "
                    f"got {list(action.shape)}"
                )
            return action
        if action.dtype != torch.int64:
            raise ValueError(
                f"an action must be a one-hot of dtype {self.dtype} or indices of dtype "
                f"torch.int64, got {action.dtype}"
            )
        if n_factors == 1 and action.shape == self.batch_shape:
            action = action.unsqueeze(-1)  # (..., 1)
        if action.shape != (*self.batch_shape, n_factors):
            raise ValueError(
                f"indices must have shape {[*self.batch_shape, n_factors]}, "
                f"got {list(action.shape)}"
            )
        if n_factors == 1:
            one_hot = (action == self._value).to(self.dtype)  # (..., 1) against (K,)
        elif self._equal_factors:  # no gather: (..., M, 1) against (K,)
            k = self.env.nvec[0]
            one_hot = (action.unsqueeze(-1) == self._value[:k]).to(self.dtype).flatten(-2)
        else:
            one_hot = (action[..., self._factor] == self._value).to(self.dtype)  # (..., ΣK)
        if self.validate and int(one_hot.sum()) != self.n_envs * n_factors:
            raise ValueError(
                f"indices must be in 0 .. K - 1 with K = {list(self.env.nvec)}, got "
                f"{int(action.min())} to {int(action.max())}"
            )
        return one_hot

    def state_dict(self) -> dict[str, Tensor]:
        """Everything resuming needs, as copies: `state`, `elapsed`, `generator`."""
        return {
            "state": self.state.detach().clone(),
            "elapsed": self.elapsed.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same environment and batch axes.

        From another kind of device the generator's state does not fit; then it stays as seeded.

        Raises:
            ValueError: a key is missing, or a shape or dtype is another.
        """
        present = {"state": self.state, "elapsed": self.elapsed}
        for name in (*present, "generator"):
            if name not in state_dict:
                raise ValueError(f"the state of the environments lacks {name!r}")
        for name, mine in present.items():
            given = state_dict[name]
            if given.shape != mine.shape or given.dtype != mine.dtype:
                raise ValueError(
                    f"{name} must have shape {list(mine.shape)} and dtype {mine.dtype}, "
                    f"got {list(given.shape)} and {given.dtype}"
                )
        self.state = state_dict["state"].to(self.device, copy=True)
        self.elapsed = state_dict["elapsed"].to(self.device, copy=True)
        generator_state = state_dict["generator"].cpu()
        if generator_state.shape == self.generator.get_state().shape:
            self.generator.set_state(generator_state)

    def _noise(self, n: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Standard uniform numbers, [..., n]; each of the n contiguous in memory."""
        if n == 0 and shape is None:
            return self._no_noise
        shape = self.batch_shape if shape is None else shape
        drawn = torch.rand(
            (n, *shape), generator=self.generator, device=self.device, dtype=self.dtype
        )
        return drawn.movedim(0, -1)

    def _restart(self, ended: Tensor, final_obs: Tensor) -> Tensor:
        """Replace the states of the episodes that ended, [...], by initial ones without a graph;
        returns the observations [..., D] with theirs."""
        next_state, obs = self.state, final_obs
        if self._draw_ended_only:
            rows = ended.nonzero(as_tuple=True)
            if len(rows[0]) == 0:
                return obs
            fresh = self.env.initial(self._noise(self.env.n_initial_noise, (len(rows[0]),)))
            self.state = next_state.index_put(rows, fresh)
            obs = self.state
            if final_obs is not next_state:  # the agent sees something else than the state
                obs = final_obs.index_put(rows, self.env.observe(fresh))
        else:
            fresh = self.reset_state()  # [..., S]
            self.state = torch.where(ended.unsqueeze(-1), fresh, next_state)
            obs = torch.where(ended.unsqueeze(-1), self.env.observe(fresh), final_obs)
        self.elapsed = self.elapsed.masked_fill(ended, 0)
        return obs

    def _check_finite(self, field: str, values: Tensor) -> None:
        """Raise NonFiniteError if one of `values` [..., n] is NaN or infinite."""
        # One pass in the ordinary case: a sum is finite unless a term is not (or it overflows).
        if math.isfinite(values.detach().sum()) or bool(values.isfinite().all()):
            return
        *row, column = (int(i) for i in (~values.isfinite()).nonzero()[0])
        value = float(values.detach()[(*row, column)])
        name = row[0] if len(row) == 1 else tuple(row)
        place = f" at index {column}" if field == "state" else ""
        raise NonFiniteError(
            f"the {field} became {value}{place} (environment {name}, step "
            f"{int(self.elapsed[tuple(row)]) + 1} of its episode); nothing was returned"
        )


def usable_device(device: torch.device | str) -> torch.device:
    """`device` if tensors and random numbers can be made on it, else ValueError."""
    try:
        chosen = torch.device(device)
        torch.Generator(chosen)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}") from error
    return chosen


def _batch_shape(n_envs: int | tuple[int, ...]) -> tuple[int, ...]:
    shape = n_envs if isinstance(n_envs, tuple) else (n_envs,)
    for n in shape:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n_envs must be an integer >= 1, or several of them, got {n_envs!r}")
    return shape
