"""The two places where an estimator's gradient enters autograd, and the softmax they share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Term = tuple[float | Tensor, Tensor]
"""(w, p): one part w J(p) g of ĝ. Axes of p before θ's are samples, summed over."""

_VECTORISED = 16  # below this many categories torch's softmax on the CPU goes entry by entry …
_TINY = 512  # … where its gradient is still quicker for so few entries: one call instead of four

_COUNTED = 2**24
"""Rows from which a sum of ones in float32 may be rounded."""

FAR_DOWN = -1e30
"""Stands for −∞ where a temperature is differentiated: e^(FAR_DOWN/τ) is 0 for every τ < 1e27."""


def softmax(x: Tensor) -> Tensor:
    """softmax over the last axis [..., K]. With few categories on the CPU it is written out, which
    is up to 6 times faster there; elsewhere torch's own."""
    if x.device.type != "cpu" or x.shape[-1] >= _VECTORISED:
        return x.softmax(-1)
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def softmax_(x: Tensor) -> Tensor:
    """The same for rows [..., K] whose maxima are 0 already; x is used up."""
    if x.device.type != "cpu" or x.shape[-1] >= _VECTORISED:
        return x.softmax(-1)
    e = x.exp_()
    return e.div_(e.sum(-1, keepdim=True))


def jacobian_product(p: Tensor, x: Tensor) -> Tensor:
    """J(p) x = p ⊙ (x − ⟨p, x⟩) over the last axis [..., K]; p may have more leading axes."""
    quick = p.device.type != "cpu" or p.shape[-1] >= _VECTORISED or p.numel() <= _TINY
    if quick and x.shape == p.shape:
        return torch._softmax_backward_data(x, p, -1, p.dtype)
    px = p * x
    return torch.addcmul(px, p, px.sum(-1, keepdim=True), value=-1.0)


def g_hat(terms: list[Term], g: Tensor) -> Tensor:
    """ĝ = Σ w J(p) g, [..., K]; differentiable in w and p."""
    total = None
    for w, p in terms:
        part = jacobian_product(p, g)
        if p.ndim > g.ndim:
            part = part.flatten(0, p.ndim - g.ndim - 1).sum(0)
        part = part if isinstance(w, float) and w == 1.0 else w * part
        total = part if total is None else total + part
    assert total is not None
    return total


def transformed() -> bool:
    """Is torch.func or a compiler at work? Both need `setup_context` functions, whose call costs
    plain autograd 20 µs more than a `ctx` one: two thirds of a small batch's sample."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _StraightThrough(torch.autograd.Function):
    """Forward: the one-hot itself. Backward: ĝ = Σ w J(p) g in closed form."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, d: Tensor, weights: Any, *ps: Tensor) -> Tensor:
        ctx.weights = weights
        ctx.save_for_backward(*ps)
        ctx.mark_dirty(d)  # D itself becomes the sample: no copy, and not a view
        return d

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        # Under create_graph only: the decorator would cost every backward pass 5 to 10 µs.
        return _pull_back_once(ctx, g) if torch.is_grad_enabled() else _pull_back(ctx, g)


def _pull_back(ctx: Any, g: Tensor) -> Any:
    ps = ctx.saved_tensors
    back = g_hat(list(zip(ctx.weights, ps, strict=True)), g)
    return back, None, None, *[None] * len(ps)


_pull_back_once: Callable[..., Any] = once_differentiable(_pull_back)


class _StraightThroughTransformed(torch.autograd.Function):
    """The same for vmap, torch.func and compilers."""

    generate_vmap_rule = True
    backward = staticmethod(_pull_back)

    @staticmethod
    def forward(theta: Tensor, d: Tensor, weights: Any, *ps: Tensor) -> Tensor:
        return d.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.weights = inputs[2]
        ctx.save_for_backward(*inputs[3:])


def choose(z: Tensor, top: Tensor | float | None = None) -> Tensor:
    """One-hot D [..., K] in z's dtype: 1 at the argmax of each row (the first one on a tie).

    On the CPU comparing with the maximum is 5 times faster than argmax and scatter; where it marks
    several entries of a row, rounding has made a tie, and the argmax decides.

    Args:
        z: [..., K] perturbed logits, without a graph.
        top: their maxima [..., 1], or the number that all of them are, where known.
    """
    if z.device.type == "cpu" and 0 < z.numel() < _COUNTED * z.shape[-1] and not transformed():
        top = z.amax(-1, keepdim=True) if top is None else top
        # Ones and zeros straight into z's dtype: by way of bool the same takes 8 times as long.
        d = torch.eq(z, top, out=torch.empty_like(z))
        if d.sum().item() * z.shape[-1] == z.numel():
            return d
    return torch.zeros_like(z).scatter(-1, z.argmax(-1, keepdim=True), 1.0)


def straight_through(theta: Tensor, d: Tensor, terms: list[Term]) -> Tensor:
    """Exact one-hot forward, ĝ = Σ w J(p) g to θ backward. First derivatives only.

    `one_hot + p − sg(p)` taken left to right is off by a rounding in a fifth of float32 rows; here
    the forward value never meets p. ST-GS is the one term (1/τ, S_τ(θ + G)).

    Args:
        theta: [..., K] where the gradient goes.
        d: [..., K] one-hot, from `choose`; handed over, it becomes the sample.
        terms: (w, p) pairs, constants here.

    Returns:
        [..., K] one-hot in θ's dtype.
    """
    weights = tuple(w for w, _ in terms)
    apply = _transformed_apply if transformed() else _apply
    return apply(theta, d.to(theta.dtype), weights, *[p for _, p in terms])


class _Attach(torch.autograd.Function):
    """Forward: value. Backward: ordinary gradient to value, ĝ times it to θ."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, theta: Tensor, g_theta: Tensor) -> Tensor:
        ctx.save_for_backward(g_theta)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (g_theta,) = ctx.saved_tensors
        return grad, grad[..., None, None].to(g_theta.dtype) * g_theta, None


def attach_gradient(value: Tensor, theta: Tensor, g_theta: Tensor) -> Tensor:
    """Return `value` [...] such that θ [..., M, K] receives ĝ = g_theta [..., M, K] in the backward
    pass, and whatever `value` depends on its ordinary gradient. First derivatives only."""
    return _attach(value, theta, g_theta.detach())


_apply: Callable[..., Tensor] = _StraightThrough.apply
_transformed_apply: Callable[..., Tensor] = _StraightThroughTransformed.apply
_attach: Callable[..., Tensor] = _Attach.apply
