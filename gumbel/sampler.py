"""The sampler of the article, made sound: any batch shape, right tails, exact one-hots."""

from typing import Any

import torch
from gumbelrl.gumbel.choices import fraction, positive
from gumbelrl.gumbel.distribution import check_mask, check_rows
from gumbelrl.gumbel.fused import Fused, fused_sample, usable
from gumbelrl.gumbel.gradient import choose, softmax_, straight_through
from gumbelrl.gumbel.noise import gumbel_noise, noise_dtype
from gumbelrl.gumbel.temperature import make_schedule
from torch import Tensor, nn


def gumbel_softmax(
    logits: Any,
    temperature: float = 1.0,
    *,
    hard: bool = True,
    mask: Any | None = None,
    generator: torch.Generator | None = None,
    validate: bool | None = None,
) -> Tensor:
    """Sample from Cat(softmax θ) with a gradient (Jang et al. 2016, Maddison et al. 2016).

    y = softmax((θ + G)/τ), G ~ Gumbel(0, 1). Hard: the exact one-hot of argmax(θ + G) forward,
    J(y) g/τ backward. Soft: y itself. The argmax is that of θ + G, never of y, which saturates.

    Args:
        logits: [..., K] tensor, NumPy array or list; integers become float32.
        temperature: τ > 0.
        hard: straight-through one-hots; soft samples when False.
        mask: bool [..., K], True where allowed.
        generator: source of randomness, on the logits' device.
        validate: look for NaN, +inf and rows with nothing allowed; None means on the CPU only.

    Returns:
        [..., K] in the logits' dtype. Forbidden entries and their gradients are exactly 0.

    Raises:
        ValueError: τ <= 0 or NaN, a wrong mask, or bad values.
    """
    tau = positive("temperature", temperature)
    values: Tensor = torch.as_tensor(logits)
    if not values.is_floating_point():
        values = values.to(torch.float32)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"logits need a last axis of at least one category, got shape {list(values.shape)}"
        )
    dtype = values.dtype
    checked = values.device.type == "cpu" if validate is None else validate
    if mask is not None:
        mask = torch.as_tensor(mask, device=values.device)
        check_mask(mask, values)
    if hard and usable(values) and not checked:
        return fused_sample(values, Fused("st_gumbel", tau), mask, generator=generator)
    theta = values if dtype == noise_dtype(dtype) else values.to(noise_dtype(dtype))
    if mask is not None:
        theta = theta.where(mask, -torch.inf)
    if not hard:
        if checked:
            check_rows(theta)
        return ((theta + gumbel_noise(theta, generator)) / tau).softmax(-1).to(dtype)
    # In place throughout: fresh memory costs more than arithmetic.
    z = gumbel_noise(theta, generator).add_(theta.detach())
    top = z.amax(-1, keepdim=True)
    if checked:
        check_rows(theta, top)
    z = z.sub_(top)  # z − max z: 0 at the argmax
    d = choose(z, 0.0)
    if not (theta.requires_grad and torch.is_grad_enabled()):
        return d.to(dtype)
    y = softmax_(z if tau == 1.0 else z.div_(tau))
    sample = straight_through(theta, d, [(1.0 / tau, y)])
    return sample if dtype == sample.dtype else sample.to(dtype)


class GumbelSoftmax(nn.Module):
    """`gumbel_softmax` as a layer, with a temperature that may follow training progress.

    Args:
        temperature: τ > 0, a Schedule, or a mapping for `make_schedule`.
        hard: straight-through one-hots; soft samples when False.
    """

    def __init__(self, temperature: Any = 1.0, hard: bool = True) -> None:
        super().__init__()
        self.schedule = make_schedule(temperature)
        self.hard = hard
        self._progress = 0.0

    @property
    def temperature(self) -> float:
        """τ at the present progress."""
        return self.schedule(self._progress)

    def set_progress(self, p: float) -> None:
        """Move the schedule to progress p in [0, 1]."""
        self._progress = fraction("progress", p)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._progress], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.set_progress(float(state))

    def forward(
        self, logits: Any, mask: Any | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """[..., K] -> [..., K], as `gumbel_softmax`."""
        return gumbel_softmax(
            logits, self.temperature, hard=self.hard, mask=mask, generator=generator
        )
