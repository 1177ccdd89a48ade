"""A temperature that learns from how far the estimator's gradient is from the truth.

Neither of the two obvious objectives will do. Climbing f through τ follows the same biased
gradient that τ is meant to correct. Descending the variance of ĝ alone drives τ to infinity, where
ĝ vanishes. What is minimised here is the mean squared error against the true gradient ∇,

    E‖ĝ_τ − ∇‖² = E‖ĝ_τ‖² − 2 E⟨ĝ_τ, r⟩ + const,

with r an independent unbiased estimate (leave-one-out), so ∇ itself is never needed. It is squared
bias plus variance: the trade that τ makes.
"""

from math import log

import torch
from gumbelrl.gumbel.choices import positive
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Objective, Pathwise, check_value, needs_graph
from gumbelrl.gumbel.gradient import choose, g_hat
from gumbelrl.gumbel.pathwise import Tempered
from gumbelrl.gumbel.score import Rloo, RlooSettings
from gumbelrl.gumbel.temperature import Schedule
from gumbelrl.gumbel.tuning import Tuned
from torch import Tensor, nn


class LearnedTemperature(nn.Module, Schedule):
    """τ of one straight-through estimator, moved by `tune` and by nothing else.

        tau = LearnedTemperature(1.0)
        estimator = make_estimator("st_gumbel", temperature=tau)
        tau.tune(estimator, dist, f, generator)        # every few updates: 1 + k evaluations of f

    Its state (τ and the moments of Adam) is in the estimator's `state_dict`.

    Args:
        initial: τ > 0 to start from.
        learning_rate: of Adam on log τ.
        lowest, highest: bounds of τ.
        k: samples of the unbiased estimate, >= 2.
    """

    def __init__(
        self,
        initial: float = 1.0,
        learning_rate: float = 0.02,
        lowest: float = 0.1,
        highest: float = 10.0,
        k: int = 4,
    ) -> None:
        super().__init__()
        self.bounds = positive("lowest", lowest), positive("highest", highest)
        if not lowest <= positive("initial", initial) <= highest:
            raise ValueError(f"initial must be in [{lowest}, {highest}], got {initial!r}")
        self.tuned = Tuned(torch.tensor([log(initial)]), learning_rate)
        self.unbiased = Rloo(RlooSettings(k))
        self._trial: Tensor | None = None

    def forward(self, p: float) -> Tensor:
        """τ as a tensor, so that it never waits for a GPU; progress plays no part."""
        log_tau = self.tuned.phi[0] if self._trial is None else self._trial[0]
        return log_tau.exp()

    def tune(
        self,
        estimator: Tempered,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One step of τ. Returns the objective before it, a scalar (up to the constant ‖∇‖²).

        Raises:
            ValueError: the temperature of `estimator` is not this one, or it is the soft
                gumbel_softmax, whose sample itself moves with τ.
        """
        tunable = isinstance(estimator, Tempered) and type(estimator).terms is not Pathwise.terms
        if not tunable or estimator.schedule is not self:
            name = getattr(estimator, "name", type(estimator).__name__)
            raise ValueError(
                f"tune moves the temperature of a straight-through estimator that was made with "
                f"temperature=this LearnedTemperature, got {name!r}"
                + (" with another temperature" if tunable else ", which has none to tune")
                + '; e.g. make_estimator("st_gumbel", temperature=tau)'
            )
        theta = dist.theta.detach()
        with torch.enable_grad():
            leaf = FactoredCategorical.from_theta(
                theta.clone().requires_grad_(), dist.nvec, dist.logits.dtype
            )
            r = torch.autograd.grad(self.unbiased(leaf, f, generator).sum(), leaf.theta)[0]
            noise = estimator.draw(theta, generator)
            d = choose(theta + (noise[0] if noise.ndim > theta.ndim else noise))
            point = dist.layout.flatten(d).to(dist.logits.dtype).requires_grad_()
            slope = needs_graph(estimator.name, check_value(f(point), dist), point)
            g = dist.layout.pad(slope.to(theta.dtype), 0.0)
            try:
                self._trial = self.tuned.phi.detach().requires_grad_()
                estimate = g_hat(estimator.terms(theta, noise, d), g)
                loss = (estimate.square() - 2.0 * estimate * r).sum((-2, -1)).mean()
                (slope_tau,) = torch.autograd.grad(loss, self._trial)
            finally:
                self._trial = None
        self.tuned.step(slope_tau)
        low, high = self.bounds
        self.tuned.phi = self.tuned.phi.clamp(log(low), log(high))
        return loss.detach()
