"""ReinMax: second-order accuracy from one evaluation, by Heun's rule between π and D."""

import torch
from gumbelrl.gumbel.pathwise import Tempered, one_hot_like
from torch import Tensor


def jacobian_product(p: Tensor, x: Tensor) -> Tensor:
    """J(p) x = p ⊙ (x − ⟨p, x⟩) over the last axis, [..., K]. J is symmetric, so with a constant p
    this is also a surrogate linear in x whose gradient for g is J(p) g."""
    return p * (x - (p * x).sum(-1, keepdim=True))


def finite(theta: Tensor) -> Tensor:
    """θ with 0 in place of −inf: in a linear surrogate the p there is 0, and 0 · ∞ is NaN."""
    return theta.where(theta > -torch.inf, 0.0)


class ReinMax(Tempered):
    """ReinMax (Liu 2023, arXiv 2304.08612): ĝ = 2 J(m) g − ½ J(π) g, m = ½(S_τ(θ) + D).

    At τ = 1 equal to ½[J(π) g + (D − π)⟨D − π, g⟩], and without bias where f is quadratic. The
    authors use τ >= 1; each τ ≠ 1 trades that exactness for variance.
    """

    name = "reinmax"

    def surrogate(self, theta: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        fixed, x = theta.detach(), finite(theta)
        m = 0.5 * (self.soft(fixed) + one_hot_like(theta, index))
        return 2.0 * jacobian_product(m, x) - 0.5 * jacobian_product(fixed.softmax(-1), x)
