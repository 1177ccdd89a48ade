"""`gumbel_softmax`: the article's definition, held against its closed form and its properties."""

import math

import numpy as np
import pytest
import torch
from gumbelrl.gumbel import GumbelSoftmax, gumbel_noise, gumbel_softmax
from scipy import stats

F64 = torch.float64


def seeded():
    return torch.Generator().manual_seed(9)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 20), (2, 3000, 7), (2000, 40)])
def test_the_gradient_is_the_closed_form(tau, shape):
    """J(y) g/τ in float64, with y from the very noise that was drawn."""
    logits = torch.randn(shape, dtype=F64, requires_grad=True)
    g = torch.randn(shape, dtype=F64)
    y = ((logits + gumbel_noise(logits, seeded())) / tau).softmax(-1)
    want = y * (g - (y * g).sum(-1, keepdim=True)) / tau
    for hard in (True, False):
        sample = gumbel_softmax(logits, tau, hard=hard, generator=seeded())
        (got,) = torch.autograd.grad(sample, logits, g)
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(gumbel_softmax(logits, tau, hard=False, generator=seeded()), y)


def test_soft_samples_lie_on_the_simplex():
    y = gumbel_softmax(torch.randn(1000, 5), 0.7, hard=False)
    assert ((y >= 0) & (y <= 1)).all()
    torch.testing.assert_close(y.sum(-1), torch.ones(1000))


def test_low_temperature_tends_to_one_hot_and_high_to_uniform():
    logits = torch.randn(1000, 5, dtype=F64)
    cold = gumbel_softmax(logits, 1e-4, hard=False, generator=seeded())
    hard = gumbel_softmax(logits, 1e-4, generator=seeded())
    # a row is off by more than 1e-3 where the top two lie within 7e-4: about 0.1 % of rows
    assert ((cold - hard).abs().amax(-1) < 1e-3).float().mean() > 0.99
    hot = gumbel_softmax(logits, 1e5, hard=False)
    torch.testing.assert_close(hot, torch.full_like(hot, 0.2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [1000, 50_000])
def test_the_argmax_is_distributed_as_softmax(tau, n):
    """Chi-square at p = 1e-4, whatever τ, on both noise sources."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    counts = gumbel_softmax(logits.expand(n, 4), tau, generator=seeded()).sum(0).double()
    expected = logits.double().softmax(-1) * n
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    "logits", [[1.0, 2.0, 3.0], [1, 2, 3], np.array([[1.0, 2.0]]), np.zeros((2, 3), dtype=np.int64)]
)
def test_arrays_and_lists_are_logits_too(logits):
    sample = gumbel_softmax(logits)
    assert sample.shape == np.shape(logits)
    assert sample.is_floating_point()
    assert (sample.sum(-1) == 1).all()


def test_a_mask_forbids_in_sample_and_gradient():
    logits = torch.randn(500, 4, requires_grad=True)
    mask = np.array([True, False, True, True])
    for hard in (True, False):
        sample = gumbel_softmax(logits, 0.5, hard=hard, mask=mask)
        (g,) = torch.autograd.grad((sample * torch.randn(500, 4)).sum(), logits)
        assert (sample[:, 1] == 0).all()
        assert (g[:, 1] == 0).all()
        assert g.abs().sum() > 0


def test_no_graph_without_need():
    logits = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        assert not gumbel_softmax(logits).requires_grad
    assert not gumbel_softmax(logits.detach()).requires_grad
    with torch.inference_mode():
        assert gumbel_softmax(logits).sum() == 3


@pytest.mark.parametrize("n", [3, 4096])
def test_the_sample_is_the_callers_own(n):
    """It may be changed in place, and the gradient follows: it is no view of something kept."""
    logits = torch.randn(n, 4, dtype=F64, requires_grad=True)
    g = torch.randn(n, 4, dtype=F64)
    (want,) = torch.autograd.grad(gumbel_softmax(logits, generator=seeded()), logits, 2 * g)
    sample = gumbel_softmax(logits, generator=seeded())
    assert sample.is_contiguous()
    (got,) = torch.autograd.grad(sample.mul_(2.0), logits, g)
    torch.testing.assert_close(got, want)


def test_ties_leave_one_winner():
    """float32 logits of 1e8 lie 8 apart, so that G is rounded to multiples of 8 and most tie."""
    sample = gumbel_softmax(torch.full((5000, 6), 1e8))
    assert (sample.sum(-1) == 1).all()
    assert (sample.amax(-1) == 1).all()


def test_the_layer_follows_its_schedule():
    layer = GumbelSoftmax({"schedule": "linear", "start": 2.0, "end": 1.0}, hard=False)
    layer.set_progress(0.5)
    logits = torch.randn(3, 4)
    want = gumbel_softmax(logits, 1.5, hard=False, generator=seeded())
    assert torch.equal(layer(logits, generator=seeded()), want)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": [0.0, 1.0], "temperature": 0.0}, ["temperature", "> 0", "0.0"]),
        ({"logits": [0.0, 1.0], "temperature": -1.0}, ["temperature", "-1.0"]),
        ({"logits": [0.0, 1.0], "temperature": math.nan}, ["temperature", "nan"]),
        ({"logits": [0.0, 1.0], "temperature": math.inf}, ["temperature", "inf"]),
        ({"logits": [0.0, math.nan]}, ["nan", "[1]"]),
        ({"logits": [[0.0, 1.0], [math.inf, 0.0]]}, ["inf", "[1, 0]"]),
        ({"logits": [[-math.inf, -math.inf]]}, ["row [0]"]),
        ({"logits": []}, ["at least one category"]),
        ({"logits": 3.0}, ["at least one category"]),
        ({"logits": [0.0, 1.0], "mask": [1, 0]}, ["mask.bool()"]),
        ({"logits": [0.0, 1.0], "mask": [True]}, ["[2]", "[1]"]),
        ({"logits": [0.0, 1.0], "mask": [False, False]}, ["row []", "allowed"]),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=r".") as error:
        gumbel_softmax(**arguments)
    for word in words:
        assert word in str(error.value)
