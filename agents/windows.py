"""What short-horizon agents learn from: H steps of all environments, and the returns in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """A rollout of H steps of all environments; batch axes [S, N]."""

    obs: Tensor  # (H, S, N, D) without a graph: what the critic is fitted on
    rewards: Tensor  # (H, S, N) with a graph
    next_values: Tensor  # (H, S, N) V of the observation after each step, before any reset
    terminated: Tensor  # (H, S, N) bool
    truncated: Tensor  # (H, S, N) bool
    entropies: Tensor  # (H, S, N)
    returns: Tensor  # (H, S, N) of the running episode after each step
    lengths: Tensor  # (H, S, N) likewise
    one_hots: Sequence[Tensor] = ()  # H × (S, N, ΣK) actions with their graph
    steps: Sequence[Any] = ()  # H steps as the driver gave them

    @property
    def ended(self) -> Tensor:
        """Where an episode ended, bool [H, S, N]."""
        return self.terminated | self.truncated


def lambda_returns(window: Window, gamma: float, lam: float) -> Tensor:
    """R_t = r_t + γ ((1 − λ) V_{t+1} + λ R_{t+1}) over a window, [H, S, N], with its graph.

    V_{t+1} is the value of the observation that step t led to. It stands for everything beyond
    the window's end and beyond a truncation; beyond a termination there is nothing.
    """
    returns = []
    following = window.next_values[-1]
    for t in reversed(range(len(window.rewards))):
        value = window.next_values[t]
        mixed = torch.lerp(value, following, lam)
        mixed = torch.where(window.truncated[t], value, mixed)
        following = window.rewards[t] + gamma * mixed.masked_fill(window.terminated[t], 0.0)
        returns.append(following)
    return torch.stack(returns[::-1])
