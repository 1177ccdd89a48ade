"""Straight-through estimators of one evaluation: one p each, ĝ = J(p) g/τ."""

from dataclasses import dataclass
from typing import Any

import torch
from gumbelrl.gumbel.choices import positive
from gumbelrl.gumbel.estimator import Pathwise
from gumbelrl.gumbel.fused import KINDS, Fused
from gumbelrl.gumbel.gradient import (
    FAR_DOWN,
    Term,
    choose,
    softmax,
    softmax_,
    straight_through,
    transformed,
)
from gumbelrl.gumbel.temperature import Constant, Schedule, make_schedule
from torch import Tensor, nn


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
        self._held: Tensor | None = None

    @property
    def temperature(self) -> float | Tensor:
        """τ at the present progress."""
        return self.schedule(self.progress) if self._held is None else self._held

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        return not isinstance(self.schedule, nn.Module)  # a learned τ is tuned on the way

    def hold_on(self, device: torch.device) -> None:
        if self.capturable and not isinstance(self.schedule, Constant):
            self._held = torch.tensor(self.schedule(self.progress), device=device)

    def set_progress(self, p: float) -> None:
        super().set_progress(p)
        if self._held is not None:
            self._held.fill_(self.schedule(p))

    def fused(self) -> Fused | None:
        # Of the class itself: a subclass with other terms is not what the kernels compute.
        if vars(type(self)).get("name") not in KINDS:
            return None
        tau = self.temperature
        if isinstance(tau, Tensor) and tau.requires_grad:
            return None
        k, gap = getattr(self.settings, "k", 1), getattr(self.settings, "gap", 1.0)
        return Fused(self.name, tau, k, gap)

    def soft(self, x: Tensor) -> Tensor:
        """S_τ(x) = softmax(x/τ) over the last axis."""
        tau = self.temperature
        if isinstance(tau, Tensor):  # learned: −∞/τ has the derivative ∞ · 0 in τ
            x = x.clamp(min=FAR_DOWN)
        return softmax(x / tau)

    def term(self, x: Tensor) -> list[Term]:
        """ĝ = J(S_τ(x)) g/τ."""
        return [(1.0 / self.temperature, self.soft(x))]


class STGumbel(Tempered):
    """Straight-through Gumbel-Softmax (Jang 2016): ĝ = J(y) g/τ, y = S_τ(θ + G), the same G.

    Bias falls and variance grows as τ → 0; biased even for linear f at τ = 1.
    """

    name = "st_gumbel"

    def sample_and_terms(self, theta: Tensor, noise: Tensor) -> tuple[Tensor, list[Term]]:
        tau = self.temperature
        if isinstance(tau, Tensor) or transformed():
            return super().sample_and_terms(theta, noise)
        z = theta + noise
        z -= z.amax(-1, keepdim=True)  # 0 at the argmax, for the softmax too
        d = choose(z, 0.0)
        return d, [(1.0 / tau, softmax_(z if tau == 1.0 else z.div_(tau)))]

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        return self.term(theta + noise)


class GumbelSoftmaxEstimator(Tempered):
    """Gumbel-Softmax / Concrete (Jang 2016, Maddison 2016): the sample is y = S_τ(θ + G), soft.

    Unbiased for the relaxed objective E[f(y)] only; f is evaluated off the corners.
    """

    name = "gumbel_softmax"

    def relax(self, theta: Tensor, noise: Tensor) -> Tensor:
        return ((theta + noise) / self.temperature).softmax(-1)


class StraightThrough(Tempered):
    """Straight-through (Bengio 2013): ĝ = J(S_τ(θ)) g/τ, D ~ Cat(π).

    At τ = 1 exact, without variance, where f is linear in D.
    """

    name = "straight_through"

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        return self.term(theta)


@dataclass(frozen=True)
class DecoupledSettings:
    """τ_f of the sample and τ_b of the gradient, each as `make_schedule` takes it."""

    temperature_forward: Any = 1.0
    temperature_backward: Any = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature_forward", "temperature_backward"):
            object.__setattr__(self, name, make_schedule(getattr(self, name), name))


class DecoupledSTGumbel(Pathwise):
    """Decoupled ST-GS (Shah 2024): z = θ + τ_f G, D = argmax z, ĝ = J(S_τb(z)) g/τ_b.

    D ~ Cat(softmax(θ/τ_f)): with τ_f ≠ 1 the sample is not that of `dist`, whose log_prob and
    entropy know nothing of it. The same gradient without that seam is `st_gumbel` at τ_b/τ_f on a
    distribution with `forward_temperature=τ_f`. At τ_f = 1 it is ST-GS.
    """

    name = "decoupled_st_gumbel"
    Settings = DecoupledSettings

    def __init__(self, settings: DecoupledSettings | None = None) -> None:
        super().__init__()
        self.settings = DecoupledSettings() if settings is None else settings

    def relax(self, theta: Tensor, noise: Tensor) -> Tensor:
        tau_f = self.settings.temperature_forward(self.progress)
        tau_b = self.settings.temperature_backward(self.progress)
        z = theta + tau_f * noise
        z = z.detach()
        return straight_through(theta, choose(z), [(1.0 / tau_b, softmax(z / tau_b))])


@dataclass(frozen=True)
class GappedSettings(TemperatureSettings):
    """τ, and the gap >= 0 by which the sampled category must lead."""

    gap: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gap", positive("gap", self.gap, zero=True))


class GappedST(Tempered):
    """Gapped straight-through (Fan 2022): ĝ = J(S_τ(θ + sg(m₁ − m₂))) g/τ, D ~ Cat(π).

    m₁ = (max θ − θ) ⊙ D lifts the sample to the top, m₂ = relu(θ − max θ + gap) ⊙ (1 − D) pushes
    the others a gap below it. Deterministic given D.
    """

    name = "gapped_st"
    Settings = GappedSettings
    settings: GappedSettings

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        below_top = theta - theta.amax(-1, keepdim=True)  # θ − max θ, −inf where forbidden
        # `where` and not ⊙: ∞ · 0 is NaN on masked logits.
        shift = torch.where(d.bool(), -below_top, -(below_top + self.settings.gap).relu())
        return self.term(theta + shift)
