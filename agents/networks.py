"""Multilayer perceptrons, single and as an ensemble evaluated in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from gumbelrl.agents.checks import check_choice
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


def mlp(n_inputs: int, net_arch: Sequence[int], n_outputs: int, activation: str) -> nn.Sequential:
    """[B, n_inputs] -> [B, n_outputs], an activation after each hidden layer."""
    layers: list[nn.Module] = []
    for width in check_net_arch(net_arch):
        layers += [nn.Linear(n_inputs, width), make_activation(activation)]
        n_inputs = width
    layers.append(nn.Linear(n_inputs, n_outputs))
    return nn.Sequential(*layers)


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
) -> nn.Sequential:
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
    return nn.Sequential(*layers)
