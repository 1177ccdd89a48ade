"""Environments in one process each, which the parent alone begins and ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator

import gymnasium
from stable_baselines3.common.vec_env import SubprocVecEnv


class WorkerEnvs(SubprocVecEnv):
    """One process for each environment; the parent alone decides when they end.

    Ctrl-C and a closed terminal reach every process of the group, so workers ignore both, and the
    parent hears of them when all workers have begun. An interrupted step leaves answers half read,
    and a failed worker leaves none: closing waits for neither.
    """

    def __init__(self, env_fns: list[Callable[[], gymnasium.Env]]) -> None:
        if "forkserver" in multiprocessing.get_all_start_methods():
            # Else every worker imports torch anew, which takes seconds of processor time.
            server = multiprocessing.get_context("forkserver")
            server.set_forkserver_preload(["gumbelrl.envs.worker_start"])
        with _signals_held():
            super().__init__([_undisturbed(make_one) for make_one in env_fns])

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for remote in self.remotes:
            with contextlib.suppress(OSError):  # its worker is gone
                remote.send(("close", None))
        for process in self.processes:
            process.join(timeout=5)
            process.terminate()
            process.join()
        for remote in self.remotes:
            remote.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that Python handles come at the end: workers half begun would complain of a parent
    that is gone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers none here
        return
    held: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def _undisturbed(make_one: Callable[[], gymnasium.Env]) -> Callable[[], gymnasium.Env]:
    def make_in_worker() -> gymnasium.Env:
        for name in ("SIGINT", "SIGHUP"):  # where they are not forked from a server that does
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        return make_one()

    return make_in_worker
