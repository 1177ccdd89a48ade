"""A log output in a thread of its own: it may raise, hang or fall behind, training goes on."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gumbelrl.tracking.error_text import brief
from stable_baselines3.common.logger import KVWriter

QUEUE_ROWS = 10_000
_GRACE = 1.0  # seconds of waiting at the end before asking whether more of it has a point

_log = logging.getLogger(__name__)


class BackgroundWriter(KVWriter):
    """Any Stable-Baselines3 log output, opened, written and closed in a thread of its own.

    It is cut off, with one warning, by its first exception, by a call that does not return within
    `stall_timeout` seconds, by a full queue, or at the end by not closing in time. Nothing of that
    reaches training, and `unsent_rows` and `unsent_files` say what it missed.

    Args:
        name: what the user calls it.
        open_output: makes the output; called in the thread, so a slow start holds nothing up.
        start_timeout: seconds that this may take.
        stall_timeout: seconds that any later call may take.
        finish_timeout: seconds that `close` waits at most.
        queue_rows: calls that may wait, >= 1.

    Attributes:
        failure: why it was cut off, or None.
        rows: rows given so far.
        unharmed: what goes on without it, for the warning.
        record: what has everything all the same.
    """

    unharmed = "Training goes on"
    record = "metrics.jsonl"

    def __init__(
        self,
        name: str,
        open_output: Callable[[], KVWriter],
        *,
        start_timeout: float = 60.0,
        stall_timeout: float = 60.0,
        finish_timeout: float = 30.0,
        queue_rows: int = QUEUE_ROWS,
    ) -> None:
        self.name = name
        self.failure: str | None = None
        self.rows = 0
        self._rows_done = 0
        self._files = 0
        self._files_done = 0
        self._open_output = open_output
        self._stall_timeout = stall_timeout
        self._finish_timeout = finish_timeout
        self._queue_rows = queue_rows
        self._warned = threading.Lock()  # held by the one who warns, and for good
        self._jobs: queue.SimpleQueue[tuple[Callable[[Any], None], int, int] | None]
        self._jobs = queue.SimpleQueue()
        # When the call that runs must have returned, and what is said if it has not.
        self._due = time.monotonic() + start_timeout
        self._late = f"it did not start within {start_timeout:g} s"
        self._ending = False
        self._stuck = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    @property
    def unsent_rows(self) -> int:
        """Rows that were given and not written."""
        return self.rows - self._rows_done

    @property
    def unsent_files(self) -> int:
        """Files that were given and not handed on."""
        return self._files - self._files_done

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Hand over one row at `step` env steps; returns at once."""
        values = {key: _kept(value) for key, value in key_values.items()}
        excluded = dict(key_excluded)
        self.submit(lambda output: output.write(values, excluded, step), rows=1)

    def submit(self, job: Callable[[Any], None], *, rows: int = 0, files: int = 0) -> None:
        """Let `job(output)` be called in the thread, after what was submitted before it.

        Args:
            rows: how many rows it writes, for the count of what is missing.
            files: how many files it hands on.
        """
        if self._ending:
            return
        self.rows += rows
        self._files += files
        if self.failure is not None:
            return
        self._jobs.put((job, rows, files))
        if time.monotonic() > self._due:
            self._abandon(self._late)
        elif self._jobs.qsize() > self._queue_rows:
            self._abandon(f"{self._queue_rows:,} rows wait to be written")

    def end(self) -> None:
        """Ask it to close once everything was written; `wait` waits for that."""
        if not self._ending:
            self._ending = True
            self._jobs.put(None)

    def wait(self, deadline: float) -> None:
        """Wait until it has closed, to a `time.monotonic()` at most."""
        if self._stuck:
            return
        self._thread.join(max(min(_GRACE, deadline - time.monotonic()), 0.0))
        if self._thread.is_alive() and (reason := self._hopeless()):
            self._abandon(reason)
            return
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._abandon(f"it did not finish within {self._finish_timeout:g} s")

    def close(self) -> None:
        """Close within `finish_timeout` seconds; twice is once."""
        if not self._ending:
            self.end()
            self.wait(time.monotonic() + self._finish_timeout)

    def _hopeless(self) -> str | None:
        """Why waiting for its end has no point, if that is known."""
        return None

    def _abandon(self, why: str) -> None:
        """Leave it to itself, whatever it does; its thread keeps no process from ending."""
        self._stuck = True
        self._give_up(why)

    def _work(self) -> None:
        try:
            output = self._open_output()
        except BaseException as error:  # SystemExit too must not end the thread unseen
            self._give_up(brief(error))
            return
        self._due = float("inf")
        self._late = f"a call has not returned for {self._stall_timeout:g} s"
        while (item := self._jobs.get()) is not None:
            job, rows, files = item
            if self.failure is None and self._attempt(partial(job, output)):
                self._rows_done += rows
                self._files_done += files
        self._attempt(output.close)  # what was written ends well

    def _attempt(self, call: Callable[[], None]) -> bool:
        self._due = time.monotonic() + self._stall_timeout
        try:
            call()
            return True
        except BaseException as error:
            self._give_up(brief(error))
            return False
        finally:
            self._due = float("inf")

    def _give_up(self, why: str) -> None:
        if self._warned.acquire(blocking=False):
            self.failure = why
            _log.warning(
                "%s failed and is left out from here on (%s). %s; %s has everything.",
                self.name,
                why,
                self.unharmed,
                self.record,
            )


def _kept(value: Any) -> Any:
    """A value that training cannot change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return value.copy() if isinstance(value, np.ndarray) else value
