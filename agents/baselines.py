"""What REINFORCE subtracts from its returns: baselines that know nothing of the step's action."""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("none", "running", "value", "leave_one_out")


class RunningMean:
    """Exponentially weighted mean of past updates' returns, Sutton's reinforcement comparison.

    b = (1 − d) Σ_k d^k Ḡ_{−k} / (1 − d^n), where Ḡ_{−k} is the mean return k updates before the
    last of n, and 0 before the first update. It is read before the update's own returns are taken
    in, so it is independent of the actions that it is subtracted for. (Williams 1992, section 5.)

    Attributes:
        state: [2] float64, the weighted sum and the sum of the weights: what a checkpoint keeps.
    """

    DECAY = 0.9

    def __init__(self, device: torch.device) -> None:
        self.state = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def value(self) -> Tensor:
        """b, a scalar."""
        total, weight = self.state
        return torch.where(weight > 0, total / weight.clamp(min=1e-12), 0.0)

    def add(self, returns: Tensor) -> None:
        """Take in the returns [B] of one update."""
        new = torch.stack([returns.double().mean(), self.state.new_ones(())])
        self.state.lerp_(new, 1.0 - self.DECAY)


def leave_one_out(
    returns: Tensor, positions: Tensor, n_trajectories: int, *, whole: bool = False
) -> Tensor:
    """The mean return of the other trajectories at the same step.

    b_i(t) = Σ_{j≠i} G_j(t) / (n − 1), with G_j(t) = 0 where trajectory j has ended before t.
    (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", with returns-to-go.)
    Trajectories are independent of each other, so b_i knows nothing of i's actions.

    Args:
        returns: [B], at most one for each trajectory and position.
        positions: [B] int64, the step's number in its trajectory.
        n_trajectories: n; with n = 1 there are no others and b = 0.
        whole: `returns` are those of whole trajectories, the same at each of their steps.

    Returns:
        [B].
    """
    others = max(n_trajectories - 1, 1)
    if whole:
        return (returns[positions == 0].sum() - returns) / others
    sums = returns.new_zeros(int(positions.max()) + 1).index_add_(0, positions, returns)  # (T,)
    return (sums[positions] - returns) / others


def of_first_step(values: Tensor, positions: Tensor, trajectories: Tensor) -> Tensor:
    """Each trajectory's value at its first step, for all of its steps: [B] -> [B]."""
    first = positions == 0
    table = values.new_zeros(int(trajectories.max()) + 1)
    table[trajectories[first]] = values[first]
    return table[trajectories]
