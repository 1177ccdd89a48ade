"""Gumbel noise with right tails, and Gumbels conditional on which one wins.

G = −log E with E ~ Exp(1), so a large Gumbel is an E near 0. The tail is therefore as long as the
resolution of the uniform near 0: 24 random bits cap the Gumbel at 16.64, and an action 17 nats
down would never be drawn. Here u has 53 random bits before it is rounded to float32, whose
exponent keeps them near 0, and G reaches 37.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from gumbelrl.gumbel.fused import draw_seed, fused_noise, has_triton
from gumbelrl.gumbel.gradient import transformed
from torch import Tensor

_SMALLEST = 2.0**-54  # stands for u = 0, once in 2^53 draws: G = 37.4
_LARGEST = 1.0 - 2.0**-24  # the float32 below 1; a u that rounds up to 1 would give E = inf


_LARGE = 2**14  # draws from which the quicker source pays for its seeding
_BLOCK = 2**15


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Noise is float32 or wider: in float16 the tail would be gone whatever the source."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gumbel_noise(
    shape_or_like: Tensor | Sequence[int],
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw i.i.d. standard Gumbels.

    Args:
        shape_or_like: a shape, or a tensor whose shape, device and (widened) dtype are taken.
        generator: source of randomness; the default one of the device when None.
        dtype: torch.float32 (default) or torch.float64; a narrower one is widened to float32.
        device: where to draw.

    Returns:
        [*shape] finite noise, without a graph.
    """
    if isinstance(shape_or_like, Tensor):
        shape: Sequence[int] = shape_or_like.shape
        dtype = shape_or_like.dtype if dtype is None else dtype
        device = shape_or_like.device if device is None else device
    else:
        shape = shape_or_like
    dtype = noise_dtype(torch.float32 if dtype is None else dtype)
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "cpu" and math.prod(shape) >= _LARGE and not transformed():
        return _large(shape, generator, dtype)
    if device.type == "cuda" and dtype == torch.float32 and has_triton() and not transformed():
        return fused_noise(shape, draw_seed(device, generator))
    u = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
    return _from_uniform_(u.to(dtype))


def _from_uniform_(u: Tensor) -> Tensor:
    """G in place of u: E = −log(1 − u) is as fine near 0 as u is; G = −log E."""
    u.clamp_(_SMALLEST, _LARGEST)
    return u.neg_().log1p_().neg_().log_().neg_()


def _large(shape: Sequence[int], generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """The same from NumPy's SFC64, whose 53 bits cost less than half of those of torch's Mersenne
    twister, in blocks that stay in the cache. 256 bits from `generator` seed it, so one generator
    still decides everything."""
    # An array, since SFC64 takes twice as long to be seeded with a list.
    words = torch.randint(2**32, (8,), generator=generator, device="cpu").numpy()
    source = np.random.Generator(np.random.SFC64(words.astype(np.uint32)))
    out = torch.empty(shape, dtype=dtype, device="cpu")
    flat = out.view(-1)
    block = np.empty(min(_BLOCK, len(flat)))
    uniforms = torch.from_numpy(block)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK]
        source.random(out=block[: len(part)])
        _from_uniform_(part.copy_(uniforms[: len(part)]))
    return out


def conditional_gumbels(theta: Tensor, chosen: Tensor, noise: Tensor) -> Tensor:
    """Perturbed logits z = θ + G given that D is their argmax (Maddison 2014; stable form).

    With log E_j = −noise_j and logZ = logsumexp θ:
        winner i:  z_i = logZ − log E_i
        others j:  z_j = −logaddexp(log E_j − θ_j, log E_i − logZ)

    Args:
        theta: [..., K] logits; masked entries are −inf and stay −inf in z.
        chosen: [..., K] bool, the winners D.
        noise: [..., K] standard Gumbels (leading sample axes broadcast).

    Returns:
        [..., K] z, differentiable in θ; argmax z is D, and z over D ~ Cat(softmax θ) is θ + G.
    """
    allowed = theta > -torch.inf
    # A masked θ_j = −inf would put +inf through logaddexp, whose gradient there is NaN.
    free = noise + theta.where(allowed, 0.0)  # θ_j − log E_j, [..., K]
    log_z = theta.logsumexp(-1, keepdim=True)
    top = log_z + (noise * chosen).sum(-1, keepdim=True)  # logZ − log E_i, [..., 1]
    # Laid out in full: arithmetic that broadcasts a short last axis is not vectorised.
    top = top.expand(free.shape).contiguous()
    others = -torch.logaddexp(-free, -top)
    # Where free is far above top, rounding closes the gap: keep the loser strictly below.
    below = torch.nextafter(top.detach(), top.new_full((), -torch.inf))
    others = torch.minimum(others, below).masked_fill(~allowed, -torch.inf)
    return torch.where(chosen, top, others)
