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
        self._n_pending = 0  # steps
        self._ended: list[dict[str, Any]] = []

    def add(self, reward: Tensor, done: Tensor) -> None:
        """Count one step: reward [...] and bool done [...]."""
        self.keep(done, *self.count(reward, done))

    def count(self, reward: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """The device's part of `add`: returns and lengths [...] with this step."""
        returns, lengths = self.returns + reward.detach(), self.lengths + 1
        self.returns = returns.masked_fill(done, 0.0)
        self.lengths = lengths.masked_fill(done, 0.0)
        return returns, lengths

    def keep(self, done: Tensor, returns: Tensor, lengths: Tensor) -> None:
        """The host's part of `add`, for one step [...] or several [H, ...] as `count` gave them."""
        self._pending.append((done, returns, lengths))
        self._n_pending += done.numel() // self.returns.numel()
        if self._n_pending >= FLUSH_EVERY:
            self._copy()

    def begin_at(self, elapsed: Tensor) -> None:
        """Forget episodes that were restarted from outside: those with `elapsed` [...] at 0."""
        self.returns = self.returns.masked_fill(elapsed == 0, 0.0)
        self.lengths = elapsed.to(self.lengths.dtype)

    def _copy(self) -> None:
        columns = zip(*self._pending, strict=True)
        done, returns, lengths = (
            torch.cat([entry.flatten() for entry in column]).cpu() for column in columns
        )
        pairs = zip(returns[done].tolist(), lengths[done].tolist(), strict=True)
        self._ended += [{"r": r, "l": int(length)} for r, length in pairs]
        self._pending, self._n_pending = [], 0

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
