"""What stands between a backward pass and an optimiser's step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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
        return Adam(groups, learning_rate, **settings)
    rate = torch.tensor(learning_rate, device=device)
    return Adam(groups, rate, capturable=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of every group, in place where it is a tensor."""
    filled = None  # groups may share it
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = learning_rate
        elif group["lr"] is not filled:
            filled = group["lr"].fill_(learning_rate)


class FlatParameters:
    """Parameters side by side in one tensor, their gradients in another.

    The modules keep their parameters, as views, and so does autograd its gradients. What treats
    all entries alike (a norm, an optimiser's step, a moving average) is then one operation,
    however many layers there are.

    Args:
        parameters: of one dtype, on the device where they will stay.

    Attributes:
        values: [n] a leaf with the gradients as its `grad`, for an optimiser.
        parameters: as they were given.
    """

    _ALIGNED = 16  # entries: every parameter begins at a cache line

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [-(-p.numel() // self._ALIGNED) * self._ALIGNED for p in self.parameters]
        first = self.parameters[0]
        self.values = nn.Parameter(first.new_zeros(sum(sizes)), first.requires_grad)
        self.grad = torch.zeros_like(self.values)
        if first.requires_grad:
            self.values.grad = self.grad
        places = zip(self.values.detach().split(sizes), self.grad.split(sizes), strict=True)
        for p, (value, grad) in zip(self.parameters, places, strict=True):
            value = value[: p.numel()].view_as(p)
            p.data = value.copy_(p.detach())
            if p.requires_grad:
                p.grad = grad[: p.numel()].view_as(p)

    def skip(self, skipped: bool) -> None:
        """Let an optimiser pass by these parameters, or no longer."""
        self.values.grad = None if skipped else self.grad

    @torch.no_grad()
    def clip_gradient(self, max_norm: float) -> Tensor:
        """Scale the gradient so that its 2-norm is at most `max_norm`; the norm before, []."""
        norm = torch.linalg.vector_norm(self.grad)
        self.grad.mul_((max_norm / norm).clamp_(max=1.0))
        return norm


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
    """torch's fused Adam, without the preparations of a step.

    torch wraps an optimiser's methods so that a compiler leaves them alone, and importing the
    compiler for the sake of that costs 1.5 s at the first step of a process that compiles nothing.
    And it sorts the parameters anew at every step, which takes longer than the arithmetic of a
    small network. State, groups and what is computed are the same. (Kingma and Ba 2014, arXiv
    1412.6980.)

    Args:
        params: tensors, or groups of them.
        lr: a number, or on CUDA a tensor on the parameters' device.
        settings: torch's, without `amsgrad` and `differentiable`.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, params: Any, lr: float | Tensor, **settings: Any) -> None:
        super().__init__(params, lr, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; `closure` evaluates the loss anew, and
        its value is returned."""
        for before in self._optimizer_step_pre_hooks.values():
            before(self, (), {})
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] or self._begin(p) for p in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                parameters,
                [p.grad for p in parameters],  # type: ignore[misc]
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )
        for after in self._optimizer_step_post_hooks.values():
            after(self, (), {})
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # else torch wraps it in its profiler's context

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
