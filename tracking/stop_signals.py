"""Ctrl-C and its like, told to a run once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopSignals:
    """Within it the first Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt.

    The second is ignored, so that the end of a run can be written; the third ends the process. A
    signal that the process ignores already (`nohup`) stays ignored. Outside the main thread, where
    Python delivers no signals, it does nothing.

    Attributes:
        received: how many came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferred = False
        self._previous: dict[signal.Signals, Any] = {}

    def defer(self) -> None:
        """From here on the first signal is ignored too: what remains is short."""
        self._deferred = True

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.received >= 3:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        if self.received == 1 and not self._deferred:
            raise KeyboardInterrupt
