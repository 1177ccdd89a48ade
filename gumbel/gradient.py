"""The two places where an estimator's gradient enters autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the one-hot itself. Backward: its gradient goes to p unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, index: Tensor) -> Tensor:
        return torch.zeros_like(p).scatter(-1, index.unsqueeze(-1), 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass  # the gradient of the identity needs nothing saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


def straight_through(p: Tensor, index: Tensor) -> Tensor:
    """Exact one-hot forward, the gradient of p backward.

    `one_hot + p − sg(p)` taken left to right is off by a rounding in a fifth of float32 rows; here
    the forward value never meets p. With p = S_τ(θ + G), autograd's softmax then turns the
    incoming g into J(p) g / τ, and a second derivative is right as well.

    Args:
        p: [..., K] surrogate whose Jacobian shall carry the gradient.
        index: [...] int64, which entry is 1.

    Returns:
        [..., K] exact one-hot.
    """
    return _straight_through(p, index)


class _Attach(torch.autograd.Function):
    """Forward: value. Backward: ordinary gradient to value, ĝ times it to θ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, theta: Tensor, g_hat: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (g_hat,) = ctx.saved_tensors
        return grad, grad[..., None, None].to(g_hat.dtype) * g_hat, None


def attach_gradient(value: Tensor, theta: Tensor, g_hat: Tensor) -> Tensor:
    """Return `value` [...] such that θ [..., M, K] receives ĝ [..., M, K] in the backward pass,
    and whatever `value` depends on its ordinary gradient. First derivatives only."""
    return _attach(value, theta, g_hat.detach())


_straight_through: Callable[..., Tensor] = _StraightThrough.apply
_attach: Callable[..., Tensor] = _Attach.apply
