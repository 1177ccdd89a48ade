"""Planning with a known model, for reference returns: value iteration on a grid, beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.simulation import StatePolicy
from torch import Tensor


def nearest_bin(value: Tensor, bins: np.ndarray | Tensor) -> Tensor:
    """Index of the evenly spaced bin nearest to each value, int64."""
    return ((value - bins[0]) / (bins[1] - bins[0])).round().clamp(0, len(bins) - 1).long()


def all_actions(task: OnDeviceEnv, like: Tensor) -> Tensor:
    """One-hots of every action of a task with one factor, [K, K]."""
    if len(task.nvec) != 1:
        raise ValueError(f"all actions are listed for one factor only, got nvec {task.nvec}")
    return torch.eye(task.nvec[0], dtype=like.dtype)


def try_all(task: OnDeviceEnv, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every action in every state [N, S]: next state [N, K, S], reward and ended [N, K]."""
    actions = all_actions(task, state)
    state = state.unsqueeze(1).expand(-1, len(actions), -1)  # (N, K, S)
    actions = actions.expand(len(state), -1, -1)  # (N, K, K)
    next_state = task.transition(state, actions, state[..., :0])
    return next_state, task.reward(state, actions, next_state), task.terminated(next_state)


@torch.no_grad()
def grid_policy(
    task: OnDeviceEnv,
    low: Sequence[float],
    high: Sequence[float],
    shape: tuple[int, int],
    *,
    gamma: float,
    periodic: bool = False,
) -> StatePolicy:
    """Greedy policy of value iteration, for a deterministic task with two numbers of state.

    The value is bilinear between the points of a grid over [low, high]; it is iterated as often as
    an episode has steps. `periodic`: the first number is an angle.
    """
    assert task.state_dim == 2
    assert task.n_transition_noise == 0
    assert task.max_episode_steps is not None
    axes = [torch.linspace(a, b, n) for a, b, n in zip(low, high, shape, strict=True)]
    states = torch.cartesian_prod(*axes)  # (n, 2)
    bottom, top = torch.tensor(low), torch.tensor(high)
    last = torch.tensor(shape) - 1

    def corners(state: Tensor) -> tuple[Tensor, Tensor]:
        """The four grid points around states [..., 2] and their weights, both [..., 4]."""
        at = (state - bottom) / (top - bottom)  # (..., 2) in [0, 1] on the grid
        first = at[..., 0].remainder(1.0) if periodic else at[..., 0]
        at = torch.stack((first, at[..., 1]), -1).clamp(0, 1) * last
        cell = torch.minimum(at.floor().long(), last - 1)
        (i, j), (x, y) = cell.unbind(-1), (at - cell).unbind(-1)
        index = i * shape[1] + j
        points = torch.stack((index, index + 1, index + shape[1], index + shape[1] + 1), -1)
        weights = torch.stack(((1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y), -1)
        return points, weights

    next_state, reward, ended = try_all(task, states)
    points, weights = corners(next_state)  # (n, K, 4)
    weights = weights * (gamma * (~ended).to(weights.dtype)).unsqueeze(-1)
    value = torch.zeros(len(states))
    for _ in range(task.max_episode_steps):
        value = (reward + (weights * value[points]).sum(-1)).amax(-1)

    def policy(state: Tensor) -> Tensor:
        next_state, reward, ended = try_all(task, state)
        points, weights = corners(next_state)
        ahead = (weights * value[points]).sum(-1).masked_fill(ended, 0.0)
        return (reward + gamma * ahead).argmax(-1, keepdim=True)  # (N, 1)

    return policy


@torch.no_grad()
def beam_search(
    task: OnDeviceEnv,
    promise: Callable[[Tensor], Tensor],
    *,
    n_starts: int,
    width: int,
    max_steps: int,
    seed: int = 0,
) -> float:
    """Mean over starts of minus the steps to the first ended state; for "−1 until it ends".

    From each start all actions are tried in the `width` states of highest `promise` (state ->
    [...]); the returns are those of real action sequences, so a policy can reach them.
    """
    generator = torch.Generator().manual_seed(seed)
    state = task.initial(torch.rand(n_starts, task.n_initial_noise, generator=generator))
    beam = state.unsqueeze(1)  # (starts, W, S)
    returns = torch.full((n_starts,), -float(max_steps))
    running = torch.ones(n_starts, dtype=torch.bool)
    for step in range(max_steps):
        next_state, _, ended = try_all(task, beam.flatten(0, 1))
        next_state = next_state.reshape(n_starts, -1, task.state_dim)  # (starts, W K, S)
        reached = ended.reshape(n_starts, -1).any(-1) & running
        returns[reached] = -float(step)  # the step that ends costs nothing
        running &= ~reached
        if not running.any():
            break
        best = promise(next_state).topk(min(width, next_state.shape[1]), -1).indices
        beam = next_state.gather(1, best.unsqueeze(-1).expand(-1, -1, task.state_dim))
    return float(returns.mean())
