"""Actions to train by: the policy's, mixed with uniformly random ones that may last."""

from __future__ import annotations

import torch
from gumbelrl.agents.captured import CapturedStep, HeldInputs, unless_it_waits
from gumbelrl.agents.policies import CategoricalPolicy
from gumbelrl.agents.replay import Observations
from gumbelrl.gumbel import FactoredCategorical
from torch import Tensor


class Exploration:
    """From observations to the actions that are taken in training.

    On CUDA it can be one graph, from the copied observation to the drawn action: launching its
    operations one by one takes longer than a small network's whole update.

    Args:
        policy: on its device, with its generator.
        n_envs: N.
        mean_length: L >= 1, steps for which a random action is held on average.
        capture: record it as a CUDA graph.
    """

    def __init__(
        self, policy: CategoricalPolicy, n_envs: int, mean_length: float, capture: bool
    ) -> None:
        assert policy.generator is not None
        device = policy.device
        self.policy, self.generator = policy, policy.generator
        self._held = (
            HeldActions(n_envs, policy.actions.n_factors, mean_length, device)
            if mean_length > 1
            else None
        )
        self._captured: CapturedStep[Tensor] | None = (
            CapturedStep([self.generator]) if capture else None
        )
        self._inputs = HeldInputs()
        # In place, where a graph sees it move; the eager way on CUDA computes with it too.
        self._share = torch.zeros((), device=device) if device.type == "cuda" else None

    def end(self, ended: Tensor | None = None) -> None:
        """Of environments whose episode ended, bool [N]; None is all of them."""
        if self._held is not None:
            self._held.end(ended)

    @torch.no_grad()
    def choose(self, obs: Observations, mask: Tensor | None, share: float) -> Tensor:
        """Actions, int64 [N, M]; a graph's lie where the next ones will.

        Args:
            obs: of N environments, preprocessed as Stable-Baselines3's `obs_to_tensor` does.
            mask: bool [N, ΣK], True where allowed.
            share: of uniformly random actions, in [0, 1].
        """
        mix: float | Tensor = share
        if self._share is not None and 0.0 < share < 1.0:
            mix = self._share.fill_(share)
        if self._captured is None:
            return self._draw(obs, mask, mix)
        obs, mask = self._inputs.take("obs", obs), self._inputs.take("mask", mask)
        fixed = (
            None if isinstance(value, Tensor) else value
            for value in (mix, self.policy.forward_temperature)
        )
        key = (self._inputs.version, mask is None, *fixed)
        actions = self._captured.run(key, lambda: self._draw(obs, mask, mix))
        self._captured = unless_it_waits(self._captured, "the policy", "acting runs")
        return actions

    def _draw(self, obs: Observations, mask: Tensor | None, mix: float | Tensor) -> Tensor:
        if self._held is None:
            return self.policy.dist(obs, mask, uniform_mix=mix).sample(self.generator)
        return self._held.choose(self.policy.dist(obs, mask), mix, self.generator)


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

    def choose(
        self, dist: FactoredCategorical, share: float | Tensor, generator: torch.Generator
    ) -> Tensor:
        """Actions to take now, int64 [N, M].

        Args:
            dist: the policy's, batch shape [N], nothing mixed in.
            share: of random actions among those taken, in [0, 1], whatever the holds' length; a
                tensor [] on its device is not looked at.
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
        torch.where(beginning, even.sample(generator), self._held, out=self._held)
        torch.logical_or(going_on, beginning, out=self._holding)
        return torch.where(self._holding, self._held, dist.sample(generator))
