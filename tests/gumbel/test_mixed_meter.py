"""`mixed` with ρ from a meter: the stated mixture, driven from outside alone."""

import pytest
import torch
from gumbelrl.gumbel import FactoredCategorical, make_estimator

F64 = torch.float64


def problem():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, generator=generator, dtype=F64, requires_grad=True)
    mask = torch.rand(6, 9, generator=generator) < 0.7
    mask[:, [0, 2, 5]] = True
    w = torch.randn(9, generator=generator, dtype=F64)
    return logits, FactoredCategorical(logits, (2, 3, 4), mask), lambda d: (d @ w).sin()


def test_no_trust_before_the_first_measurement():
    """ρ = 1: the score's value and gradient, exactly."""
    logits, dist, f = problem()
    mixed = make_estimator("mixed", score="rloo", rho="meter")
    assert mixed.rho == 1.0
    grads = []
    for estimator in (mixed, make_estimator("rloo")):
        value = estimator(dist, f, torch.Generator().manual_seed(1))
        grads.append((value, *torch.autograd.grad(value.sum(), logits, retain_graph=True)))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_it_is_the_mixture_of_the_fixed_rho_to_rounding():
    """ρ = 1 − 0.6 against a fixed 0.4 with the same draws; masked logits get exactly 0."""
    logits, dist, f = problem()
    driven = make_estimator("mixed", pathwise="reinmax", rho="meter")
    driven.set_alignment(0.6)
    grads = []
    for estimator in (driven, make_estimator("mixed", pathwise="reinmax", rho=0.4)):
        value = estimator(dist, f, torch.Generator().manual_seed(1))
        grads.append((value, *torch.autograd.grad(value.sum(), logits, retain_graph=True)))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-6, atol=1e-6)
    assert (grads[0][1][~dist.mask] == 0).all()


def test_each_gradient_is_drawn_once():
    _, dist, f = problem()
    scored = []
    mixed = make_estimator("mixed", score={"name": "rloo", "k": 3}, rho="meter")
    mixed.set_alignment(0.5)
    mixed(dist, lambda d: (scored.append(d.shape[:-1].numel()), f(d))[1])
    assert sum(scored) == (3 + 1) * 6


def test_the_first_measurements_weigh_alike_then_the_last_ones_most():
    mixed = make_estimator("mixed", rho="meter", decay=0.75)
    given = [0.8, 0.2, -0.4, 0.6, 0.9, -0.1]
    for n, cosine in enumerate(given[:4], start=1):
        mixed.set_alignment(cosine)
        assert float(mixed.alignment) == pytest.approx(sum(given[:n]) / n)
    expected = sum(given[:4]) / 4
    for cosine in given[4:]:
        mixed.set_alignment(cosine)
        expected += 0.25 * (cosine - expected)
        assert float(mixed.alignment) == pytest.approx(expected)
        assert float(mixed.rho) == pytest.approx(1 - expected)


def test_a_misleading_gradient_gets_no_weight():
    mixed = make_estimator("mixed", rho="meter")
    mixed.set_alignment(-0.7)
    assert float(mixed.alignment) == pytest.approx(-0.7)
    assert mixed.rho == 1.0


def test_calls_do_not_move_rho_and_state_carries_it_on():
    _, dist, f = problem()
    mixed, other = (make_estimator("mixed", rho="meter") for _ in range(2))
    mixed.set_alignment(0.25)
    mixed(dist, f)
    assert mixed.rho == 0.75
    other.load_state_dict(mixed.state_dict())
    for each in (mixed, other):
        each.set_alignment(0.75)
        assert each.rho == 0.5
    assert mixed.state_dict().keys() - make_estimator("mixed").state_dict().keys() == {"cosine"}


@pytest.mark.parametrize("cosine", [1.5, -1.01, float("nan"), float("inf")])
def test_only_a_cosine_is_taken(cosine):
    mixed = make_estimator("mixed", rho="meter")
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        mixed.set_alignment(cosine)
    assert mixed.rho == 1.0


@pytest.mark.parametrize("rho", [0.5, "measured"])
def test_others_take_no_alignment(rho):
    mixed = make_estimator("mixed", rho=rho)
    assert not mixed.needs_alignment
    with pytest.raises(ValueError, match="rho="):
        mixed.set_alignment(0.5)
