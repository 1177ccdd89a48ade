"""Adam over a few numbers that an estimator tunes by itself, all of its state in buffers.

Buffers and not an optimiser: the state then travels in the estimator's `state_dict` as tensors,
and no agent's optimiser picks the numbers up by accident.
"""

from typing import Any

import torch
from gumbelrl.gumbel.choices import positive
from torch import Tensor, nn


class Tuned(nn.Module):
    """A flat vector φ [n] that descends whatever gradient it is given (Kingma & Ba 2015).

    Args:
        start: [n] initial φ; None until `start_from` is called or a state is loaded.
        learning_rate: >= 0; with 0 φ stays where it is.
    """

    phi: Tensor
    moments: Tensor
    steps: Tensor

    def __init__(self, start: Tensor | None, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = positive("learning_rate", learning_rate, zero=True)
        self.register_buffer("phi", torch.zeros(0))
        self.register_buffer("moments", torch.zeros(2, 0))
        self.register_buffer("steps", torch.zeros(()))
        if start is not None:
            self.start_from(start)

    def start_from(self, start: Tensor) -> None:
        """Set φ to `start` [n] with fresh moments."""
        self.phi = start.detach().clone()
        self.moments = torch.zeros(2, len(start), device=start.device, dtype=start.dtype)

    def step(self, gradient: Tensor) -> None:
        """One step of Adam (β = 0.9, 0.999) on ∂loss/∂φ [n]; a gradient with NaN or inf is
        skipped, without waiting for the device."""
        ok = gradient.isfinite().all()
        self.steps = self.steps + ok
        m, v = self.moments
        m = torch.where(ok, 0.9 * m + 0.1 * gradient, m)
        v = torch.where(ok, 0.999 * v + 0.001 * gradient**2, v)
        self.moments = torch.stack([m, v])
        m_hat = m / (1 - 0.9**self.steps).clamp(min=0.1)
        v_hat = v / (1 - 0.999**self.steps).clamp(min=0.001)
        step = self.learning_rate * m_hat / (v_hat.sqrt() + 1e-12)
        self.phi = torch.where(ok, self.phi - step, self.phi)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "phi" in state:  # the size may be that of a network not yet built here
            self.start_from(torch.zeros_like(state[prefix + "phi"], device=self.phi.device))
        super()._load_from_state_dict(state, prefix, *rest)
