"""Layout of a factored action: M categoricals of sizes K_1 … K_M, flat or padded.

The flat form [..., ΣK] is what networks write and critics read. The padded form [..., M, Kmax]
lets one softmax or argmax serve all factors. With equal sizes the padded form is a view.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from gumbelrl.gumbel.gradient import transformed
from torch import Tensor


def _to_padded(flat: Tensor, places: Tensor, m: int, fill: float) -> Tensor:
    wide = torch.nn.functional.pad(flat, (0, 1), value=fill)  # [..., ΣK + 1]
    return wide.index_select(-1, places).view(*flat.shape[:-1], m, len(places) // m)


def _to_flat(padded: Tensor, places: Tensor) -> Tensor:
    return padded.flatten(-2).index_select(-1, places)  # [..., ΣK]


class _Pad(torch.autograd.Function):
    """Flat to padded; its gradient is the gather back, which is cheaper than index_add."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, to_padded: Tensor, to_flat: Tensor, m: int, fill: float
    ) -> Tensor:
        ctx.save_for_backward(to_padded, to_flat)
        ctx.m = m
        return _to_padded(flat, to_padded, m, fill)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        to_padded, to_flat = ctx.saved_tensors
        return _flatten(grad, to_padded, to_flat, ctx.m), None, None, None, None


class _Flatten(torch.autograd.Function):
    """Padded to flat; its gradient is the padding with zeros."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, to_padded: Tensor, to_flat: Tensor, m: int) -> Tensor:
        ctx.save_for_backward(to_padded, to_flat)
        ctx.m = m
        return _to_flat(padded, to_flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        to_padded, to_flat = ctx.saved_tensors
        return _pad(grad, to_padded, to_flat, ctx.m, 0.0), None, None, None


_pad: Callable[..., Tensor] = _Pad.apply
_flatten: Callable[..., Tensor] = _Flatten.apply


@dataclass(frozen=True)
class FactorLayout:
    """Sizes of the factors, and the two ways between flat and padded.

    | call | shape |
    |---|---|
    | `pad(flat, fill)` | [..., ΣK] -> [..., M, Kmax] |
    | `flatten(padded)` | [..., M, Kmax] -> [..., ΣK] |
    """

    nvec: tuple[int, ...]
    m: int = field(init=False)
    """Number of factors M."""
    k_max: int = field(init=False)
    """Size of the largest factor."""
    total: int = field(init=False)
    """ΣK, the width of the flat form."""
    equal: bool = field(init=False)
    """All factors of one size: no padding, the padded form is a view."""

    def __post_init__(self) -> None:
        if not self.nvec or any(k < 1 for k in self.nvec):
            raise ValueError(
                f"every factor needs at least one category, got nvec={list(self.nvec)}; "
                "leave out factors of size 0"
            )
        object.__setattr__(self, "m", len(self.nvec))
        object.__setattr__(self, "k_max", max(self.nvec))
        object.__setattr__(self, "total", sum(self.nvec))
        object.__setattr__(self, "equal", min(self.nvec) == self.k_max)

    def pad(self, flat: Tensor, fill: float) -> Tensor:
        """[..., ΣK] -> [..., M, Kmax]; the places beyond a factor's size hold `fill`."""
        if self.equal:
            return flat.reshape(*flat.shape[:-1], self.m, self.k_max)
        to_padded, to_flat = _indices(self.nvec, flat.device)
        if transformed():  # plain operations, which vmap and compilers know
            return _to_padded(flat, to_padded, self.m, fill)
        return _pad(flat, to_padded, to_flat, self.m, fill)

    def flatten(self, padded: Tensor) -> Tensor:
        """[..., M, Kmax] -> [..., ΣK]; the places beyond a factor's size are dropped."""
        if self.equal:
            return padded.flatten(-2)
        to_padded, to_flat = _indices(self.nvec, padded.device)
        if transformed():
            return _to_flat(padded, to_flat)
        return _flatten(padded, to_padded, to_flat, self.m)


@cache
def layout_of(nvec: tuple[int, ...]) -> FactorLayout:
    """The layout of these sizes; one object however often it is asked for."""
    return FactorLayout(nvec)


_KNOWN: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}


def _indices(nvec: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(for each padded place its flat index, ΣK where there is none; and the inverse)."""
    if (nvec, device) not in _KNOWN:
        with torch.inference_mode(False):  # kept for later calls, which may want a graph
            sizes = torch.tensor(nvec)
            column = torch.arange(max(nvec))
            inside = column < sizes[:, None]  # [M, Kmax]
            start = (sizes.cumsum(0) - sizes)[:, None]
            to_padded = torch.where(inside, start + column, sum(nvec)).flatten()
            to_flat = inside.flatten().nonzero().squeeze(-1)
            _KNOWN[nvec, device] = to_padded.to(device), to_flat.to(device)
    return _KNOWN[nvec, device]
