"""Properties over shapes, unequal factors, masks, dtypes, extreme logits and temperatures."""

import torch
from gumbelrl.gumbel import ESTIMATORS, FactoredCategorical, gumbel_softmax, make_estimator
from gumbelrl.gumbel.estimator import Pathwise
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PATHWISE = [name for name, cls in ESTIMATORS.items() if issubclass(cls, Pathwise)]
TEMPERED = [name for name in PATHWISE if name != "decoupled_st_gumbel"]
COMMON = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def problems(draw, max_factors=4):
    """(logits, nvec, mask or None): batch shapes of 0 to 2 axes, logits up to ±1e4."""
    nvec = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=max_factors)))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = (torch.rand(*batch, sum(nvec), generator=generator) * 2 - 1) * scale
    logits = logits.to(draw(st.sampled_from(DTYPES)))
    if not draw(st.booleans()):
        return logits, nvec, None
    mask = torch.rand(logits.shape, generator=generator) < 0.5
    first = torch.tensor([sum(nvec[:m]) for m in range(len(nvec))])
    mask[..., first] = True
    return logits, nvec, mask


temperatures = st.sampled_from([1e-3, 0.03, 0.5, 1.0, 7.0, 1e3])


def check_one_hot(d, nvec, mask):
    assert ((d == 0) | (d == 1)).all()
    for part in d.split(nvec, -1):
        assert (part.sum(-1) == 1).all()
    if mask is not None:
        assert (d[~mask] == 0).all()


@COMMON
@given(problems(), temperatures, st.sampled_from(TEMPERED))
def test_pathwise_samples_and_gradients(problem, tau, name):
    """Finite, one-hot exact (soft: in [0, 1], summing to M), forbidden entries exactly 0."""
    logits, nvec, mask = problem
    leaf = logits.clone().requires_grad_()
    d = make_estimator(name, temperature=tau).rsample(FactoredCategorical(leaf, nvec, mask))
    assert d.dtype == logits.dtype
    if name == "gumbel_softmax":
        assert ((d >= 0) & (d <= 1)).all()
        torch.testing.assert_close(
            d.sum(-1).double(),
            torch.full(d.shape[:-1], float(len(nvec))).double(),
            atol=0.05,
            rtol=0,
        )
        if mask is not None:
            assert (d[~mask] == 0).all()
    else:
        check_one_hot(d, nvec, mask)
    (g,) = torch.autograd.grad((d * torch.randn(d.shape).to(d.dtype)).sum(), leaf)
    assert g.isfinite().all()
    if mask is not None:
        assert (g[~mask] == 0).all()


@COMMON
@given(problems(3), st.sampled_from(["reinforce", "rloo", "muprop", "rebar", "exact", "mixed"]))
def test_other_gradients_are_finite_and_zero_where_forbidden(problem, name):
    logits, nvec, mask = problem
    leaf = logits.clone().requires_grad_()
    dist = FactoredCategorical(leaf, nvec, mask)
    value = make_estimator(name)(dist, lambda d: (d * 0.5).sin().sum(-1))
    assert value.shape == logits.shape[:-1]
    (g,) = torch.autograd.grad(value.sum(), leaf)
    assert g.isfinite().all()
    if mask is not None:
        assert (g[~mask] == 0).all()


@COMMON
@given(problems(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.3, 1.0, 10.0]))
def test_the_distribution(problem, mix, forward_temperature):
    """Probabilities sum to 1 per factor, 0 where forbidden; entropy in [0, Σ log K]; all gradients
    finite."""
    logits, nvec, mask = problem
    leaf = logits.clone().requires_grad_()
    dist = FactoredCategorical(
        leaf, nvec, mask, uniform_mix=mix, forward_temperature=forward_temperature
    )
    for part in dist.probs.split(nvec, -1):
        torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)))
    actions = dist.sample()
    check_one_hot(dist.one_hot(actions), nvec, mask)
    most = sum(torch.tensor(k).log().item() for k in nvec)
    entropy, log_prob = dist.entropy(), dist.log_prob(actions)
    assert ((entropy >= -1e-4) & (entropy <= most + 1e-4)).all()
    assert ((log_prob <= 1e-6) & log_prob.isfinite()).all()
    assert (dist.log_prob(dist.mode()) >= log_prob - 1e-3).all()
    kl = dist.kl(FactoredCategorical(leaf.detach() * 0.5, nvec, mask))
    assert (kl >= -1e-3).all()
    (g,) = torch.autograd.grad((entropy + log_prob + kl).sum(), leaf)
    assert g.isfinite().all()
    if mask is not None:
        assert (dist.probs[~mask] == 0).all()
        assert (g[~mask] == 0).all()


@COMMON
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 40),
    temperatures,
    st.booleans(),
    st.sampled_from(DTYPES),
    st.sampled_from([1.0, 1e4]),
)
def test_the_sampler(batch, k, tau, hard, dtype, scale):
    logits = ((torch.rand(*batch, k) * 2 - 1) * scale).to(dtype).requires_grad_()
    y = gumbel_softmax(logits, tau, hard=hard)
    assert y.shape == logits.shape
    assert y.dtype == dtype
    if hard:
        check_one_hot(y, (k,), None)
    (g,) = torch.autograd.grad((y * torch.randn(y.shape).to(dtype)).sum(), logits)
    assert g.isfinite().all()
