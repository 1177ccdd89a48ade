"""What stands between a backward pass and an optimiser's step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_adam_step: Any = inspect.unwrap(torch.optim.Adam.step)


def flush_denormals(device: torch.device) -> None:
    """On the CPU, let this thread count numbers below 1e-38 as 0, for every tensor.

    The moments of units that get no gradient decay into that range within a few hundred steps, and
    processors work on it by microcode: a fused Adam was measured 12 times slower there. Parameters
    do not notice, because an update so small is lost beside ε and the parameter itself.
    """
    if device.type == "cpu":
        torch.set_flush_denormal(True)


def make_adam(
    groups: Sequence[Any], learning_rate: float, device: torch.device, **settings: Any
) -> Adam:
    """Fused Adam. On CUDA the rate is a tensor, so that a captured step sees it change."""
    if device.type != "cuda":
        return Adam(groups, learning_rate, fused=True, **settings)
    rate = torch.tensor(learning_rate, device=device)
    return Adam(groups, rate, fused=True, capturable=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of every group, in place where it is a tensor."""
    filled = None  # groups may share it
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = learning_rate
        elif group["lr"] is not filled:
            filled = group["lr"].fill_(learning_rate)


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients together so that their joint 2-norm is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_` without its grouping by device and dtype, which costs more
    than the clipping of a small network. Every parameter must have a gradient.

    Returns:
        The norm before clipping, a scalar on the parameters' device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def clip_gradients_per_member(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """`clip_gradients` for each of C members batched along the parameters' first axis.

    Returns:
        The norms before clipping, [C].
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = [g.square().flatten(1).sum(1) for g in gradients]
    norms = torch.stack(squares).sum(0).sqrt()  # (C,)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


class Adam(torch.optim.Adam):
    """torch's Adam, without loading torch's compiler.

    torch wraps these methods so that a compiler leaves them alone, and importing the compiler for
    the sake of that costs 1.5 s at the first step of a process that compiles nothing. What is
    computed is the same. (Kingma and Ba 2014, arXiv 1412.6980.)
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` evaluates the loss anew, and its value is returned."""
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            loss: float | None = _adam_step(self, closure)
        return loss
