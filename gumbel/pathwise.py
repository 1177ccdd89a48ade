"""Straight-through estimators of one evaluation: one surrogate p each, ĝ = (∂p/∂θ)ᵀ g."""

from dataclasses import dataclass
from typing import Any

import torch
from gumbelrl.gumbel.estimator import Pathwise
from gumbelrl.gumbel.temperature import Schedule, make_schedule
from torch import Tensor


@dataclass(frozen=True)
class TemperatureSettings:
    """τ: a number > 0, a Schedule, or a mapping for `make_schedule`."""

    temperature: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", make_schedule(self.temperature))


class Tempered(Pathwise):
    """A pathwise estimator with one temperature."""

    Settings = TemperatureSettings

    def __init__(self, settings: TemperatureSettings | None = None) -> None:
        super().__init__()
        self.settings = self.Settings() if settings is None else settings
        self.schedule: Schedule = self.settings.temperature

    @property
    def temperature(self) -> float:
        """τ at the present progress."""
        return self.schedule(self.progress)

    def soft(self, x: Tensor) -> Tensor:
        """S_τ(x) = softmax(x/τ) over the last axis."""
        tau = self.temperature
        return (x if tau == 1.0 else x / tau).softmax(-1)


class STGumbel(Tempered):
    """Straight-through Gumbel-Softmax (Jang 2016): ĝ = J(y) g/τ, y = S_τ(θ + G), the same G.

    Bias falls and variance grows as τ → 0; biased even for linear f at τ = 1.
    """

    name = "st_gumbel"

    def surrogate(self, theta: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        return self.soft(theta + noise)


class GumbelSoftmaxEstimator(Tempered):
    """Gumbel-Softmax / Concrete (Jang 2016, Maddison 2016): the sample is y = S_τ(θ + G), soft.

    Unbiased for the relaxed objective E[f(y)] only; f is evaluated off the corners.
    """

    name = "gumbel_softmax"

    def relax(self, theta: Tensor, noise: Tensor) -> Tensor:
        return self.soft(theta + noise)


class StraightThrough(Tempered):
    """Straight-through (Bengio 2013): ĝ = J(S_τ(θ)) g/τ, D ~ Cat(π).

    At τ = 1 exact, without variance, where f is linear in D.
    """

    name = "straight_through"

    def surrogate(self, theta: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        return self.soft(theta)


def one_hot_like(theta: Tensor, index: Tensor) -> Tensor:
    """[..., K] one-hot of index [...] in θ's shape and dtype, without a graph."""
    return torch.zeros_like(theta.detach()).scatter_(-1, index.unsqueeze(-1), 1.0)
