"""`heartbeat.json`: a sign of life in the run folder, by which dead is told from slow."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

BEAT_SECONDS = 5.0
_DEAD_AFTER = 6 * BEAT_SECONDS  # a machine that swaps may be late


@dataclass(frozen=True)
class Beat:
    """What a heartbeat says.

    Args:
        pid: of the process that trains.
        host: where it runs.
        time: of this beat, seconds since 1970.
        env_steps: made so far.
        progress_time: when `env_steps` last grew, or the phase changed.
        phase: "starting", "training", "evaluating", "saving", and at the end "finished",
            "interrupted" or "failed".
    """

    pid: int
    host: str
    time: float
    env_steps: int
    progress_time: float
    phase: str

    @property
    def ended(self) -> bool:
        """Whether the run said that it ended."""
        return self.phase in ("finished", "interrupted", "failed")

    def state(self, now: float | None = None) -> Literal["alive", "dead", "ended"]:
        """ "dead" where the last beat is older than 30 s and none said that the run ended.

        A run that is alive and slow beats on; how long it has made no step is
        `time - progress_time`. Clocks of two machines may differ: who reads a heartbeat from
        another host should look twice, and compare what it says with what it said.
        """
        if self.ended:
            return "ended"
        age = (time.time() if now is None else now) - self.time
        return "dead" if age > _DEAD_AFTER else "alive"


def read_heartbeat(path: str | Path) -> Beat | None:
    """The last beat; None where there is none, or it cannot be read."""
    try:
        return Beat(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Heartbeat:
    """Beats from a thread of its own, every few seconds and when it begins and ends.

    A thread, because an evaluation, an update or an environment may take minutes in which no
    callback is called, and the run is alive all the same. Writing fails silently: whatever is
    wrong with the disk is told where something of value is written.

    Args:
        path: the file.
        env_steps: tells how far the run is.
        seconds: between beats, > 0.
    """

    def __init__(
        self, path: str | Path, env_steps: Callable[[], int], seconds: float = BEAT_SECONDS
    ) -> None:
        self.path = Path(path)
        self.seconds = seconds
        self._env_steps = env_steps
        self._phase = "starting"
        self._progress = (0, "", 0.0)  # env steps, phase, when they became so
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._beat()
        self._thread.start()

    def stop(self, phase: str) -> None:
        """Beat once more, with the word for how the run ended."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self.seconds)  # a disk that hangs does not hold up the end
        self._phase = phase
        self._beat()

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Say what goes on meanwhile."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def _run(self) -> None:
        while not self._end.wait(self.seconds):
            self._beat()

    def _beat(self) -> None:
        now, env_steps, phase = time.time(), self._env_steps(), self._phase
        if (env_steps, phase) != self._progress[:2]:
            self._progress = (env_steps, phase, now)
        beat = Beat(os.getpid(), socket.gethostname(), now, env_steps, self._progress[2], phase)
        # Not `write_atomically`: a beat that a power cut takes is no loss, and a sync costs a disk
        # more than all of them together.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(beat)) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
