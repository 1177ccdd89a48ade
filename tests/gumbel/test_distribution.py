"""FactoredCategorical against torch.distributions, enumeration and counting."""

import math
from itertools import product

import pytest
import torch
from gumbelrl.gumbel import FactoredCategorical
from scipy import stats
from torch.distributions import Categorical, kl_divergence

LAYOUTS = [(5,), (2, 2, 2), (3, 1, 4), (4, 4)]
INF = math.inf


def random_mask(batch, nvec, generator):
    """Random, with at least one category allowed in each factor."""
    parts = []
    for k in nvec:
        part = torch.rand(batch, k, generator=generator) < 0.6
        part[torch.arange(batch), torch.randint(k, (batch,), generator=generator)] = True
        parts.append(part)
    return torch.cat(parts, -1)


def factors(logits, nvec, mask=None):
    """The peer: one torch Categorical per factor."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -INF)
    return [Categorical(logits=part, validate_args=False) for part in logits.split(nvec, -1)]


@pytest.mark.parametrize("nvec", LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_one_torch_categorical_per_factor(nvec, masked):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, sum(nvec), generator=generator, dtype=torch.float64)
    mask = random_mask(6, nvec, generator) if masked else None
    dist, peer = FactoredCategorical(logits, nvec, mask), factors(logits, nvec, mask)
    actions = dist.sample(generator)
    assert actions.dtype == torch.int64
    assert actions.shape == (6, len(nvec))
    log_prob = sum(p.log_prob(a) for p, a in zip(peer, actions.T, strict=True))
    torch.testing.assert_close(dist.log_prob(actions), log_prob)
    torch.testing.assert_close(dist.probs, torch.cat([p.probs for p in peer], -1))
    torch.testing.assert_close(dist.mode(), torch.stack([p.probs.argmax(-1) for p in peer], -1))
    plogp = [torch.special.entr(p.probs).sum(-1) for p in peer]
    torch.testing.assert_close(dist.entropy(), sum(plogp))
    one_hot = torch.cat(
        [torch.nn.functional.one_hot(a, k) for a, k in zip(actions.T, nvec, strict=True)], -1
    )
    assert torch.equal(dist.one_hot(actions), one_hot.double())


@pytest.mark.parametrize("nvec", LAYOUTS)
def test_kl_agrees_with_torch(nvec):
    a, b = torch.randn(2, 6, sum(nvec), dtype=torch.float64)
    want = sum(kl_divergence(p, q) for p, q in zip(factors(a, nvec), factors(b, nvec), strict=True))
    got = FactoredCategorical(a, nvec).kl(FactoredCategorical(b, nvec))
    torch.testing.assert_close(got, want)


def test_kl_where_supports_differ():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    narrow = FactoredCategorical(logits, mask=torch.tensor([True, True, False]))
    wide = FactoredCategorical(logits)
    torch.testing.assert_close(narrow.kl(wide).item(), math.log(1.5))
    assert wide.kl(narrow).item() == INF
    (slope,) = torch.autograd.grad(narrow.kl(narrow).sum(), logits)
    assert slope.isfinite().all()


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("forward_temperature", [1.0, 2.5])
def test_entropy_and_probabilities_are_those_of_the_joint(mix, forward_temperature):
    """Entropy = −E log π', probabilities sum to 1: by enumeration, with every option on."""
    nvec = (3, 2, 4)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    mask = random_mask(2, nvec, generator)
    dist = FactoredCategorical(
        logits, nvec, mask, uniform_mix=mix, forward_temperature=forward_temperature
    )
    every = torch.tensor(list(product(*map(range, nvec))))[:, None].expand(-1, 2, -1)
    log_joint = dist.log_prob(every)
    joint = log_joint.exp()
    torch.testing.assert_close(joint.sum(0), torch.ones(2, dtype=torch.float64))
    plogp = torch.where(joint > 0, joint * log_joint, 0.0)
    torch.testing.assert_close(dist.entropy(), -plogp.sum(0))


def test_uniform_mix_spreads_over_allowed_actions_only():
    logits = torch.tensor([[9.0, 0.0, 5.0, -3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True]])
    base = FactoredCategorical(logits, mask=mask).probs
    mixed = FactoredCategorical(logits, mask=mask, uniform_mix=0.3).probs
    torch.testing.assert_close(mixed, 0.7 * base + 0.3 * mask / 3)
    assert mixed[0, 2] == 0
    even = FactoredCategorical(logits, mask=mask, uniform_mix=1.0).probs
    torch.testing.assert_close(even, mask / torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("n", [200, 60_000])
def test_samples_follow_the_probabilities(n):
    """Chi-square per factor at p = 1e-4 (false alarm 2e-4), on both noise paths."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0, 0.5])
    mask = torch.tensor([True, True, True, True, False, True])
    dist = FactoredCategorical(logits.expand(n, 6), (2, 4), mask, uniform_mix=0.1)
    counts = dist.one_hot(dist.sample(torch.Generator().manual_seed(0))).sum(0)
    assert counts[4] == 0
    for part, p in zip(counts.split((2, 4)), dist.probs[0].double().split((2, 4)), strict=True):
        live = p > 0
        expected = p[live] / p[live].sum() * n
        assert stats.chisquare(part[live].double().numpy(), expected.numpy()).pvalue > 1e-4


def test_entropy_gradient_is_right_to_the_second_derivative():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def entropy(x):
        return FactoredCategorical(x, [2, 3]).entropy()

    assert torch.autograd.gradcheck(entropy, logits)
    assert torch.autograd.gradgradcheck(entropy, logits)


def test_entropy_gradient_with_masks_is_finite_and_zero_where_forbidden():
    """A naive −Σ p log p is NaN here in value and gradient."""
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    mask = random_mask(4, (3, 4), torch.Generator().manual_seed(0))
    entropy = FactoredCategorical(logits, (3, 4), mask).entropy()
    (slope,) = torch.autograd.grad(entropy.sum(), logits)
    assert slope.isfinite().all()
    assert (slope[~mask] == 0).all()


def test_entropy_gradient_with_minus_inf_logits_and_mixing():
    logits = torch.tensor([[0.0, -INF, 3.0]], dtype=torch.float64, requires_grad=True)
    dist = FactoredCategorical(logits, uniform_mix=0.2)
    assert dist.probs[0, 1] == 0
    (slope,) = torch.autograd.grad(dist.entropy().sum() + dist.log_prob(dist.mode()).sum(), logits)
    assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    """One-hots come in the logits' dtype, arithmetic in float32 or wider."""
    dist = FactoredCategorical(torch.randn(3, 5).to(dtype), (2, 3))
    assert dist.one_hot(dist.sample()).dtype == dtype
    assert dist.log_prob(dist.sample()).dtype == torch.promote_types(dtype, torch.float32)


def test_batch_shapes_are_free():
    for batch in [(), (3,), (2, 3), (0,)]:
        dist = FactoredCategorical(torch.randn(*batch, 5), (2, 3))
        actions = dist.sample()
        assert actions.shape == (*batch, 2)
        assert dist.one_hot(actions).shape == (*batch, 5)
        assert dist.log_prob(actions).shape == dist.entropy().shape == batch
        assert dist.log_prob(actions.expand(4, *batch, 2)).shape == (4, *batch)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": torch.tensor([[0.0, math.nan]])}, ["nan", "[0, 0, 1]"]),
        ({"logits": torch.tensor([[0.0, INF]])}, ["inf", "[0, 0, 1]"]),
        ({"logits": torch.full((2, 2), -INF)}, ["row [0, 0]", "allowed"]),
        ({"logits": torch.zeros(2, 3), "mask": torch.zeros(2, 3).bool()}, ["row [0, 0]"]),
        ({"logits": torch.zeros(2, 3), "mask": torch.ones(2, 3)}, ["mask.bool()", "float32"]),
        ({"logits": torch.zeros(2, 3), "mask": torch.ones(2, 4).bool()}, ["[2, 3]", "[2, 4]"]),
        ({"logits": torch.zeros(2, 3), "mask": torch.ones(4, 3).bool()}, ["[2, 3]", "[4, 3]"]),
        ({"logits": torch.zeros(2, 3), "nvec": (3, 0)}, ["size 0", "[3, 0]"]),
        ({"logits": torch.zeros(2, 3), "nvec": ()}, ["category"]),
        ({"logits": torch.zeros(2, 0)}, ["size 0"]),
        ({"logits": torch.zeros(2, 3), "nvec": (2, 2)}, ["3", "sums to 4"]),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, ["floating-point", "int64"]),
        ({"logits": torch.zeros(2, 3), "uniform_mix": 1.5}, ["uniform_mix", "1.5"]),
        ({"logits": torch.zeros(2, 3), "uniform_mix": math.nan}, ["uniform_mix", "nan"]),
        ({"logits": torch.zeros(2, 3), "forward_temperature": 0.0}, ["forward_temperature", "0"]),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(arguments, words):
    with pytest.raises(ValueError, match=r".") as error:
        FactoredCategorical(**arguments)
    for word in words:
        assert word in str(error.value)


def test_value_checks_have_a_switch():
    FactoredCategorical(torch.tensor([[0.0, math.nan]]), validate=False)


def test_kl_of_different_layouts_is_refused():
    with pytest.raises(ValueError, match="one layout"):
        FactoredCategorical(torch.zeros(4), (2, 2)).kl(FactoredCategorical(torch.zeros(4)))
