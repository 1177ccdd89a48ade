"""ReinMax: second-order accuracy from one evaluation, by Heun's rule between π and D."""

from gumbelrl.gumbel.gradient import Term, softmax
from gumbelrl.gumbel.pathwise import Tempered
from torch import Tensor


class ReinMax(Tempered):
    """ReinMax (Liu 2023, arXiv 2304.08612): ĝ = 2 J(m) g − ½ J(π) g, m = ½(S_τ(θ) + D).

    At τ = 1 equal to ½[J(π) g + (D − π)⟨D − π, g⟩], and without bias where f is quadratic. The
    authors use τ >= 1; each τ ≠ 1 trades that exactness for variance.
    """

    name = "reinmax"

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        m = 0.5 * (self.soft(theta) + d)
        return [(2.0, m), (-0.5, softmax(theta))]
