"""The fused sampler: pathwise estimators in one kernel forward and one backward, on CUDA.

    one_hot = fused_sample(logits, Fused("st_gumbel", temperature=0.5), generator=generator)

Forward reads the logits and writes index and one-hot; backward draws the noise again from the seed
that forward used, so nothing of the logits' size is kept. In float32 that is 8 and 12 bytes per
logit. The seed comes from the torch generator and stays on the device: nothing waits, and a CUDA
graph that was captured with its generator registered replays with fresh noise.

The eager estimators are the reference, and what runs wherever this does not (`usable`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KINDS = ("straight_through", "st_gumbel", "gumbel_rao", "gapped_st", "reinmax")
"""Estimators with a kernel; their places are the kernels' KIND."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STATISTIC = {"gumbel_rao": 1, "gapped_st": 2}  # what backward needs of each row


@dataclass(frozen=True)
class Fused:
    """Which gradient: an estimator's name from KINDS and its settings.

    `temperature` is a number, or a float32 tensor of one element on the logits' device, which a
    captured graph reads anew at every replay.
    """

    kind: str
    temperature: float | Tensor = 1.0
    k: int = 1
    gap: float = 1.0


@cache
def has_triton() -> bool:
    """Is Triton installed? It comes with torch's CUDA builds."""
    return importlib.util.find_spec("triton") is not None


def usable(logits: Tensor) -> bool:
    """Can the kernels serve these logits? CUDA, Triton installed, float32 or narrower."""
    return (
        logits.is_cuda
        and logits.dtype in _DTYPES
        and logits.numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and has_triton()
    )


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """int64 [1] on the device, from `generator`."""
    return torch.empty(1, dtype=torch.int64, device=device).random_(generator=generator)


def fused_sample(
    logits: Tensor,
    fused: Fused,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One-hot D of argmax(θ + G), ĝ of `fused` in the backward pass. First derivatives only.

    Args:
        logits: [..., K] float32, bfloat16 or float16.
        fused: the gradient.
        mask: bool, broadcastable onto the logits, True where allowed.
        seed: int64 [1] on the logits' device; drawn from `generator` when None.
        generator: on the logits' device; its default one when None.

    Returns:
        [..., K] in the logits' dtype.
    """
    seed = draw_seed(logits.device, generator) if seed is None else seed
    rows = logits.reshape(-1, logits.shape[-1])
    allowed = _mask_rows(mask, logits)
    if torch.compiler.is_compiling():
        sample: Tensor = _operator(rows, allowed, seed, *_plain(fused))[0]
    elif logits.requires_grad and torch.is_grad_enabled():
        sample = _apply(rows, allowed, seed, fused)
    else:
        sample = _forward(rows, allowed, seed)[0]
    return sample.view(logits.shape)


def fused_index(
    logits: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Sampled categories, int64 [...] for logits [..., K]; nothing else is written."""
    seed = draw_seed(logits.device, generator)
    rows = logits.detach().reshape(-1, logits.shape[-1])
    index = _forward(rows, _mask_rows(mask, logits), seed, one_hot=False)[1]
    return index.view(logits.shape[:-1])


def fused_noise(shape: Sequence[int], seed: Tensor, stream: int = 0) -> Tensor:
    """The kernels' standard Gumbels, float32 [..., K], of a stream: in stream 0, those that forward
    adds to logits of this shape."""
    from gumbelrl.gumbel import triton_kernels as kernels

    out = torch.empty(shape, device=seed.device)
    if out.numel() == 0:
        return out
    n = shape[-1] if len(shape) else 1
    n_rows = out.numel() // n
    width = min(_width(n), kernels.LONGEST_TILE)
    rows, warps = _tile(width, FORWARD_TILE)
    grid = (-(-n_rows // rows), -(-n // width))
    kernels.noise_tile[grid](seed, out, n_rows, n, stream, ROWS=rows, WIDTH=width, num_warps=warps)
    return out


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor | None, seed: Tensor, fused: Fused) -> Tensor:
        sample, index, known = _forward(rows, mask, seed, _STATISTIC.get(fused.kind, 0))
        ctx.fused = fused
        ctx.save_for_backward(rows, mask, seed, index, known)
        return sample

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, mask, seed, index, known = ctx.saved_tensors
        back = _backward(grad, rows, mask, seed, index, known, ctx.fused)
        return back, None, None, None


_apply: Callable[..., Tensor] = _Sample.apply

_SETTINGS = "float temperature, Tensor? temperature_on_device, int kind, int k, float gap"


def _plain(fused: Fused) -> tuple[Any, ...]:
    """A Fused as arguments of the operator."""
    tau = fused.temperature
    on_device = tau if isinstance(tau, Tensor) else None
    number = 1.0 if isinstance(tau, Tensor) else float(tau)
    return number, on_device, KINDS.index(fused.kind), fused.k, fused.gap


def _from_plain(tau: float, on_device: Tensor | None, kind: int, k: int, gap: float) -> Fused:
    return Fused(KINDS[kind], tau if on_device is None else on_device, k, gap)


# What `torch.compile` sees: two operators that it keeps whole.
@torch.library.custom_op(
    "gumbelrl::fused_sample",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor? mask, Tensor seed, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)
def _operator(
    logits: Tensor, mask: Tensor | None, seed: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(logits, mask, seed, _STATISTIC.get(_from_plain(*settings).kind, 0))


@_operator.register_fake
def _(logits: Tensor, mask: Tensor | None, seed: Tensor, *settings: Any) -> Any:
    n_rows = logits.shape[0]
    index = logits.new_empty(n_rows, dtype=torch.int64)
    known = n_rows if _from_plain(*settings).kind in _STATISTIC else 0
    return torch.empty_like(logits), index, logits.new_empty(known, dtype=torch.float32)


@torch.library.custom_op(
    "gumbelrl::fused_sample_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor logits, Tensor? mask, Tensor seed, Tensor index, Tensor known, "
    f"{_SETTINGS}) -> Tensor",
)
def _backward_operator(
    grad: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    seed: Tensor,
    index: Tensor,
    known: Tensor,
    *settings: Any,
) -> Tensor:
    return _backward(grad, logits, mask, seed, index, known, _from_plain(*settings))


@_backward_operator.register_fake
def _(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    logits, mask, seed, *settings = inputs
    ctx.settings = settings
    ctx.save_for_backward(logits, mask, seed, *output[1:])


def _pull_back(ctx: Any, grad: Tensor, *unused: Any) -> Any:
    back = _backward_operator(grad, *ctx.saved_tensors, *ctx.settings)
    return back, *[None] * (2 + len(ctx.settings))


_operator.register_autograd(_pull_back, setup_context=_keep)


def _mask_rows(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """bool [R, K], or [K] where one mask serves all rows."""
    if mask is None:
        return None
    if mask.numel() == mask.shape[-1]:
        return mask.reshape(-1).contiguous()
    return mask.expand(logits.shape).reshape(-1, logits.shape[-1]).contiguous()


def _width(n: int) -> int:
    """The power of two that holds n categories; noise comes in pairs."""
    return max(2, 1 << (n - 1).bit_length())


FORWARD_TILE = 2048  # elements of a program
BACKWARD_TILE = 2048
FORWARD_CHUNK = (2048, 8)  # elements of a step along a long row, warps
BACKWARD_CHUNK = (8192, 32)


def _tile(width: int, per_program: int) -> tuple[int, int]:
    """(rows of a program, its warps) for rows of `width`."""
    rows = max(1, per_program // width)
    return rows, min(max(rows * width // 512, 1), 16)


def _rows_and_mask(logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Contiguous logits, the mask as bytes (anything where there is none), its row stride."""
    logits = logits.detach().contiguous()
    if mask is None:
        return logits, logits, 0
    return logits, mask.view(torch.uint8), logits.shape[1] if mask.ndim == 2 else 0


def _forward(
    logits: Tensor, mask: Tensor | None, seed: Tensor, statistic: int = 0, one_hot: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(one-hot [R, K], index [R], statistic [R]); what is not asked for is empty."""
    from gumbelrl.gumbel import triton_kernels as kernels

    rows, allowed, mask_stride = _rows_and_mask(logits, mask)
    n_rows, n = rows.shape
    hot = torch.empty_like(rows) if one_hot else rows.new_empty(0)
    index = rows.new_empty(n_rows, dtype=torch.int64)
    known = rows.new_empty(n_rows if statistic else 0, dtype=torch.float32)
    arguments = (rows, allowed, seed, hot, index, known)
    how = {"HAS_MASK": mask is not None, "WRITE_ONE_HOT": one_hot, "STATISTIC": statistic}
    width = _width(n)
    if width <= kernels.LONGEST_TILE:
        height, warps = _tile(width, FORWARD_TILE)
        kernels.forward_tile[(-(-n_rows // height),)](
            *arguments, n_rows, mask_stride, K=n, ROWS=height, WIDTH=width, num_warps=warps, **how
        )
    else:
        width, warps = FORWARD_CHUNK
        kernels.forward_long[(n_rows,)](
            *arguments, mask_stride, K=n, WIDTH=width, num_warps=warps, **how
        )
    return hot, index, known


def _backward(
    grad: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    seed: Tensor,
    index: Tensor,
    known: Tensor,
    fused: Fused,
) -> Tensor:
    """ĝ [R, K] in the logits' dtype."""
    from gumbelrl.gumbel import triton_kernels as kernels

    rows, allowed, mask_stride = _rows_and_mask(logits, mask)
    n_rows, n = rows.shape
    out = torch.empty_like(rows)
    arguments = (rows, allowed, seed, index, known, grad.contiguous(), out)
    how = {
        "HAS_MASK": mask is not None,
        "KIND": KINDS.index(fused.kind),
        "TEMPERATURE_ON_DEVICE": isinstance(fused.temperature, Tensor),
    }
    width = _width(n)
    if width <= kernels.LONGEST_TILE:
        height, warps = _tile(width, BACKWARD_TILE)
        kernels.backward_tile[(-(-n_rows // height),)](
            *arguments, n_rows, mask_stride, fused.temperature, fused.gap, K=n, k=fused.k,
            ROWS=height, WIDTH=width, num_warps=warps, **how,
        )  # fmt: skip
    else:
        width, warps = BACKWARD_CHUNK
        terms = {"gumbel_rao": fused.k, "reinmax": 2}.get(fused.kind, 1)
        kernels.backward_long[(n_rows,)](
            *arguments, mask_stride, fused.temperature, fused.gap, K=n, k=terms,
            WIDTH=width, num_warps=warps, TERMS=1 << (terms - 1).bit_length(), **how,
        )  # fmt: skip
    return out
