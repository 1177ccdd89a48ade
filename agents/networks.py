"""Multilayer perceptrons, single and as an ensemble evaluated in one call.

Small networks spend more time in autograd's bookkeeping than in arithmetic. So a training step may
cut the graph at a network's output, see `Tape`, and `Perceptron` has its backward pass written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gumbelrl.agents.checks import check_choice
from gumbelrl.gumbel.gradient import transformed
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": partial(nn.ReLU, inplace=True),  # the layer before keeps no output: memory saved
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_activation(name: str) -> nn.Module:
    """The activation of that name; ValueError names the allowed ones."""
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]()


def check_net_arch(net_arch: Sequence[int]) -> tuple[int, ...]:
    """Hidden widths as a tuple; ValueError when empty or not positive integers."""
    widths = tuple(net_arch)
    if not widths or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(
            f"net_arch must list at least one hidden width >= 1, such as [64, 64], got {net_arch}"
        )
    return widths


def mlp(n_inputs: int, net_arch: Sequence[int], n_outputs: int, activation: str) -> Perceptron:
    """[B, n_inputs] -> [B, n_outputs], an activation after each hidden layer."""
    layers: list[nn.Module] = []
    for width in check_net_arch(net_arch):
        layers += [nn.Linear(n_inputs, width), make_activation(activation)]
        n_inputs = width
    layers.append(nn.Linear(n_inputs, n_outputs))
    return Perceptron(*layers)


class EnsembleLinear(nn.Module):
    """C independent linear layers in one batched product: [C, B, n_in] -> [C, B, n_out].

    An input [B, n_in] is shared by all members. Initialised as `nn.Linear`, member by member.
    """

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_members, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_members, 1, n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.expand(self.weight.shape[0], *x.shape)  # (C, B, n_in), no copy
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """C independent layer normalisations, [C, B, n] -> [C, B, n]; each member as `nn.LayerNorm`.

    Ba et al. 2016, arXiv 1607.06450.
    """

    def __init__(self, n_members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_members, 1, width))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-1:]), self.weight)


def ensemble_mlp(
    n_members: int,
    n_inputs: int,
    net_arch: Sequence[int],
    n_outputs: int,
    activation: str,
    layer_norm: bool = False,
) -> Perceptron:
    """C independent perceptrons: [B, n_inputs] or [C, B, n_inputs] -> [C, B, n_outputs].

    `layer_norm` normalises every hidden layer before its activation.
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers.append(EnsembleLinear(n_members, n_inputs, width))
        if layer_norm:
            layers.append(EnsembleLayerNorm(n_members, width))
        layers.append(make_activation(activation))
        n_inputs = width
    layers.append(EnsembleLinear(n_members, n_inputs, n_outputs))
    return Perceptron(*layers)


_aten = torch.ops.aten
_Forward = Callable[[Tensor], Tensor]
_Slope = Callable[[Tensor, Tensor], Tensor]
_IN_PLACE: dict[type[nn.Module], tuple[_Forward, _Slope]] = {
    nn.ReLU: (
        torch.relu_,
        lambda g, y: _aten.threshold_backward.grad_input(g, y, 0, grad_input=g),
    ),
    nn.Tanh: (
        torch.tanh_,
        lambda g, y: _aten.tanh_backward.grad_input(g, y, grad_input=g),
    ),
    nn.ELU: (
        nn.functional.elu_,
        lambda g, y: _aten.elu_backward.grad_input(g, 1, 1, 1, True, y, grad_input=g),
    ),
}
"""Activations whose slope follows from their output: x turned into the output y, and the gradient g
of y into that of x."""


class Perceptron(nn.Sequential):
    """Linear layers, all `nn.Linear` or all `EnsembleLinear`, with activations between them.

    Called as any module. Where nothing but such layers and activations of `_IN_PLACE` is in it, it
    is `plain`: `run` and `pull_back` are its forward and its backward pass without autograd.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        linears, between = layers[0::2], layers[1::2]
        self.single = isinstance(layers[0], nn.Linear)
        kind = nn.Linear if self.single else EnsembleLinear
        self.plain = all(isinstance(layer, kind) for layer in linears) and all(
            type(layer) in _IN_PLACE for layer in between
        )
        if self.plain:
            # Lists, which are read in a fraction of a module's time. The parameters stay the same
            # objects wherever their values go.
            self._parameters_of: list[Any] = [(layer.weight, layer.bias) for layer in linears]
            self._between = [_IN_PLACE[type(layer)] for layer in between]

    def forward(self, x: Tensor) -> Tensor:
        if self.plain and x.dim() == 2 and not torch.is_grad_enabled() and not transformed():
            return self.run(x)[-1]
        y: Tensor = super().forward(x)
        return y

    def run(self, x: Tensor) -> list[Tensor]:
        """What every layer reads, x [B, n_inputs] first, and the output. Call it without grad."""
        if not self.single:
            x = x.expand(len(self._parameters_of[0][0]), *x.shape)  # shared by the members, no copy
        kept = [x]
        for i, (weight, bias) in enumerate(self._parameters_of):
            if self.single:
                y = torch.addmm(bias, kept[-1], weight.t())
            else:
                y = torch.baddbmm(bias, kept[-1], weight)
            kept.append(self._between[i][0](y) if i < len(self._between) else y)
        return kept

    def pull_back(self, kept: list[Tensor], g: Tensor, wants_input: bool) -> Tensor | None:
        """Write the parameters' gradients into their `grad`, which must be there.

        Args:
            kept: what `run` gave.
            g: gradient of the output.
            wants_input: is the gradient of x [B, n_inputs] wanted?

        Returns:
            It, or None.
        """
        for i in range(len(self._parameters_of) - 1, -1, -1):
            (weight, bias), x = self._parameters_of[i], kept[i]
            torch.sum(g, -2, not self.single, out=bias.grad)
            if self.single:
                torch.mm(g.t(), x, out=weight.grad)
            else:
                torch.bmm(x.mT, g, out=weight.grad)
            if i == 0 and not wants_input:
                return None
            g = torch.mm(g, weight) if self.single else torch.bmm(g, weight.mT)
            if i > 0:
                self._between[i - 1][1](g, x)
        return g if self.single else g.sum(0)


def backward_from(y: Tensor, g: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
    """Autograd from y with its gradient g, into `inputs` or into all leaves.

    By way of the product, whose gradient it is: `y.backward(g)` imports torch's symbolic shapes,
    which takes a second.
    """
    torch.dot(y.flatten(), g.flatten()).backward(inputs=inputs)


class Tape:
    """One evaluation of a network, whose gradient is carried back through it on request.

    `output` is a leaf: autograd fills its gradient, and `backward` takes it from there, into the
    parameters' `grad` and into the graph of x where it has one. A plain perceptron does so without
    autograd.

    Args:
        network: a module, or a function of x with parameters.
        x: [B, n_inputs].
        beside: [B', n_inputs] more rows to evaluate in the same call; no gradient is carried back
            through them.

    Attributes:
        output: of x, the leaf.
        beside: of the rows beside it, where some were given, without a graph.
    """

    output: Tensor
    beside: Tensor

    def __init__(
        self, network: Callable[[Tensor], Tensor], x: Tensor, beside: Tensor | None = None
    ) -> None:
        self._network, self._x = network, x
        self._kept: list[Tensor] = []
        if isinstance(network, Perceptron) and network.plain:
            with torch.no_grad():
                if beside is None:
                    self._kept = network.run(x.detach())
                else:
                    whole = network.run(torch.cat((x.detach(), beside)))
                    self._kept = [layer.narrow(-2, 0, len(x)) for layer in whole]
                    self.beside = whole[-1].narrow(-2, len(x), len(beside))
            self.output = self._kept[-1].detach().requires_grad_()
        else:
            self._end = network(x)
            self.output = self._end.detach().requires_grad_()
            if beside is not None:
                with torch.no_grad():
                    self.beside = network(beside)

    def backward(self, g: Tensor | None = None) -> None:
        """Carry a gradient of the output back, the one that autograd left there or a given one.

        `grad` of every parameter must be there, and zero.
        """
        g = self.output.grad if g is None else g
        assert g is not None, "autograd has not been here"
        if not self._kept:
            backward_from(self._end, g)
            return
        assert isinstance(self._network, Perceptron)
        with torch.no_grad():
            back = self._network.pull_back(self._kept, g, self._x.requires_grad)
        if back is not None:
            backward_from(self._x, back)
