"""Which environment went wrong, and when, without a step that waits for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FaultWatch:
    """Remembers on the device the first NaN or infinity of a training run; told when asked.

    Looking at every step would wait for the device at every step. Whole windows are looked at
    instead, and the host asks now and then: by then the fault has spread into the networks and
    from them into all environments, so the first place is what counts.

    Args:
        device: where the windows are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)  # flat number, -1: none
        self._seen = 0
        self._shape: tuple[int, ...] = ()

    def look(self, obs: Tensor, rewards: Tensor) -> None:
        """Look at observations [H, ..., D] and rewards [H, ...] of a window; shapes stay alike."""
        wrong = ~(rewards.isfinite() & obs.isfinite().all(-1)).flatten()
        place = wrong.to(torch.uint8).argmax() + self._seen  # the first of the largest
        self._first = torch.where((self._first < 0) & wrong.any(), place, self._first)
        self._seen += wrong.numel()
        self._shape = tuple(rewards.shape)

    def tell(self) -> None:
        """Raise ValueError if there was a fault; waits for the device."""
        first = int(self._first)
        if first < 0:
            return
        batch = self._shape[1:]
        step, row = divmod(first, math.prod(batch))  # windows follow each other
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(row), batch))
        name = place[0] if len(place) == 1 else place
        raise ValueError(
            f"an observation or a reward became NaN or infinite (environment {name}, step "
            f"{step + 1} since training began); the agent has been trained on it since. To stop at "
            "once, train with device='cpu', where every step is checked"
        )
