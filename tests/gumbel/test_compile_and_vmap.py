"""torch.compile and torch.func see every pathwise estimator as a pure function of (θ, noise)."""

import shutil
import warnings

import pytest
import torch
from gumbelrl.gumbel import ESTIMATORS, FactoredCategorical, Pathwise, make_estimator

PATHWISE = [name for name, cls in ESTIMATORS.items() if issubclass(cls, Pathwise)]
SETTINGS = {"gumbel_rao": {"k": 3}, "reinmax_rao": {"k": 3}}


def setting(name, nvec, masked=False):
    """(pure function of logits and noise, logits, noise)."""
    estimator = make_estimator(name, **SETTINGS.get(name, {}))
    total = sum(nvec)
    w = torch.randn(total, 3)
    mask = torch.ones(total).bool()
    mask[-1] = not masked

    def pure(logits, noise):
        dist = FactoredCategorical(logits, nvec, mask, validate=False)
        return (dist.layout.flatten(estimator.relax(dist.theta, noise)) @ w).tanh().sum()

    logits = torch.randn(6, total, requires_grad=True)
    return pure, logits, estimator.draw(FactoredCategorical(logits, nvec).theta)


@pytest.mark.parametrize("nvec", [(4, 4), (3, 5)])
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        # traces forward and backward as the default backend does, without waiting for C++
        *[(name, "aot_eager") for name in PATHWISE],
        pytest.param("st_gumbel", "inductor", marks=pytest.mark.slow),
    ],
)
def test_fullgraph_compilation_gives_the_eager_gradient(name, backend, nvec):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("the default backend needs a C++ compiler")
    pure, logits, noise = setting(name, nvec, masked=True)
    (eager,) = torch.autograd.grad(pure(logits, noise), logits)
    torch._dynamo.reset()
    compiled = torch.compile(pure, fullgraph=True, backend=backend)
    (got,) = torch.autograd.grad(compiled(logits, noise), logits)
    torch.testing.assert_close(got, eager)


@pytest.mark.parametrize("name", PATHWISE)
@pytest.mark.parametrize("nvec", [(4, 4), (3, 5)])
def test_vmap_of_grad_gives_the_batched_gradient(name, nvec):
    pure, logits, noise = setting(name, nvec, masked=True)
    (eager,) = torch.autograd.grad(pure(logits, noise), logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing batching rule would be slow, and says so
        got = torch.func.vmap(torch.func.grad(pure), in_dims=(0, noise.ndim - 3))(logits, noise)
    torch.testing.assert_close(got, eager)


def test_sampling_inside_vmap_with_different_randomness():
    """No generator and the small source: rows must differ."""

    def draw(logits):
        return make_estimator("st_gumbel").rsample(FactoredCategorical(logits, validate=False))

    rows = torch.func.vmap(draw, randomness="different")(torch.zeros(64, 3, 8))
    assert rows.shape == (64, 3, 8)
    assert (rows.sum(-1) == 1).all()
    assert len({tuple(row.argmax(-1).tolist()) for row in rows}) > 10
