"""Returns and lengths of episodes, counted on the device."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HostView:
    """A tensor for Stable-Baselines3's callbacks, copied to the host only if one looks."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._tensor.cpu().numpy(), dtype=dtype)


FLUSH_EVERY = 64  # steps between copies to the host


class EpisodeCounter:
    """Adds up rewards of environments with batch axes [...], and hands on what ended.

    The host hears of ended episodes every `FLUSH_EVERY` steps and when asked, so no step waits for
    the device.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.returns = torch.zeros(shape, device=device)  # of the episodes that run
        self.lengths = torch.zeros(shape, device=device)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._ended: list[dict[str, Any]] = []

    def add(self, reward: Tensor, done: Tensor) -> None:
        """Count one step: reward [...] and bool done [...]."""
        self.returns = self.returns + reward.detach()
        self.lengths = self.lengths + 1
        self._pending.append((done, self.returns, self.lengths))
        self.returns = self.returns.masked_fill(done, 0.0)
        self.lengths = self.lengths.masked_fill(done, 0.0)
        if len(self._pending) >= FLUSH_EVERY:
            self._copy()

    def begin_at(self, elapsed: Tensor) -> None:
        """Forget episodes that were restarted from outside: those with `elapsed` [...] at 0."""
        self.returns = self.returns.masked_fill(elapsed == 0, 0.0)
        self.lengths = elapsed.to(self.lengths.dtype)

    def _copy(self) -> None:
        columns = zip(*self._pending, strict=True)
        done, returns, lengths = (torch.stack(column).cpu() for column in columns)
        pairs = zip(returns[done].tolist(), lengths[done].tolist(), strict=True)
        self._ended += [{"r": r, "l": int(length)} for r, length in pairs]
        self._pending = []

    def report(self, ep_info_buffer: deque[dict[str, Any]] | None, wait: bool = True) -> int:
        """Move ended episodes into Stable-Baselines3's statistics; returns how many there were.

        Without `wait`, only those that the host has heard of already.
        """
        if wait and self._pending:
            self._copy()
        count = len(self._ended)
        if ep_info_buffer is not None:
            ep_info_buffer.extend(self._ended)
        self._ended = []
        return count
