"""Gumbel-Rao: ST-GS averaged over the noise that would have given the same sample."""

from dataclasses import dataclass

import torch
from gumbelrl.gumbel.choices import integer
from gumbelrl.gumbel.gradient import Term, softmax
from gumbelrl.gumbel.noise import conditional_gumbels, gumbel_noise
from gumbelrl.gumbel.pathwise import TemperatureSettings, Tempered
from torch import Tensor


@dataclass(frozen=True)
class GumbelRaoSettings(TemperatureSettings):
    """τ, and k >= 1 conditional noises (10 gets most of the gain)."""

    k: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", integer("k", self.k, 1))


class GumbelRao(Tempered):
    """Gumbel-Rao-K (Paulus 2020): ĝ = mean over k of J(S_τ(θ + sg(G⁽ᵏ⁾))) g/τ, G⁽ᵏ⁾ given D.

    Expectation equal to that of ST-GS, variance never larger, one evaluation of f whatever k.
    """

    name = "gumbel_rao"
    Settings = GumbelRaoSettings
    settings: GumbelRaoSettings

    def draw(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[1 + k, ..., M, K]: the noise of D, then those of the conditionals."""
        return gumbel_noise(
            (1 + self.settings.k, *theta.shape), generator, theta.dtype, theta.device
        )

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        # z = θ + G⁽ᵏ⁾, and G⁽ᵏ⁾ is a constant: no gradient through it.
        z = conditional_gumbels(theta, d.bool(), noise[1:])  # [k, ..., M, K]
        return [(1.0 / (self.settings.k * self.temperature), self.soft(z))]


@dataclass(frozen=True)
class ReinMaxRaoSettings(GumbelRaoSettings):
    """τ and k, by default those of the paper's best runs."""

    temperature: object = 0.7
    k: int = 32


class ReinMaxRao(GumbelRao):
    """ReinMax-Rao (arXiv 2603.08257): π_D = ½(π + D), θ_D = log π_D,
    ĝ = 2 GR_{τ,K}(θ_D given D) g − ½ J(π) g.

    The Gumbel-Rao term smooths J(m) of ReinMax, so variance falls, at the price of its exactness
    on quadratics.
    """

    name = "reinmax_rao"
    Settings = ReinMaxRaoSettings
    settings: ReinMaxRaoSettings

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        pi = softmax(theta)
        z = conditional_gumbels((0.5 * (pi + d)).log(), d.bool(), noise[1:])  # [k, ..., M, K]
        return [(2.0 / (self.settings.k * self.temperature), self.soft(z)), (-0.5, pi)]
