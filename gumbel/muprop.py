"""MuProp: REINFORCE with a first-order Taylor control variate."""

from dataclasses import dataclass

import torch
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, check_value, needs_graph
from gumbelrl.gumbel.gradient import attach_gradient, jacobian_product
from gumbelrl.gumbel.score import score
from torch import Tensor


@dataclass(frozen=True)
class MuPropSettings:
    """MuProp has no settings."""


class MuProp(Estimator):
    """MuProp (Gu 2016): ĝ = (f(D) − f(π) − ⟨f'(π), D − π⟩)(D − π) + J(π) f'(π).

    Unbiased for any f that is differentiable at π; without variance where f is linear.
    """

    name = "muprop"
    evaluations = "2"
    Settings = MuPropSettings

    def __init__(self, settings: MuPropSettings | None = None) -> None:
        super().__init__()
        self.settings = MuPropSettings() if settings is None else settings

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """f(D) [B]."""
        actions = dist.sample(generator)
        value = check_value(f(dist.one_hot(actions, trusted=True)), dist)
        if not (torch.is_grad_enabled() and dist.theta.requires_grad):
            return value
        pi = dist.pi.detach()  # [B, M, K]
        leaf = dist.layout.flatten(pi).to(dist.logits.dtype).requires_grad_()
        f_pi = check_value(f(leaf), dist)
        slope = needs_graph(self.name, f_pi, leaf)
        slope = dist.layout.pad(slope.to(pi.dtype), 0.0)  # f'(π)
        d_pi = score(dist, actions)  # D − π
        rest = value.detach() - f_pi.detach() - (slope * d_pi).sum((-2, -1))
        g_hat = rest[..., None, None] * d_pi + jacobian_product(pi, slope)
        return attach_gradient(value, dist.theta, g_hat)
