"""Means of training metrics, summed where they arise and read back once a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RunningMetrics:
    """Sums of scalar tensors on their device; nothing waits for it before `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one value of each metric; the names are the same from call to call."""
        self._count += 1
        for name, value in metrics.items():
            value = value.detach()
            # A copy: a captured step writes its next values into the same place.
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def take(self) -> dict[str, float]:
        """Means since the last call, by name: a file does not keep the order they came in."""
        means = {name: float(total) / self._count for name, total in sorted(self._sums.items())}
        self._sums, self._count = {}, 0
        return means

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that the next row is the one an undisturbed run writes."""
        return {
            "count": torch.tensor(self._count),
            **{f"sum/{k}": v for k, v in self._sums.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from `tensors()`."""
        self._count = int(tensors["count"])
        self._sums = {
            name.removeprefix("sum/"): value.to(device)
            for name, value in tensors.items()
            if name.startswith("sum/")
        }
