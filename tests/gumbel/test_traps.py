"""Every trap of the field that this package claims to avoid."""

import math

import pytest
import torch
import torch.nn.functional as F
from gumbelrl.gumbel import (
    ESTIMATORS,
    FactoredCategorical,
    Pathwise,
    gradient_report,
    gumbel_noise,
    gumbel_softmax,
    make_estimator,
)

PATHWISE = [name for name, cls in ESTIMATORS.items() if issubclass(cls, Pathwise)]
STRAIGHT = [name for name in PATHWISE if name != "gumbel_softmax"]


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_one_hot_is_exact(name, dtype):
    """`one_hot + p − sg(p)` fails in about a fifth of float32 rows; none may here."""
    logits = torch.randn(2000, 7).to(dtype).requires_grad_()
    d = make_estimator(name).rsample(FactoredCategorical(logits))
    assert d.dtype == dtype
    assert d.requires_grad
    assert ((d == 0) | (d == 1)).all()
    assert (d.sum(-1) == 1).all()


def test_the_usual_formula_is_not_exact():
    """So that the test above is known to see it."""
    p = torch.randn(2000, 7).softmax(-1)
    hard = F.one_hot(p.argmax(-1), 7).float()
    naive = hard + p - p
    assert (naive != hard).any(-1).float().mean() > 0.05


def test_the_argmax_is_that_of_the_perturbed_logits():
    """At τ = 0.001 soft samples saturate, and gaps beyond 1e38 tie; the choice must not notice."""
    logits = torch.randn(5000, 6, requires_grad=True)
    choices = [
        gumbel_softmax(logits, tau, generator=torch.Generator().manual_seed(0)).argmax(-1)
        for tau in (1e-3, 1.0, 1e3)
    ]
    assert torch.equal(choices[0], choices[1])
    assert torch.equal(choices[1], choices[2])


def test_nothing_that_autograd_saved_is_overwritten():
    """Two backward passes through one graph give one gradient, even after the sample is edited."""
    logits = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    sample = gumbel_softmax(logits, 0.5)
    w = torch.randn(8, 5, dtype=torch.float64)
    (first,) = torch.autograd.grad((sample * w).sum(), logits, retain_graph=True)
    sample.data.zero_()
    (second,) = torch.autograd.grad((sample * w).sum(), logits)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("mix", [0.0, 0.2])
def test_forbidden_entries_are_exactly_zero(name, mix):
    """In the sample and in the gradient, for every estimator, and nothing is NaN."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 9, generator=generator, requires_grad=True)
    mask = torch.rand(50, 9, generator=generator) < 0.5
    mask[:, [0, 3, 5]] = True  # one of each factor
    w = torch.randn(9, 4, generator=generator)
    seen = []

    def f(d):
        seen.append(d.detach())
        return (d @ w).tanh().sum(-1)

    estimator = make_estimator(name)
    for _ in range(3):  # what tunes itself must survive masks as well
        dist = FactoredCategorical(logits, (3, 2, 4), mask, uniform_mix=mix)
        value = estimator(dist, f, generator)
        (g,) = torch.autograd.grad(value.sum(), logits)
        assert g.isfinite().all()
        assert (g[~mask] == 0).all()
    for state in estimator.state_dict().values():
        assert state.isfinite().all()
    if name not in ("exact", "local_expectation"):  # those ask f about them, with weight 0
        assert all((d[..., ~mask] == 0).all() for d in seen)


@pytest.mark.parametrize("name", ["exact", "local_expectation"])
def test_f_may_be_nan_at_forbidden_actions(name):
    logits = torch.randn(4, 5, requires_grad=True)
    mask = torch.tensor([True, True, False, True, True])

    def f(d):
        return torch.where(d[..., 2] > 0, math.nan, d[..., 0])

    value = make_estimator(name)(FactoredCategorical(logits, mask=mask), f)
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert g.isfinite().all()


def test_tuned_control_variates_do_tune_under_masks():
    """−∞/λ has a NaN derivative in λ; a tuner that quietly skipped it would never move."""
    logits = torch.randn(20, 4, requires_grad=True)
    mask = torch.tensor([True, True, False, True])
    for name in ("rebar", "relax"):
        estimator = make_estimator(name)
        for _ in range(3):
            dist = FactoredCategorical(logits, mask=mask)
            estimator(dist, lambda d: (d * torch.arange(4.0)).sum(-1) ** 2)
        assert estimator.tuned.steps == 3
        assert estimator.temperature != 0.5


def test_probabilities_under_mixing_feed_every_estimator():
    """With the raw θ, D − π would be wrong: the score must average to 0 under π'."""
    logits = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    dist = FactoredCategorical(logits, uniform_mix=0.4, forward_temperature=2.0)
    estimator = make_estimator("reinforce")
    total = torch.zeros(1, 3, dtype=torch.float64)
    for i in range(3):  # enumerate D by hand through a constant f: E[∇log π'(D)] = 0
        log_prob = dist.log_prob(torch.tensor([[i]]))
        (g,) = torch.autograd.grad(log_prob.sum(), logits, retain_graph=True)
        total += log_prob.exp().detach() * g
    torch.testing.assert_close(total, torch.zeros_like(total))
    rows = FactoredCategorical(logits.expand(50_000, 3), uniform_mix=0.4, forward_temperature=2.0)
    (g,) = torch.autograd.grad(estimator(rows, lambda d: d[..., 0]).mean(), logits)
    (want,) = torch.autograd.grad(dist.probs[0, 0], logits)
    # 5 standard errors of at most 0.5/sqrt(50000) each: false alarm 2e-6
    torch.testing.assert_close(g, want, atol=0.012, rtol=0)


def test_log_prob_is_the_discrete_one():
    """A relaxed density gives NaN for a one-hot; ours is log softmax, whatever the estimator."""
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    dist = FactoredCategorical(logits)
    torch.testing.assert_close(dist.log_prob(torch.tensor([[2]])), logits.log_softmax(-1)[:, 2])


def test_low_temperature_gradients_are_sparse_spikes():
    """The seed of temperature sensitivity: at τ = .1 / .05 / .01 about 24 / 49 / 85 % of rows have
    a dead gradient and the largest grows from about 2 to 130 where the slope is of order 1."""
    dead, largest = [], []
    for tau in (0.1, 0.05, 0.01):
        logits = torch.randn(4000, 6, requires_grad=True)
        sample = gumbel_softmax(logits, tau, generator=torch.Generator().manual_seed(1))
        (g,) = torch.autograd.grad((sample * torch.randn(4000, 6)).sum(), logits)
        norms = g.norm(dim=-1)
        dead.append((norms < 1e-4).float().mean().item())
        largest.append(norms.max().item())
    assert dead[0] < dead[1] < dead[2]
    assert dead[2] > 0.6
    assert largest[2] > 4 * largest[0]


def test_st_gumbel_shrinks_the_gradient_and_the_report_says_so():
    """About 0.72 of the exact norm at τ = 1 on K = 6."""
    logits = torch.randn(16, 6, dtype=torch.float64)
    w = torch.randn(6, dtype=torch.float64)
    report = gradient_report(
        make_estimator("st_gumbel"), FactoredCategorical(logits), lambda d: d @ w, 4000
    )
    assert 0.6 < report.norm_ratio < 0.85


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_the_generator_decides_everything(name):
    """Same seed, same value and gradient; the global stream stays untouched."""
    logits = torch.randn(5, 4, requires_grad=True)
    state = torch.random.get_rng_state()
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(11)
        dist = FactoredCategorical(logits, (2, 2))
        value = make_estimator(name)(
            dist, lambda d: (d * torch.arange(4.0)).sin().sum(-1), generator
        )
        results.append((value, torch.autograd.grad(value.sum(), logits)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_action_seventeen_nats_down_is_drawn_at_its_rate():
    """2^24 draws of a two-way choice at a gap of 13: expected e^-13 · 2^24 = 37.9, 5 sigma = 31,
    false alarm 1e-6 (more at this gap would take 10^8 draws: benchmarks/tail.py)."""
    generator = torch.Generator().manual_seed(0)
    lead = torch.tensor([13.0, 0.0])
    hits = sum(
        int((lead + gumbel_noise((2**20, 2), generator)).argmax(-1).sum()) for _ in range(16)
    )
    assert 10 < hits < 69
