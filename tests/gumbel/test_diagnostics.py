"""gradient_report: right against known answers, honest about its own noise, and free of traces."""

import dataclasses
import math

import pytest
import torch
from gumbelrl.gumbel import FactoredCategorical, gradient_report, make_estimator

F64 = torch.float64


def objective(total, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(total, 12, generator=generator, dtype=F64) / total**0.5
    v = torch.randn(12, generator=generator, dtype=F64)
    return lambda d: (2.0 * d @ w).tanh() @ v


@pytest.mark.parametrize(
    ("nvec", "reference"),
    [((6,), "enumeration"), ((3, 2, 4), "enumeration"), ((3,) * 7, "local_expectation")],
)
def test_unbiased_and_biased_are_told_apart(nvec, reference):
    """Unbiased: bias within 4 of its standard errors (false alarm below 1e-3); ST-GS: beyond."""
    generator = torch.Generator().manual_seed(0)
    dist = FactoredCategorical(torch.randn(3, sum(nvec), generator=generator, dtype=F64), nvec)
    f = objective(sum(nvec))
    fair = gradient_report(make_estimator("rloo"), dist, f, 2000, generator=generator)
    assert fair.reference == reference
    assert fair.bias < 4 * fair.bias_error
    assert abs(fair.norm_ratio - 1) < 4 * fair.bias_error
    assert fair.cosine > 0.98
    st = gradient_report(make_estimator("st_gumbel"), dist, f, 2000, generator=generator)
    assert st.bias > 4 * st.bias_error
    assert st.std < fair.std


def test_beyond_both_limits_the_reference_is_leave_one_out():
    dist = FactoredCategorical(torch.zeros(1, 600, dtype=F64), (2,) * 300)
    report = gradient_report(
        make_estimator("straight_through"), dist, objective(600), 64, expand_up_to=100
    )
    assert report.reference == "leave_one_out"
    assert math.isfinite(report.bias)


def test_known_figures():
    """K = 2, f = D₁, θ = 0: ∇ = (−¼, ¼). REINFORCE gives ½(−1, 1) or 0 at even odds: mean right,
    standard deviation ‖½(−1, 1)‖/2 = √2/4 = ‖∇‖, so `std` is 1; ST is exact."""
    dist = FactoredCategorical(torch.zeros(1, 2, dtype=F64))
    f = lambda d: d[..., 1]  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    report = gradient_report(make_estimator("reinforce"), dist, f, 20_000, generator=generator)
    assert report.gradient_norm == pytest.approx(math.sqrt(2) / 4)
    assert report.std == pytest.approx(1.0, abs=0.03)
    assert report.norm_ratio == pytest.approx(1.0, abs=0.05)
    exact = gradient_report(make_estimator("straight_through"), dist, f, 10)
    assert exact.bias == pytest.approx(0.0, abs=1e-7)
    assert exact.std == pytest.approx(0.0, abs=1e-7)


def test_the_sampling_error_is_not_called_bias():
    """Over 50 small reports (n = 16) of an unbiased estimator, bias² averages near 0 and not near
    std²/n, which is what an uncorrected norm would report."""
    dist = FactoredCategorical(torch.randn(2, 6, dtype=F64))
    f, generator = objective(6), torch.Generator().manual_seed(1)
    reports = [
        gradient_report(make_estimator("reinforce"), dist, f, 16, generator=generator)
        for _ in range(50)
    ]
    raw = sum(r.std**2 / r.n for r in reports) / 50
    assert sum(r.bias**2 for r in reports) / 50 < 0.7 * raw


def test_it_leaves_no_trace():
    """No gradient in f's parameters or the logits, no step of what tunes itself, no draw from the
    global stream, training mode restored."""
    logits = torch.randn(3, 4, requires_grad=True)
    phi = torch.randn(4, requires_grad=True)
    estimator = make_estimator("rebar").train()
    state = torch.random.get_rng_state()
    before = {key: value.clone() for key, value in estimator.state_dict().items()}
    gradient_report(
        estimator,
        FactoredCategorical(logits),
        lambda d: (d * phi).sum(-1) ** 2,
        8,
        generator=torch.Generator().manual_seed(0),
    )
    assert phi.grad is None
    assert logits.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert estimator.training
    for key, value in estimator.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_given_baseline_and_a_zero_gradient_are_understood():
    class Flat:
        def __call__(self, d):
            return 0.0 * d.sum(-1) + 2.0

        def baseline(self):
            return torch.full((3,), 2.0)

    dist = FactoredCategorical(torch.zeros(3, 4))  # π = ¼ to the bit, so J(π) c is 0 to the bit
    report = gradient_report(make_estimator("reinforce", baseline="given"), dist, Flat(), 8)
    assert report.gradient_norm == 0.0
    assert math.isnan(report.bias)
    assert dataclasses.asdict(report)["n"] == 8


def test_one_draw_has_no_spread():
    with pytest.raises(ValueError, match="n >= 2"):
        gradient_report(
            make_estimator("rloo"), FactoredCategorical(torch.zeros(1, 2)), objective(2), 1
        )
