"""A convex mixture of a pathwise gradient and one from values alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gumbelrl.gumbel.choices import fraction
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, Pathwise
from gumbelrl.gumbel.gradient import attach_gradient
from gumbelrl.gumbel.temperature import Schedule, make_schedule
from torch import Tensor


@dataclass(frozen=True)
class MixedSettings:
    """The two gradients and the weight ρ of the score.

    Attributes:
        pathwise: name, mapping `{name: reinmax, temperature: 1.1}`, or an estimator.
        score: likewise, one that does not climb ∂f/∂D; best an unbiased one.
        rho: number in [0, 1], a schedule in [0, 1], "measured" (here, by drawing twice), or "meter"
            (by whoever calls `set_alignment`).
        decay: of the running alignment, in [0, 1).
    """

    pathwise: Any = "st_gumbel"
    score: Any = "rloo"
    rho: Any = 0.5
    decay: float = 0.95

    def __post_init__(self) -> None:
        if self.rho not in ("measured", "meter"):
            try:
                object.__setattr__(self, "rho", make_schedule(self.rho, "rho", unit=True))
            except ValueError as error:
                raise ValueError(f'{error} (or rho="measured", or rho="meter")') from None
        decay = fraction("decay of the alignment", self.decay, one=False)
        object.__setattr__(self, "decay", decay)


class Mixed(Estimator):
    """ĝ = ρ · score + (1 − ρ) · pathwise.

    With `rho="measured"`, ρ = 1 − max(0, cos) with cos the alignment of the pathwise gradient with
    the unbiased one, measured on the batches seen so far: full trust at cos = 1, none at cos <= 0
    and none before the first measurement. Each gradient is then drawn twice, since
    ⟨s₁, s₂⟩ of two independent estimates is an unbiased ‖∇‖² where ⟨s, s⟩ would count the noise;
    both draws enter ĝ. ρ is that of earlier batches, so it does not correlate with this one.

    With `rho="meter"` the same ρ follows a cosine that is measured elsewhere, now and then, and
    handed to `set_alignment`; each gradient is drawn once. An agent's trust meter does so
    (`needs_alignment` asks for one): one measurement every some hundred updates instead of double
    draws at each, and against a better reference.
    """

    name = "mixed"
    evaluations = "score + pathwise, twice if measured"
    Settings = MixedSettings
    products: Tensor
    n_calls: Tensor
    cosine: Tensor

    def __init__(self, settings: MixedSettings | None = None) -> None:
        super().__init__()
        self.settings = MixedSettings() if settings is None else settings
        self.pathwise = _build(self.settings.pathwise)
        self.score = _build(self.settings.score)
        _check_roles(self.pathwise, self.score)
        self.register_buffer("products", torch.zeros(3))  # running ⟨p, s⟩, ⟨p₁, p₂⟩, ⟨s₁, s₂⟩
        self.register_buffer("n_calls", torch.zeros(()))
        if self.needs_alignment:
            self.register_buffer("cosine", torch.zeros(()))  # running mean of what was handed over

    @property
    def needs_alignment(self) -> bool:
        """Does ρ wait for `set_alignment`? Without it, it stays 1: the score alone."""
        return bool(self.settings.rho == "meter")

    @torch.no_grad()
    def set_alignment(self, cosine: float) -> None:
        """Take a measured cosine in [−1, 1] between the pathwise gradient and the true one; the
        running mean has rate 1/n until that reaches 1 − decay.

        Raises:
            ValueError: beyond [−1, 1] or NaN, or ρ does not come from a meter.
        """
        if not self.needs_alignment:
            raise ValueError(
                f'set_alignment is for mixed with rho="meter"; here rho={self.settings.rho!r}'
            )
        if not -1.0 <= cosine <= 1.0:
            raise ValueError(f"the alignment is a cosine in [-1, 1], got {cosine!r}")
        self.n_calls += 1
        rate = (1.0 / self.n_calls).clamp(min=1.0 - self.settings.decay)
        self.cosine += rate * (cosine - self.cosine)

    def set_progress(self, p: float) -> None:
        super().set_progress(p)
        self.pathwise.set_progress(p)
        self.score.set_progress(p)

    @property
    def alignment(self) -> Tensor:
        """Running cosine in [−1, 1]; 0 before a measurement and without signal above the noise."""
        if self.needs_alignment:
            return self.cosine
        ps, pp, ss = self.products
        usable = (pp > 0) & (ss > 0)
        return torch.where(usable, ps / (pp * ss).clamp(min=1e-30).sqrt(), 0.0).clamp(-1.0, 1.0)

    @property
    def rho(self) -> Tensor | float:
        """ρ now."""
        if isinstance(self.settings.rho, Schedule):
            return self.settings.rho(self.progress)
        return 1.0 - self.alignment.clamp(min=0.0)

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """ρ times the score estimator's value plus (1 − ρ) times the pathwise one's, [B]."""
        rho = self.rho
        if isinstance(self.settings.rho, Schedule):
            if rho == 0.0:
                return self.pathwise(dist, f, generator)  # type: ignore[no-any-return]
            if rho == 1.0:
                return self.score(dist, f, generator)  # type: ignore[no-any-return]
        elif not self.needs_alignment:
            return self._measured(dist, f, generator, rho)
        score = self.score(dist, f, generator)
        return rho * score + (1.0 - rho) * self.pathwise(dist, f, generator)  # type: ignore

    def _measured(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None,
        rho: Tensor | float,
    ) -> Tensor:
        theta = dist.theta.detach().requires_grad_()
        leaf = FactoredCategorical.from_theta(theta, dist.nvec, dist.logits.dtype)
        pairs = []
        for estimator in (self.pathwise, self.score):
            for _ in range(2):
                value = estimator(leaf, f, generator)  # [B]
                if not (torch.is_grad_enabled() and dist.theta.requires_grad):
                    return value  # type: ignore[no-any-return]
                g_hat = torch.autograd.grad(value.sum(), theta, retain_graph=True)[0]
                pairs.append((value, g_hat))
        (v1, p1), (v2, p2), (w1, s1), (w2, s2) = pairs
        value = 0.5 * (rho * (w1 + w2) + (1.0 - rho) * (v1 + v2))
        g_hat = 0.5 * (rho * (s1 + s2) + (1.0 - rho) * (p1 + p2))
        if self.training:
            now = torch.stack(
                [0.25 * ((p1 + p2) * (s1 + s2)).sum(), (p1 * p2).sum(), (s1 * s2).sum()]
            ).to(self.products.dtype)
            # Rate 1/n until it reaches 1 − decay: one noisy first batch must not set ρ for long.
            self.n_calls += 1
            rate = (1.0 / self.n_calls).clamp(min=1.0 - self.settings.decay)
            self.products = self.products + rate * (now - self.products)
        return attach_gradient(value, dist.theta, g_hat)


def _check_roles(pathwise: Estimator, score: Estimator) -> None:
    """Raise when the two are swapped, nested or of one kind: ρ would mean something else."""
    if not isinstance(pathwise, Pathwise):
        raise ValueError(
            f"mixed needs an estimator that climbs ∂f/∂D as pathwise=, got {_called(pathwise)}; "
            "take one such as st_gumbel, straight_through or reinmax"
        )
    if isinstance(score, (Pathwise, Mixed)):
        raise ValueError(
            f"mixed needs an estimator from values as score=, got {_called(score)}; take one such "
            "as rloo, reinforce or local_expectation"
        )


def _called(estimator: Estimator) -> str:
    return repr(getattr(estimator, "name", type(estimator).__name__))


def _build(spec: Any) -> Estimator:
    from gumbelrl.gumbel.registry import make_estimator  # the registry names this file's class

    if isinstance(spec, Mapping):
        settings = {str(key): value for key, value in spec.items()}
        return make_estimator(settings.pop("name", None), **settings)
    return make_estimator(spec)
