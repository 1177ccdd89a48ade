"""How far an estimator's gradient is from the truth, on this distribution and this f."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from gumbelrl.gumbel.choices import integer
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.enumeration import Exact, ExactSettings, LocalExpectation
from gumbelrl.gumbel.estimator import Estimator, Objective
from gumbelrl.gumbel.registry import make_estimator
from gumbelrl.gumbel.score import Rloo, RlooSettings
from torch import Tensor


@dataclass(frozen=True)
class GradientReport:
    """ĝ against ∇ = ∂E[f]/∂θ', both over the whole batch as one vector.

    Attributes:
        bias: ‖E ĝ − ∇‖ / ‖∇‖; the sampling error of n draws is subtracted from its square.
        std: sqrt(tr cov ĝ) / ‖∇‖ of a single draw.
        cosine: between E ĝ and ∇.
        norm_ratio: ‖E ĝ‖ / ‖∇‖; an ablation at one learning rate is unfair without it.
        gradient_norm: ‖∇‖.
        reference: where ∇ came from: "enumeration", "local_expectation" or "leave_one_out".
        bias_error: standard error of `bias` around an unbiased estimator, same unit.
        n: draws.
    """

    bias: float
    std: float
    cosine: float
    norm_ratio: float
    gradient_norm: float
    reference: str
    bias_error: float
    n: int


class _Repeated:
    """f over n copies of the batch; `table` is left out, since it knows [B] only."""

    def __init__(self, f: Objective) -> None:
        self.f = f
        if callable(getattr(f, "baseline", None)):
            self.baseline: Callable[[], Tensor] = self._baseline
        if callable(getattr(f, "per_factor", None)):
            self.per_factor: Callable[[Tensor], Tensor] = self._per_factor
        self.n = 1

    def __call__(self, one_hot: Tensor) -> Tensor:
        return self.f(one_hot)

    def _baseline(self) -> Tensor:
        b: Tensor = self.f.baseline()  # type: ignore[attr-defined]
        return b.expand(self.n, *b.shape)

    def _per_factor(self, one_hot: Tensor) -> Tensor:
        per_factor: Callable[[Tensor], Tensor] = self.f.per_factor  # type: ignore[attr-defined]
        return torch.stack([per_factor(copy) for copy in one_hot])  # [n, B, ΣK]


class _Values(_Repeated):
    """The same without a graph: references from values alone need no slopes."""

    @torch.no_grad()
    def __call__(self, one_hot: Tensor) -> Tensor:
        return super().__call__(one_hot)

    @torch.no_grad()
    def _per_factor(self, one_hot: Tensor) -> Tensor:
        return super()._per_factor(one_hot)


def gradient_report(
    estimator: str | Estimator,
    dist: FactoredCategorical,
    f: Objective,
    n: int = 256,
    *,
    generator: torch.Generator | None = None,
    enumerate_up_to: int = 256,
    expand_up_to: int = 256,
) -> GradientReport:
    """Measure bias, spread and direction of one estimator.

    The truth is enumeration where ∏K <= `enumerate_up_to` (with one factor, K <= `expand_up_to`
    too: local expectation would be the same, n times), the mean of n local expectations where
    ΣK <= `expand_up_to`, and of n leave-one-out estimates of 16 samples beyond. Squared norms of
    noisy means are corrected by their own variance, so a small n gives noisy figures but no
    systematic error in the squares. Nothing is accumulated into f's parameters; the estimator is
    put in evaluation mode, so nothing that it learns moves. The figures are Python floats, so the
    call waits for a GPU.

    Args:
        estimator: any, or the name of one with its default settings.
        dist: batch shape [B].
        f: [S..., B, ΣK] -> [S..., B].
        n: draws, >= 2. 64 suffices for a curve in training.
        generator: so that measuring does not move the training's own random stream.

    Raises:
        ValueError: n < 2 or not an integer, an unknown estimator.
    """
    (report,) = gradient_reports(
        [estimator],
        dist,
        f,
        n,
        generator=generator,
        enumerate_up_to=enumerate_up_to,
        expand_up_to=expand_up_to,
    )
    return report


def gradient_reports(
    estimators: Sequence[str | Estimator],
    dist: FactoredCategorical,
    f: Objective,
    n: int = 256,
    *,
    generator: torch.Generator | None = None,
    enumerate_up_to: int = 256,
    expand_up_to: int = 256,
) -> list[GradientReport]:
    """`gradient_report` of several estimators against one truth, which is mostly what costs."""
    try:
        n = integer("n", n, 2)
    except ValueError:
        raise ValueError(
            f"gradient_report needs n >= 2 draws, an integer, to see a spread, got n={n!r}"
        ) from None
    built = [make_estimator(estimator) for estimator in estimators]
    drawn = [_moments(estimator, dist, _Repeated(f), n, generator) for estimator in built]
    truth, reference, truth_spread = _truth(dist, f, n, generator, enumerate_up_to, expand_up_to)
    return [_compare(*moments, truth, truth_spread, reference, n) for moments in drawn]


def _compare(
    mean: Tensor, spread: float, truth: Tensor, truth_spread: float, reference: str, n: int
) -> GradientReport:
    """The report on ĝ of mean [B, M, K] and tr cov `spread`, against ∇ likewise."""
    # E‖x̄‖² = ‖E x‖² + tr cov x̄ for every noisy mean x̄
    norm2_truth = max(truth.square().sum().item() - truth_spread / n, 0.0)
    norm2_mean = max(mean.square().sum().item() - spread / n, 0.0)
    error2 = (mean - truth).square().sum().item() - (spread + truth_spread) / n
    inner = (mean * truth).sum().item()
    norm_truth = norm2_truth**0.5
    unit = norm_truth if norm_truth > 0 else float("nan")
    both = (norm2_mean * norm2_truth) ** 0.5
    return GradientReport(
        bias=max(error2, 0.0) ** 0.5 / unit,
        std=spread**0.5 / unit,
        cosine=max(-1.0, min(1.0, inner / both)) if both > 0 else 0.0,
        norm_ratio=norm2_mean**0.5 / unit,
        gradient_norm=norm_truth,
        reference=reference,
        bias_error=((spread + truth_spread) / n) ** 0.5 / unit,
        n=n,
    )


def _truth(
    dist: FactoredCategorical,
    f: Objective,
    n: int,
    generator: torch.Generator | None,
    enumerate_up_to: int,
    expand_up_to: int,
) -> tuple[Tensor, str, float]:
    """(∇ [B, M, K], its source, tr cov of one draw of it)."""
    joint, total = prod(dist.nvec), dist.layout.total
    if joint <= max(enumerate_up_to, expand_up_to if dist.layout.m == 1 else 0):
        exact = Exact(ExactSettings(joint))
        return _named("enumeration", _moments(exact, dist, _Values(f), n, generator))
    if total <= expand_up_to:
        local = LocalExpectation(ExactSettings(expand_up_to))
        return _named("local_expectation", _moments(local, dist, _Values(f), n, generator))
    many = Rloo(RlooSettings(16))
    return _named("leave_one_out", _moments(many, dist, _Values(f), n, generator))


def _named(name: str, moments: tuple[Tensor, float]) -> tuple[Tensor, str, float]:
    return moments[0], name, moments[1]


def _leaf(dist: FactoredCategorical, n: int | None) -> FactoredCategorical:
    """The distribution on a fresh leaf θ' [(n,) B, M, K]."""
    theta = dist.theta.detach()
    theta = theta.clone() if n is None else theta.expand(n, *theta.shape).clone()
    return FactoredCategorical.from_theta(theta.requires_grad_(), dist.nvec, dist.logits.dtype)


def _moments(
    estimator: Estimator,
    dist: FactoredCategorical,
    f: _Repeated,
    n: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, float]:
    """(mean ĝ [B, M, K], tr cov of one draw) over n draws, in slices that fit a cache."""
    if isinstance(estimator, Exact):  # all draws are one, and f.table may serve
        leaf = _leaf(dist, None)
        with torch.enable_grad():
            value = estimator(leaf, f.f)
        return torch.autograd.grad(value.sum(), leaf.theta)[0].double(), 0.0
    widest = max(1, 2**20 // max(1, dist.theta.numel() * _copies(estimator, dist)))
    total = torch.zeros_like(dist.theta, dtype=torch.float64, requires_grad=False)
    squares = torch.zeros_like(total)
    with _evaluating(estimator), torch.enable_grad():
        for start in range(0, n, widest):
            f.n = min(widest, n - start)
            leaf = _leaf(dist, f.n)
            value = estimator(leaf, f, generator)
            g = torch.autograd.grad(value.sum(), leaf.theta)[0].double()  # [n, B, M, K]
            total += g.sum(0)
            squares += g.square().sum(0)
    mean = total / n
    variance = (squares - n * mean.square()).sum().item() / (n - 1)
    return mean, max(variance, 0.0)


def _copies(estimator: Estimator, dist: FactoredCategorical) -> int:
    """One-hots that one draw lays out at a time."""
    if estimator.evaluations == "∏K":
        return prod(dist.nvec)
    if estimator.evaluations == "ΣK":
        return dist.layout.total
    return int(getattr(getattr(estimator, "settings", None), "k", 1))


@contextmanager
def _evaluating(estimator: Estimator) -> Iterator[None]:
    was = estimator.training
    estimator.eval()
    try:
        yield
    finally:
        estimator.train(was)
