"""Score-function estimators: values of f only, f may be anything."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gumbelrl.gumbel.choices import fraction, integer, unknown_name
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, check_value
from gumbelrl.gumbel.gradient import attach_gradient
from gumbelrl.gumbel.noise import gumbel_noise
from torch import Tensor

BASELINES = ("none", "running_mean", "given")


def score(dist: FactoredCategorical, actions: Tensor) -> Tensor:
    """∇_θ log π(D) = D − π, padded [S..., ..., M, K]; actions [S..., ..., M]."""
    pi = dist.pi.detach()
    d = torch.zeros((*actions.shape, pi.shape[-1]), dtype=pi.dtype, device=pi.device)
    return d.scatter_(-1, actions.unsqueeze(-1), 1.0) - pi


@dataclass(frozen=True)
class ReinforceSettings:
    """Baseline b subtracted from f.

    Attributes:
        baseline: "none"; "running_mean"; "given", for an f that offers `baseline() -> [B]` (a
            learned V(s)); or a callable dist -> [B].
        decay: of the running mean, in [0, 1).
    """

    baseline: str | Callable[[FactoredCategorical], Tensor] = "none"
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not callable(self.baseline) and self.baseline not in BASELINES:
            raise unknown_name("baseline", self.baseline, (*BASELINES, "a callable dist -> [B]"))
        decay = fraction("decay of the running mean", self.decay, one=False)
        object.__setattr__(self, "decay", decay)


class Reinforce(Estimator):
    """REINFORCE (Williams 1992): ĝ = (f(D) − b)(D − π)."""

    name = "reinforce"
    Settings = ReinforceSettings
    running_mean: Tensor
    n_calls: Tensor

    def __init__(self, settings: ReinforceSettings | None = None) -> None:
        super().__init__()
        self.settings = ReinforceSettings() if settings is None else settings
        self.register_buffer("running_mean", torch.zeros(()))
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """f(D) [B]."""
        actions = dist.sample(generator)  # [B, M]
        value = check_value(f(dist.one_hot(actions, trusted=True)), dist)
        advantage = (value - self._baseline(dist, f)).detach()
        if self.settings.baseline == "running_mean" and self.training:
            self._update(value.detach())  # after use: b must not depend on this D
        return attach_gradient(value, dist.theta, advantage[..., None, None] * score(dist, actions))

    def _baseline(self, dist: FactoredCategorical, f: Objective) -> Tensor | float:
        b = self.settings.baseline
        if b == "none":
            return 0.0
        if b == "running_mean":
            return self.running_mean
        if callable(b):
            return _check_baseline(b(dist), dist, "baseline(dist)")
        if not callable(getattr(f, "baseline", None)):
            raise ValueError('reinforce with baseline="given" needs an f with baseline() -> [B]')
        given: Tensor = f.baseline()  # type: ignore[attr-defined]
        return _check_baseline(given, dist, "f.baseline()")

    def _update(self, value: Tensor) -> None:
        # Rate 1/n until it reaches 1 − decay: a plain mean first, so that b starts unshrunk.
        self.n_calls += 1
        rate = (1.0 / self.n_calls).clamp(min=1.0 - self.settings.decay)
        self.running_mean += rate * (value.mean() - self.running_mean)


def _check_baseline(b: Tensor, dist: FactoredCategorical, source: str) -> Tensor:
    """Return b [B], to be broadcast over the sample axes [S..., B] of `dist`, or raise."""
    want = tuple(dist.batch_shape)
    fits = isinstance(b, Tensor) and b.shape == want[len(want) - b.ndim :] and b.ndim >= bool(want)
    if not fits:
        got = list(b.shape) if isinstance(b, Tensor) else type(b).__name__
        raise ValueError(
            f"{source} of reinforce must give the baseline {list(want)}, one number per row, got "
            f"{got}"
        )
    return b


@dataclass(frozen=True)
class RlooSettings:
    """k >= 2 samples (and evaluations) per row."""

    k: int = 4

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "k", integer("k", self.k, 2))
        except ValueError:
            raise ValueError(
                f"rloo needs k >= 2 samples, got k={self.k!r}; for one sample take reinforce"
            ) from None


class Rloo(Estimator):
    """Leave-one-out REINFORCE (Kool 2019): ĝ = 1/(k−1) Σᵢ (fᵢ − f̄)(Dᵢ − π).

    The baseline of each sample is the mean of the others, so there is nothing to learn and no bias.
    """

    name = "rloo"
    evaluations = "k"
    capturable = True
    Settings = RlooSettings

    def __init__(self, settings: RlooSettings | None = None) -> None:
        super().__init__()
        self.settings = RlooSettings() if settings is None else settings

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of f over the k samples [B]."""
        k, theta = self.settings.k, dist.theta.detach()
        noise = gumbel_noise((k, *theta.shape), generator, theta.dtype, theta.device)
        actions = (theta + noise).argmax(-1)  # [k, B, M]
        values = check_value(f(dist.one_hot(actions, trusted=True)), dist, (k,))  # [k, B]
        mean = values.mean(0)
        advantage = (values - mean).detach() / (k - 1)
        # Σᵢ (fᵢ − f̄) π = 0, so D alone would do; with π the rounding stays small for large f.
        g_hat = (advantage[..., None, None] * score(dist, actions)).sum(0)  # [B, M, K]
        return attach_gradient(mean, dist.theta, g_hat)
