"""Many runs of train.py at once, on this machine. None of them knows what started it."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from gumbelrl.comparison.run_job import Job, Outcome, run_job
from gumbelrl.configs.compose import ConfigError

LAUNCHERS = ("local", "ray")
_BYTES_PER_RUN = 2**30  # of a GPU: the CUDA context, and networks as small as these

H = TypeVar("H")


class Launcher(ABC, Generic[H]):
    """Jobs that wait, jobs that run, and what became of the others; ask `poll` until `done`."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.waiting = deque(jobs)
        self.running: dict[H, Job] = {}
        self.stopped = False

    @property
    def done(self) -> bool:
        """Nothing runs, and nothing will."""
        return not self.running and (self.stopped or not self.waiting)

    def poll(self, seconds: float) -> tuple[list[Job], list[tuple[Job, Outcome]]]:
        """The jobs begun and those ended since the last call, which waits `seconds` at most."""
        begun = []
        while self.waiting and not self.stopped and len(self.running) < self.capacity():
            job = self.waiting.popleft()
            self.running[self._submit(job)] = job
            begun.append(job)
        if begun:
            seconds = min(seconds, 0.05)  # they are to be seen at once
        ended = [(self.running.pop(handle), outcome) for handle, outcome in self._ended(seconds)]
        return begun, ended

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self.waiting.append(job)

    def drop(self, unwanted: Callable[[Job], bool]) -> None:
        """Take jobs that have not begun out of the queue."""
        self.waiting = deque(job for job in self.waiting if not unwanted(job))

    def stop(self) -> None:
        """Begin nothing more, and stop what runs as Ctrl-C stops train.py; `poll` on until done."""
        self.stopped = True

    def stop_job(self, name: str) -> None:
        """Stop one job as Ctrl-C stops train.py, or take it out of the queue.

        What runs ends in `poll`, as pending unless it was quicker.
        """
        self.drop(lambda job: job.name == name)
        for handle, job in self.running.items():
            if job.name == name:
                self._stop_one(handle, job)

    def close(self) -> None:
        """Free what the launcher itself holds, when it is done."""

    @abstractmethod
    def capacity(self) -> int:
        """How many jobs may run at once."""

    @abstractmethod
    def _submit(self, job: Job) -> H:
        """Begin a job."""

    @abstractmethod
    def _stop_one(self, handle: H, job: Job) -> None:
        """Stop one of `running`."""

    @abstractmethod
    def _ended(self, seconds: float) -> list[tuple[H, Outcome]]:
        """Those of `running` that have ended, after at most `seconds`."""


class LocalLauncher(Launcher[Future[Outcome]]):
    """Processes on this machine, one torch thread each.

    Args:
        jobs: what to run.
        workers: how many at once.
    """

    def __init__(self, jobs: Iterable[Job], workers: int) -> None:
        super().__init__(jobs)
        self.workers = workers
        self._stop = threading.Event()
        self._stop_of: dict[str, threading.Event] = {}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="run")

    def capacity(self) -> int:
        return self.workers

    def stop(self) -> None:
        super().stop()
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        self._threads.shutdown()

    def _submit(self, job: Job) -> Future[Outcome]:
        own = self._stop_of[job.name] = threading.Event()
        return self._threads.submit(run_job, job, lambda: self._stop.is_set() or own.is_set())

    def _stop_one(self, handle: Future[Outcome], job: Job) -> None:
        self._stop_of[job.name].set()

    def _ended(self, seconds: float) -> list[tuple[Future[Outcome], Outcome]]:
        if not self.running:
            time.sleep(seconds)
        ready = wait(self.running, timeout=seconds, return_when=FIRST_COMPLETED).done
        return [(future, _outcome(future)) for future in ready]


def _outcome(future: Future[Outcome]) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    return Outcome("failed", f"{type(error).__name__}: {error}")


def make_launcher(
    name: str, jobs: Sequence[Job], workers: int | None, num_gpus: float
) -> Launcher[Any]:
    """The launcher of that name.

    Args:
        name: local or ray.
        jobs: what to run.
        workers: how many at once; None takes what there is.
        num_gpus: of a run, for Ray.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at its address.
    """
    if name == "local":
        return LocalLauncher(jobs, workers or available_cores())
    from gumbelrl.comparison.ray_launcher import RayLauncher

    return RayLauncher(jobs, workers, num_gpus)


def workers_for(configs: Iterable[Mapping[str, Any]]) -> int:
    """How many runs this machine holds at once: one for a core, fewer where a GPU has no room."""
    cores = available_cores()
    devices = {str(config["device"]) for config in configs}
    if devices <= {"cpu"}:
        return cores
    import torch

    if not torch.cuda.is_available():
        return cores
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(cores, free // _BYTES_PER_RUN))


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_launcher(name: str) -> str:
    """The name of a launcher.

    Raises:
        ConfigError: there is none of that name.
    """
    from gumbelrl.configs.compose import nearest

    if name not in LAUNCHERS:
        hint = nearest(name, LAUNCHERS)
        raise ConfigError(f"no launcher named {name!r}{hint} Allowed: {', '.join(LAUNCHERS)}")
    return name
