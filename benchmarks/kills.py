"""Runs killed at random moments and resumed, held against undisturbed ones byte for byte.

    python -m benchmarks.kills                              every case, 50 or 10 kills
    python -m benchmarks.kills --only gumbel_shac --kills 5
    python -m benchmarks.kills --kills 5 env=my_module:MyEnv-v0 total_steps=3000

The last form takes a command line of train.py, for an environment of one's own.

Each case is run once undisturbed. Then the same command is started again and again in another
folder, and its process gets SIGKILL: half of the times at a moment drawn uniformly over the run's
length, else at one of the operations on files that the run makes (making a folder, syncing,
renaming, removing; nearly all belong to checkpoints) or up to 4 ms after it, in the middle of
whatever is written then. What was killed goes on by `resume=FOLDER` and by the first command with
`resume=auto`, in turn. After at most five kills a run is let alone and compared: weights,
optimisers and generators of the last checkpoint, the replay, the rest of its state but for clocks,
every episode of every evaluation, and the rows of metrics.jsonl but for `time/*`.

The processes are forked from this one, which has imported everything: so hundreds of kills are
affordable. tests/test_resume.py kills processes that a shell could have started.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gumbelrl import train
from gumbelrl.agents.agent_file import read_agent_file
from gumbelrl.comparison.run_job import foreign_modules
from gumbelrl.configs.compose import compose
from gumbelrl.envs import MakeEnvError, make_vec_env
from gumbelrl.tracking import RunFolder, latest

SHORT = [
    "total_steps=700",
    "checkpoint_every=100",
    "eval_every=300",
    "eval_episodes=2",
    "log_every=100",
    "device=cpu",
    "tuned=false",
    "tracking.mode=disabled",
    "agent.learning_rate={schedule: linear, start: 3e-3, end: 1e-3}",
    "agent.policy_kwargs.net_arch=[16]",
]
REPLAY = ["agent.learning_starts=100", "agent.batch_size=16", "agent.buffer_size=500"]
AGENTS = {
    "gumbel_sac": [*REPLAY, "agent.n_steps=3", "agent.trust_every=50"],
    "gumbel_shac": ["agent.horizon=10"],
    "reinforce": ["agent.rollout=steps", "agent.n_steps=20"],
}
ENVS = {
    "CartPole": ["env=cartpole"],
    "CartPole on-device": ["env=device_cartpole"],
    "LunarLander": ["env=lunarlander"],
    "HalfCheetah, 7 bins": ["env=halfcheetah_binned", "env.max_episode_steps=100"],
    "MinAtar Breakout": ["env=minatar_breakout"],
}
KILLS_OF_A_RUN = 5
AFTER_SECONDS = 0.004


@dataclass(frozen=True)
class Case:
    """One agent in one environment, n_envs of them."""

    agent: str
    env: str
    n_envs: int
    trust: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """What train.py is given, but for the run folder."""
        given = [f"agent={self.agent}", *ENVS[self.env], f"env.n_envs={self.n_envs}", *SHORT]
        if self.agent == "gumbel_shac":
            given.append(f"agent.n_envs={self.n_envs}")
        elif self.env == "CartPole" and self.agent == "reinforce":
            return given  # whole episodes
        return [*given, *AGENTS[self.agent]]

    def __str__(self) -> str:
        return f"{self.agent:12s} {self.env:20s} {self.n_envs:6d}"


@dataclass(frozen=True)
class OwnCase:
    """A command line of train.py."""

    arguments: list[str]

    @property
    def trust(self) -> tuple[str, ...]:
        """Modules that it imports beside gumbelrl, which a run folder alone must not."""
        return foreign_modules(compose(self.arguments))

    def __str__(self) -> str:
        return f"{'your command':40s}"


def cases() -> list[Case]:
    """Every agent where it applies."""
    pairs = itertools.product(AGENTS, ENVS, (1, 8))
    return [Case(*pair) for pair in pairs if pair[0] != "gumbel_shac" or "device" in pair[1]]


MANY = [  # 50 kills
    Case("gumbel_sac", "LunarLander", 1),
    Case("gumbel_shac", "CartPole on-device", 8),
    Case("reinforce", "CartPole", 8),
]


class FileOperations:
    """Counts the operations on files of this process, and kills it before or soon after one.

    Args:
        kill_at: the operation's number; None only counts.
        seconds: after it; 0 kills before it.
    """

    NAMES = ("mkdir", "fsync", "replace", "unlink", "rmdir")

    def __init__(self, kill_at: int | None = None, seconds: float = 0.0) -> None:
        self.count = 0
        self.kill_at, self.seconds = kill_at, seconds

    def install(self) -> None:
        """From here on."""
        for name in self.NAMES:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.count == self.kill_at:
                if self.seconds == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                kill = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
                kill.daemon = True
                kill.start()
            self.count += 1
            return operation(*args, **kwargs)

        return counted


@dataclass
class Ended:
    """A process that ended: its exit code, None if it was killed, and how many seconds it ran."""

    code: int | None
    seconds: float


def run_forked(
    arguments: list[str], log: Path, operations: FileOperations, kill_after: float | None = None
) -> Ended:
    """train.py in a fork of this process; its count of operations goes to `<log>.count`."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            with open(log, "ab", buffering=0) as file:
                for descriptor in (1, 2):
                    os.dup2(file.fileno(), descriptor)
                operations.install()
                code = train.main(arguments)
                sys.stdout.flush()
                log.with_suffix(".count").write_text(str(operations.count))
        finally:
            os._exit(code)
    if kill_after is not None:
        timer = threading.Timer(kill_after, os.kill, (pid, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(pid, 0)
    if kill_after is not None:
        timer.cancel()  # a pid is not given out again that soon
    code = os.waitstatus_to_exitcode(status)
    return Ended(None if code == -signal.SIGKILL else code, time.perf_counter() - began)


def fingerprint(run: Path) -> dict[str, str]:
    """Digests of everything that must be alike."""
    checkpoint = latest(run / "checkpoints")
    assert checkpoint is not None
    digests: dict[str, str] = {}
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = str(file.relative_to(checkpoint))
        if file.name == "agent.zip":  # a zip holds the time of day
            header, tensors = read_agent_file(file)
            del header["counters"]["_num_timesteps_at_start"]  # of this process, for its speed
            digests[f"{name}/header"] = _digest(json.dumps(header, sort_keys=True).encode())
            for key, tensor in sorted(tensors.items()):
                content = tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor
                digests[f"{name}/{key}"] = _digest(content.numpy().tobytes())
        elif file.name == "state.json":
            state = _without_clocks(json.loads(file.read_text()))
            digests[name] = _digest(json.dumps(state, sort_keys=True).encode())
        elif file.name != "checkpoint.json":  # which lists what the others hold, clocks and all
            digests[name] = _digest(file.read_bytes())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        kept = {k: v for k, v in row.items() if not k.startswith("time/")}
        digests[f"metrics.jsonl, row {number}"] = json.dumps(kept)
    digests["evaluations.jsonl"] = _digest((run / "evaluations.jsonl").read_bytes())
    digests["checkpoint"] = checkpoint.name
    return digests


def _without_clocks(state: Any) -> Any:
    """Seconds of any kind, and where clocks made rows of metrics longer."""
    if isinstance(state, dict):
        clocks = ("t", "bytes", "tracker")
        return {
            key: _without_clocks(value)
            for key, value in state.items()
            if key not in clocks and "seconds" not in key and not key.startswith("time/")
        }
    return [_without_clocks(item) for item in state] if isinstance(state, list) else state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Counts:
    """What became of a case."""

    kills: int = 0
    in_writing: int = 0  # while a checkpoint was being written
    before_first: int = 0  # checkpoint
    runs: int = 0
    identical: int = 0


def kill_and_compare(case: Case | OwnCase, kills: int, folder: Path, rng: random.Random) -> Counts:
    """Kill runs of a case that often, resume each to its end, and compare."""
    counts = Counts()
    whole, log = folder / "whole", folder / "log"
    command = [*case.arguments, f"run_dir={whole}"]
    undisturbed = run_forked(command, log, FileOperations())
    if undisturbed.code != 0:
        raise RuntimeError(f"the undisturbed run of {case} failed:\n{log.read_text()}")
    n_operations = int(log.with_suffix(".count").read_text())
    expected = fingerprint(whole)
    while counts.kills < kills:
        run = folder / f"run{counts.runs}"
        for attempt in itertools.count():
            if attempt and RunFolder(run).is_complete():  # killed after it had written its end
                break
            command = [*case.arguments, f"run_dir={run}", "resume=auto"]
            if attempt % 2 == 1 and (run / "config.yaml").exists():
                command = [f"resume={run}", f"trust=[{','.join(case.trust)}]"]
            operations, kill_after = FileOperations(), None
            if attempt < KILLS_OF_A_RUN and counts.kills < kills:
                if rng.random() < 0.5:
                    kill_after = rng.uniform(0, undisturbed.seconds)
                else:
                    seconds = rng.choice([0.0, rng.uniform(0, AFTER_SECONDS)])
                    operations = FileOperations(rng.randrange(n_operations), seconds)
            ended = run_forked(command, log, operations, kill_after)
            if ended.code is not None:
                break
            counts.kills += 1
            counts.in_writing += any((run / "checkpoints").glob(".unfinished-*"))
            counts.before_first += latest(run / "checkpoints") is None
        counts.runs += 1
        whole_again = RunFolder(run).is_complete()
        found = fingerprint(run) if whole_again else {"exit code": str(ended.code)}
        different = [k for k in {**expected, **found} if found.get(k) != expected.get(k)]
        counts.identical += not different
        if different:
            key = different[0]
            print(
                f"{case} differs in {', '.join(different[:9])}\n{key}: {expected.get(key)} whole, "
                f"{found.get(key)} resumed\n{_tail(log)}",
                flush=True,
            )
        shutil.rmtree(run, ignore_errors=True)
    return counts


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def import_everything() -> None:
    """What the forks would otherwise import themselves."""
    torch.set_num_threads(1)
    for name in ("CartPole-v1", "LunarLander-v3", "HalfCheetah-v5", "MinAtar/Breakout-v1"):
        with suppress(MakeEnvError):  # an extra that only other cases need
            make_vec_env(name).close()
    for module in ("agents", "configs.build", "configs.resume", "tracking.run_state"):
        __import__(f"gumbelrl.{module}")
    compose(Case("gumbel_sac", "CartPole", 1).arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=None, help="of each case")
    parser.add_argument("--only", default="", help="cases in whose line this stands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("own", nargs="*", help="key=value of train.py, in place of the cases")
    args = parser.parse_args()
    if args.own:
        own = [OwnCase([*args.own, "tracking.mode=disabled"])]
        return run_cases(own, args.kills, args.seed)
    return run_cases([case for case in cases() if args.only in str(case)], args.kills, args.seed)


def run_cases(chosen: Sequence[Case | OwnCase], kills: int | None, seed: int) -> int:
    """Print the table; 1 where a resumed run was not the undisturbed one."""
    import_everything()
    began = time.perf_counter()
    total = Counts()
    print(
        f"{'agent':12s} {'environment':20s} {'n_envs':>6s} {'kills':>6s} {'in a write':>11s} "
        f"{'before the first':>17s} {'resumed':>8s} {'identical':>10s}"
    )
    for case in chosen:
        many = 50 if case in MANY else 10
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            rng = random.Random(f"{seed} {case}")
            counts = kill_and_compare(case, kills or many, Path(folder), rng)
        print(_row(str(case), counts), flush=True)
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
    print(_row(f"{'all':12s} {'':20s} {'':6s}", total))
    print(
        f"\n{platform.machine()}, one process, torch {torch.__version__}, "
        f"{time.perf_counter() - began:.0f} s"
    )
    return int(total.identical != total.runs)


def _row(name: str, counts: Counts) -> str:
    return (
        f"{name} {counts.kills:6d} {counts.in_writing:11d} {counts.before_first:17d} "
        f"{counts.runs:8d} {counts.identical:10d}"
    )


if __name__ == "__main__":
    sys.exit(main())
