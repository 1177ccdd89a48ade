"""A perceptron's written-out passes are autograd's; flat parameters are the modules' own."""

import copy

import pytest
import torch
from gumbelrl.agents.networks import Perceptron, Tape, ensemble_mlp, mlp
from gumbelrl.agents.optimization import FlatParameters, clip_gradients
from torch import nn

D, B = 3, 7
MAKERS = {
    "single": lambda activation: mlp(D, [5, 4], 2, activation),
    "ensemble": lambda activation: ensemble_mlp(2, D, [5, 4], 2, activation),
}


def make(kind, activation):
    torch.manual_seed(0)
    return MAKERS[kind](activation).double()


def through_autograd(net, x, weights):
    """Gradients of Σ w y in the parameters and in x."""
    x = x.clone().requires_grad_()
    y = nn.Sequential.forward(net, x)
    return torch.autograd.grad((y * weights).sum(), [*net.parameters(), x])


def through_tape(net, x, weights, beside=None):
    x = x.clone().requires_grad_()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    tape = Tape(net, x, beside)
    (tape.output * weights).sum().backward(inputs=[tape.output])
    tape.backward()
    return [*[p.grad for p in net.parameters()], x.grad], tape


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu", "gelu"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_tapes_gradients_are_autograds(kind, activation):
    net, x = make(kind, activation), torch.randn(B, D, dtype=torch.float64)
    assert net.plain == (activation in ("relu", "tanh", "elu"))
    beside = torch.randn(4, D, dtype=torch.float64)
    weights = torch.randn_like(net(x))
    found, tape = through_tape(net, x, weights, beside)
    for a, b in zip(found, through_autograd(net, x, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(tape.output, net(x).detach())
    torch.testing.assert_close(tape.beside, net(beside).detach())
    assert not tape.beside.requires_grad


def test_layer_norm_goes_through_autograd():
    torch.manual_seed(0)
    net = ensemble_mlp(2, D, [5], 1, "relu", layer_norm=True).double()
    x = torch.randn(B, D, dtype=torch.float64)
    weights = torch.randn_like(net(x))
    assert not net.plain
    for a, b in zip(
        through_tape(net, x, weights)[0], through_autograd(net, x, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", MAKERS)
def test_without_grad_the_same_comes_out(kind):
    net, x = make(kind, "elu"), torch.randn(B, D, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), nn.Sequential.forward(net, x))
        seen = x.clone()
        net(x)
        assert torch.equal(x, seen)  # activations work in place, and not on the input


def test_a_copy_reads_its_own_parameters():
    net, x = make("single", "relu"), torch.randn(B, D, dtype=torch.float64)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
        assert (other(x) == 0).all()
        assert (net(x) != 0).any()


def test_a_perceptron_of_mixed_layers_is_not_plain():
    assert not Perceptron(nn.Linear(2, 2), nn.ReLU(), nn.Identity()).plain


# --- flat parameters --------------------------------------------------------------------------


def test_flat_parameters_are_the_modules_own():
    net = make("ensemble", "tanh")
    before = [p.detach().clone() for p in net.parameters()]
    flat = FlatParameters(net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))

    x = torch.randn(B, D, dtype=torch.float64)
    net(x).square().sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    assert flat.values.grad.square().sum().item() == pytest.approx(
        sum(g.square().sum() for g in gradients).item()
    )
    torch.optim.SGD([flat.values], lr=0.1).step()
    for p, old, g in zip(net.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * g)


def test_flat_parameters_follow_a_loaded_state():
    net, other = make("single", "relu"), mlp(D, [5, 4], 2, "relu").double()
    flat = FlatParameters(net.parameters())
    net.load_state_dict(other.state_dict())
    assert flat.values.sum().item() == pytest.approx(
        sum(p.sum() for p in other.parameters()).item()
    )


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_is_that_of_the_list(max_norm):
    net = make("single", "relu")
    flat = FlatParameters(net.parameters())
    net(torch.randn(B, D, dtype=torch.float64)).sum().backward()
    listed = [nn.Parameter(p.detach().clone()) for p in net.parameters()]
    for p, q in zip(listed, net.parameters(), strict=True):
        p.grad = q.grad.clone()
    torch.testing.assert_close(flat.clip_gradient(max_norm), clip_gradients(listed, max_norm))
    for p, q in zip(listed, net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-3, atol=0)  # ε = 1e-6 beside the norm


def test_a_gradient_of_zero_stays_zero():
    flat = FlatParameters(make("single", "relu").parameters())
    assert flat.clip_gradient(1.0) == 0
    assert (flat.grad == 0).all()


def test_skipped_parameters_stay():
    flat = FlatParameters(make("single", "relu").parameters())
    flat.grad.fill_(1.0)
    before = flat.values.detach().clone()
    optimizer = torch.optim.SGD([flat.values], lr=0.1)
    flat.skip(True)
    optimizer.step()
    assert torch.equal(flat.values, before)
    flat.skip(False)
    optimizer.step()
    assert (flat.values != before).all()
