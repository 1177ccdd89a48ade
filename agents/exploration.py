"""Exploration that lasts: uniformly random actions held for several steps."""

from __future__ import annotations

import torch
from gumbelrl.gumbel import FactoredCategorical
from torch import Tensor


class HeldActions:
    """Mixes uniformly random actions into a policy's, each held for a geometric number of steps.

    Independent draws at every step cancel out, and lead nowhere in a task such as MountainCar
    (temporally extended ε-greedy, Dabney et al. 2021, arXiv 2006.01782, with lengths that need no
    count of steps). Every factor of every environment holds its own. A hold ends with the episode,
    and where its action is not allowed any more.

    Nothing here needs to be stored with an agent: one that is loaded begins episodes anew, and a
    scheduled checkpoint does the same to a run that goes on.

    Args:
        n_envs: N.
        n_factors: M.
        mean_length: L >= 1, of a hold in steps; at 1 the law is that of `uniform_mix` alone.
        device: where actions are drawn.
    """

    def __init__(
        self,
        n_envs: int,
        n_factors: int,
        mean_length: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.mean_length = mean_length
        self._held = torch.zeros(n_envs, n_factors, dtype=torch.int64, device=device)
        self._holding = torch.zeros_like(self._held, dtype=torch.bool)

    def end(self, ended: Tensor | None = None) -> None:
        """End the holds of environments whose episode ended, bool [N]; None is all of them."""
        self._holding &= False if ended is None else ~ended.unsqueeze(1)

    def choose(self, dist: FactoredCategorical, share: float, generator: torch.Generator) -> Tensor:
        """Actions to take now, int64 [N, M].

        Args:
            dist: the policy's, batch shape [N], nothing mixed in.
            share: of random actions among those taken, in [0, 1], whatever the holds' length.
            generator: draws everything, on `dist`'s device.
        """
        theta = dist.theta.detach()  # (N, M, Kmax)
        allowed = theta > -torch.inf
        even = FactoredCategorical.from_theta(
            torch.zeros_like(theta).where(allowed, -torch.inf), dist.nvec
        )
        # Holds that begin with probability p at each step outside of them fill p L / (p L + 1 − p)
        # of the time, and that is the share.
        begin = share / (share + (1.0 - share) * self.mean_length)
        u = torch.rand(2, *self._held.shape, generator=generator, device=theta.device)
        may_go_on = allowed.gather(-1, self._held.unsqueeze(-1)).squeeze(-1)
        going_on = self._holding & may_go_on & (u[0] * self.mean_length >= 1.0)  # (N, M)
        beginning = ~going_on & (u[1] < begin)
        self._held = torch.where(beginning, even.sample(generator), self._held)
        self._holding = going_on | beginning
        return torch.where(self._holding, self._held, dist.sample(generator))
