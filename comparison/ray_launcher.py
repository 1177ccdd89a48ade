"""The same runs as tasks on a Ray cluster; the grid's folder must be one that all nodes share."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from gumbelrl.comparison.launchers import Launcher
from gumbelrl.comparison.run_job import RETRIES, Job, Outcome, run_job
from gumbelrl.configs.compose import ConfigError
from gumbelrl.tracking import first_line

_SECONDS_TO_CONNECT = 5.0


class RayLauncher(Launcher[Any]):
    """Each run a task of one CPU; a task whose worker or node dies is begun again by Ray, and
    goes on from the run's last checkpoint.

    The cluster is the one at RAY_ADDRESS; without that, one is started in this process and ends
    with it.

    Args:
        jobs: what to run.
        workers: how many at once; None takes the CPUs of the cluster, as nodes come and go.
        num_gpus: of each run; a fraction shares a GPU.

    Raises:
        ConfigError: Ray is not installed, no cluster is there, or it has no such GPU.
    """

    def __init__(self, jobs: Iterable[Job], workers: int | None, num_gpus: float = 0.0) -> None:
        super().__init__(jobs)
        self._ray = import_ray()
        self.workers = workers
        self.num_gpus = num_gpus
        self._cancelled: set[Any] = set()
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, workers)
        gpus = self._ray.cluster_resources().get("GPU", 0.0)
        if num_gpus > gpus:
            self.close()
            raise ConfigError(f"num_gpus={num_gpus:g}, but the Ray cluster has {gpus:g} GPUs")
        self._task = self._ray.remote(
            num_cpus=1, num_gpus=num_gpus, max_retries=RETRIES, max_calls=0
        )(run_job)

    def capacity(self) -> int:
        if self.workers is not None:
            return self.workers
        there = self._ray.cluster_resources()
        places = there.get("CPU", 0.0)
        if self.num_gpus:
            places = min(places, there.get("GPU", 0.0) / self.num_gpus)
        return max(1, int(places))

    def stop(self) -> None:
        super().stop()
        for ref, job in self.running.items():
            self._stop_one(ref, job)

    def close(self) -> None:
        if self._own:
            self._ray.shutdown()

    def _submit(self, job: Job) -> Any:
        return self._task.options(name=job.name).remote(job)

    def _stop_one(self, handle: Any, job: Job) -> None:
        self._cancelled.add(handle)
        self._ray.cancel(handle, force=False)  # a KeyboardInterrupt where it runs

    def _ended(self, seconds: float) -> list[tuple[Any, Outcome]]:
        if not self.running:
            time.sleep(seconds)
            return []
        refs = list(self.running)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        return [(ref, self._outcome(ref)) for ref in ready]

    def _outcome(self, ref: Any) -> Outcome:
        exceptions, cancelled = self._ray.exceptions, ref in self._cancelled
        self._cancelled.discard(ref)
        try:
            outcome: Outcome = self._ray.get(ref)
        except (exceptions.TaskCancelledError, KeyboardInterrupt):
            return Outcome("pending")
        except exceptions.RayTaskError as error:
            if cancelled and isinstance(error.cause, KeyboardInterrupt):
                return Outcome("pending")
            return Outcome("failed", f"{type(error.cause).__name__}: {first_line(error.cause)}")
        except exceptions.RayError as error:
            if cancelled:
                return Outcome("pending")
            return Outcome("failed", f"Ray lost it {RETRIES + 1} times: {type(error).__name__}")
        return outcome


def import_ray() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            'launcher=ray needs Ray, which is not installed: pip install "gumbelrl[ray]", '
            "or take launcher=local"
        ) from error
    return ray


def _connect(ray: Any, workers: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS", "").strip()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address in ("", "local"):
        # As many CPUs as workers, so that workers=N holds where there are fewer cores.
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        return
    nothing = f"there is no Ray cluster at RAY_ADDRESS={address}"
    remedy = "start one (`ray start --head`), or unset RAY_ADDRESS to start one here"
    if address != "auto":
        _reach(address, f"{nothing} (%s); {remedy}")
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError, ImportError) as error:
        raise ConfigError(f"{nothing} ({first_line(error)}); {remedy}") from error


def _reach(address: str, refusal: str) -> None:
    """Ray itself tries for a minute, and writes much about it."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(refusal % "an address is like 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(refusal % first_line(error)) from error
