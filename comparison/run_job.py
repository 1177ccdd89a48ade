"""One grid point as an ordinary run of train.py: begun, resumed or skipped."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gumbelrl.tracking import RunFolder, RunFolderError
from gumbelrl.train import DOES_NOT_APPLY

RETRIES = 2  # of a run whose process was killed
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 90.0  # after which a child that was asked to end is killed
_OF_A_RUN = (
    *("config.yaml", "metrics.jsonl", "evaluations.jsonl", "summary.json", "checkpoints"),
    *("heartbeat.json", "videos", "wandb", "tensorboard", "metrics.csv"),
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """What a launcher needs to know of a grid point.

    Args:
        name: of the run folder.
        overrides: what train.py is given, but for the run folder.
        run: the run folder, absolute.
        log: where the output of train.py goes.
        total_steps: environment steps.
        trust: modules that the run's configuration imports beside gumbelrl.
        cwd: where train.py is started, for modules of the user; None stays where the launcher is.
    """

    name: str
    overrides: tuple[str, ...]
    run: Path
    log: Path
    total_steps: int
    trust: tuple[str, ...] = ()
    cwd: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job; `pending` is one that was stopped, to go on later.

    Args:
        status: as in grid.json.
        reason: why it failed or does not apply, one line.
        deaths: how often its process was killed and went on.
    """

    status: Literal["finished", "failed", "n/a", "pending"]
    reason: str | None = None
    deaths: int = 0


def run_job(job: Job, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Bring a grid point to its end, from wherever its run folder stands.

    A finished run is left as it is, one with a checkpoint goes on from it, any other is begun in a
    clean folder; one that another process still writes is waited for. The launcher may be killed
    at any moment, and any number of launchers may come after.

    Args:
        job: the grid point.
        stopped: asked ten times a second; once it says so, the run is stopped as by Ctrl-C.
    """
    deaths = 0
    while True:
        if not _wait_for_others(job.run, stopped):
            return Outcome("pending", deaths=deaths)
        if RunFolder(job.run).is_complete():
            return Outcome("finished", deaths=deaths)
        try:
            command = next_command(job)
            code, said = _execute(command, job, stopped)
        except (OSError, RunFolderError) as error:
            return Outcome("failed", " ".join(str(error).split()), deaths)
        if RunFolder(job.run).is_complete():
            return Outcome("finished", deaths=deaths)
        if stopped():
            return Outcome("pending", deaths=deaths)
        if is_locked(job.run):
            continue  # a run that a killed launcher had just begun
        if code >= 0 or deaths == RETRIES:
            return _judge(job, code, said, deaths)
        deaths += 1


def is_locked(run: Path) -> bool:
    """Whether a process writes the run at this moment."""
    if not (run / ".lock").exists():
        return False
    try:
        with RunFolder(run).locked():
            return False
    except RunFolderError:
        return True


def _wait_for_others(run: Path, stopped: Callable[[], bool]) -> bool:
    """False when it was stopped before the others had ended."""
    while is_locked(run):
        if stopped():
            return False
        time.sleep(5 * _SECONDS_BETWEEN_LOOKS)
    return not stopped()


def next_command(job: Job) -> list[str]:
    """The command that brings an unfinished run to its end; clears what it cannot go on from.

    Raises:
        RunFolderError: the folder holds what is not of a run.
        OSError: it cannot be cleared.
    """
    from gumbelrl.configs.tuned_settings import in_hydra
    from gumbelrl.tracking import latest

    # -P: only what the configuration asks for is imported from the working folder.
    train = [sys.executable, "-P", "-m", "gumbelrl.train"]
    if RunFolder(job.run).config_path.is_file() and latest(job.run / "checkpoints") is not None:
        trust = [f"trust={in_hydra(list(job.trust))}"] if job.trust else []
        return [*train, f"resume={in_hydra(str(job.run))}", *trust]
    _clear(job.run)
    return [*train, *job.overrides, f"run_dir={in_hydra(str(job.run))}"]


def _clear(run: Path) -> None:
    """Empty the folder of a run that has nothing to go on from."""
    if not run.exists():
        return
    for path in run.iterdir():
        if path.name not in _OF_A_RUN and not path.name.startswith("."):
            raise RunFolderError(
                f"{run} holds {path.name}, which no run writes; move it, or remove the folder"
            )
    shutil.rmtree(run)


def _execute(command: list[str], job: Job, stopped: Callable[[], bool]) -> tuple[int, str]:
    """The exit code of the command and what it printed, which is added to its log."""
    log = job.log
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        # In a session of its own: Ctrl-C reaches the launcher, which passes it on, once.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=job.cwd if job.cwd and job.cwd.is_dir() else None,
            start_new_session=True,
        )
        try:
            while child.poll() is None and not stopped():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:  # Ray cancels a task by a KeyboardInterrupt
            _end(child)
    said = log.read_bytes()[start:].decode(errors="replace")
    return child.returncode, said


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)  # train.py ends as on Ctrl-C
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _judge(job: Job, code: int, said: str, deaths: int) -> Outcome:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = (lines[-1] if lines else f"ended with exit code {code}").removeprefix("train.py: ")
    if code < 0:
        times = f" {deaths + 1} times" if deaths else ""
        return Outcome("failed", f"its process was killed{times} by {_signal_name(-code)}", deaths)
    if code == DOES_NOT_APPLY:
        return Outcome("n/a", last, deaths)
    if code == 130:
        return Outcome("failed", "it was interrupted by a signal from outside", deaths)
    # With 2 it is the last line that says why, and a summary may be of an earlier attempt.
    return Outcome("failed", (_failure(job.run) if code == 1 else None) or last, deaths)


def _failure(run: Path) -> str | None:
    try:
        failure = RunFolder(run).read_summary().get("failure")
    except RunFolderError:
        return None
    return str(failure) if failure else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def foreign_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules that a configuration imports beside gumbelrl, as `trust` names them.

    The experiment names them itself, so its runs may go on with them.
    """
    agent, env = config["agent"], config["env"]
    paths = [str(agent["_target_"]), str(env["_target_"])]
    for wrapper in env.get("wrappers") or []:
        path = wrapper.get("wrapper") if isinstance(wrapper, Mapping) else wrapper
        if "." in str(path):
            paths.append(str(path))
    modules = [path.partition(":")[0].rpartition(".")[0] or path for path in paths]
    id = str(env.get("id", ""))
    if ":" in id:
        modules.append(id.partition(":")[0])
    own = ("gumbelrl", "gymnasium")
    return tuple(dict.fromkeys(name for name in modules if name.partition(".")[0] not in own))
