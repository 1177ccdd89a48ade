"""Commands as a page gives them, run in this process and at a size that takes a second."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

from documents import ROOT
from gumbelrl import compare, evaluate, profile_training, search, train
from gumbelrl.comparison.launchers import LocalLauncher
from gumbelrl.comparison.run_job import Job, Outcome, next_command
from gumbelrl.configs.compose import compose
from gumbelrl.gumbel import show
from gumbelrl.tracking import resend

NOT_RUN = {
    "source": "changes the shell it is typed in",
    "cd": "changes the shell it is typed in",
    "git clone": "needs the network",
    "pip install": "needs the network; what it names stands in pyproject.toml",
    "wandb login": "needs an account",
    "wandb sync": "needs an account",
    "wandb artifact": "needs an account",
    "wandb sweep": "needs an account; tests/configs/test_sweep.py tells what an agent makes of it",
    "wandb agent": "needs an account",
    "tensorboard": "is a server, and does not end",
    "ray start": "needs a cluster",
    "python cleanrl/": "CleanRL's own, beside which ours stands",
}
"""Beginnings of commands that no test runs, and why."""

EXTRAS = {
    "box2d": ("Box2D", r"lunarlander|LunarLander|Bipedal"),
    "mujoco": ("mujoco", r"halfcheetah|HalfCheetah|hopper|Hopper"),
    "minatar": ("minatar", r"minatar_|MinAtar/"),
    "minigrid": ("minigrid", r"MiniGrid-|BabyAI-"),
    "atari": ("ale_py", r"ALE/|env=atari"),
    "ray": ("ray", r"launcher=ray"),
}
"""What a command needs beyond the requirements of development: our extra, its module, a sign."""

QUICK = {
    "total_steps": "48",
    "eval_every": "48",
    "eval_episodes": "1",
    "log_every": "16",
    "checkpoint_every": "32",
    "tracking.mode": "disabled",
    "env.max_episode_steps": "30",
}
_REPLAY = {"learning_starts": "8", "batch_size": "8"}
_ROLLOUT = {"n_steps": "16", "batch_size": "16"}
SMALL: dict[str, dict[str, str]] = {
    "gumbel_sac": _REPLAY,
    "dqn": _REPLAY,
    "qr_dqn": _REPLAY,
    "sac": _REPLAY,
    "ppo": _ROLLOUT,
    "maskable_ppo": _ROLLOUT,
    "gumbel_shac": {"n_envs": "2", "horizon": "4"},
    "reinforce": {"n_steps": "32"},
}


def extra_of(command: str) -> tuple[str, str] | None:
    """(our extra, its module) where a command needs one."""
    if not re.match(
        r"(?:\w+=\S+ )*(python (train|compare|search|profile_training)\.py|gumbelrl-)", command
    ):
        return None
    for extra, (module, sign) in EXTRAS.items():
        if re.search(sign, command):
            return extra, module
    return None


def reason_not_to_run(command: str) -> str | None:
    """Why no test runs it, or None."""
    ends = r"(?=\s|$|(?<=/))"  # a word, or a folder
    known = (why for start, why in NOT_RUN.items() if re.match(re.escape(start) + ends, command))
    return next(known, None)


class Parsed(Exception):
    """An argument parser accepted its arguments."""


class Typist:
    """Types the commands of one page, one after the other, in the present folder.

    `runs/NAME` of a page is the last run that was made, the folder of a comparison or a search the
    last one.
    """

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.comparisons: list[str] = []

    def type(self, command: str) -> None:
        """Run a command; AssertionError or what it raises, where it does not work."""
        words = shlex.split(command, comments=True)
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # of the environment
            words.pop(0)
        program, arguments = words[0], words[1:]
        if program == "python":
            program, *arguments = arguments
        script = program.removeprefix("gumbelrl-").removesuffix(".py")
        if script in ("train", "evaluate", "compare", "search"):
            getattr(self, script)(arguments)
        elif program == "profile_training.py":
            self.profile(arguments)
        elif program == "-m" and arguments[0] == "gumbelrl.gumbel.show":
            show.main(arguments[1:])
        elif program == "-m" and arguments[0] == "gumbelrl.tracking.resend":
            # A page's runs are made without W&B, which says so.
            code = resend.main([arguments[1], self.last_run()])
            assert code == (1 if arguments[1] == "wandb" else 0)
        elif program == "-m" and arguments[0].startswith("benchmarks."):
            self.parse(arguments[0], arguments[1:])
        elif program.startswith("examples/"):
            self.parse(program.removesuffix(".py").replace("/", "."), arguments)
        elif program == "pytest":
            self.find_tests(arguments)
        elif program == "make":
            code = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True)
            assert code.returncode == 0, code.stderr.decode()
        else:
            raise AssertionError(
                f"no test runs {command!r}: teach tests/modules/typed_commands.py to, or name the "
                "reason in NOT_RUN"
            )

    def train(self, arguments: list[str]) -> None:
        """Compose it as it stands, then run it small."""
        if "--help" in arguments:
            assert train.main(arguments) == 0
            return
        resumed = any(word.startswith("resume=") for word in arguments)
        resumed = resumed and "resume=auto" not in arguments
        if resumed:
            name = self.last_run()
            made = json.loads((Path(name) / "summary.json").read_text())["env_steps"]
            arguments = _without(arguments, "resume", "total_steps")
            arguments += [f"resume={name}", f"total_steps={made + 32}"]
        else:
            compose(arguments)
            arguments = shrunk(arguments, f"runs/page-{len(self.runs)}")
            name = next(word.split("=", 1)[1] for word in arguments if word.startswith("run_dir="))
            self.runs.append(name)
        assert train.main(arguments) == 0, f"train.py {shlex.join(arguments)}"

    @staticmethod
    def profile(arguments: list[str]) -> None:
        """The options as they stand must fit together; then a few steps of the run, small."""
        if "--help" not in arguments:
            compose(_without(arguments, *profile_training.OWN_KEYS))
            arguments = shrunk(_without(arguments, *profile_training.OWN_KEYS), "runs/profiled")
            arguments += ["steps=8", "warm_up=8"]
        assert profile_training.main(arguments) == 0, f"profile {shlex.join(arguments)}"

    def last_run(self) -> str:
        """Its folder; of a default run where the page made none, as by `make train`."""
        if not self.runs:
            self.train([])
        return self.runs[-1]

    def evaluate(self, arguments: list[str]) -> None:
        """One episode of the last run."""
        if "--help" not in arguments:
            arguments = _without(arguments, "run", "episodes")
            arguments += [f"run={self.last_run()}", "episodes=1"]
        assert evaluate.main(arguments) == 0, f"evaluate.py {shlex.join(arguments)}"

    def compare(self, arguments: list[str]) -> None:
        """One seed of every point, each a run of train.py in this process, and the report."""
        if any(word.startswith("runs=") for word in arguments):
            assert self.comparisons, "a page reports on a comparison before it makes one"
            arguments = [f"runs={self.comparisons[-1]}"]
        elif "dry_run=true" in arguments:  # as it stands, and not as what was made small
            arguments = [*_without(arguments, "out"), "out=comparisons/nothing"]
        elif "--help" not in arguments:
            arguments = self._shrunk_grid(arguments, "comparisons", {"seeds": "1"})
        with mock.patch.object(LocalLauncher, "_submit", _in_this_process):
            assert compare.main(arguments) == 0, f"compare.py {shlex.join(arguments)}"

    def search(self, arguments: list[str]) -> None:
        """Two trials of one seed, each a run of train.py in this process."""
        if "dry_run=true" not in arguments and "--help" not in arguments:
            sizes = {"seeds": "1", "trials": "2"}
            arguments = self._shrunk_grid(arguments, "searches", sizes)
        with mock.patch.object(LocalLauncher, "_submit", _in_this_process):
            assert search.main(arguments) == 0, f"search.py {shlex.join(arguments)}"

    def _shrunk_grid(self, arguments: list[str], root: str, sizes: dict[str, str]) -> list[str]:
        given = dict(word.partition("=")[::2] for word in arguments)
        self.comparisons.append(given.get("out") or f"{root}/{Path(given['experiment']).stem}")
        # The final evaluation suffices for a report.
        quick = {**QUICK, **sizes, "budget": QUICK["total_steps"], "eval_every": "1000"}
        del quick["total_steps"]
        kept = _without(arguments, "workers", *quick)
        return kept + [f"{key}={value}" for key, value in quick.items()]

    @staticmethod
    def parse(module: str, arguments: list[str]) -> None:
        """A script that takes minutes: it is there, can be imported, and its parser takes them."""
        import argparse

        real = argparse.ArgumentParser.parse_args

        def stop(self: Any, args: Any = None, namespace: Any = None) -> None:
            real(self, args, namespace)
            raise Parsed

        with (
            mock.patch.object(sys, "path", [*sys.path, str(ROOT)]),  # as `python -m` there
            mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
            mock.patch.object(sys, "argv", [module, *arguments]),
        ):
            try:
                importlib.import_module(f"gumbelrl.{module}").main()
            except Parsed:
                return
        raise AssertionError(f"{module} came to its end without reading its arguments")

    @staticmethod
    def find_tests(arguments: list[str]) -> None:
        """The files are there, and `-k` names a test in them."""
        words = list(arguments)
        keyword = words.pop(words.index("-k") + 1) if "-k" in words else ""
        paths = [ROOT / word.partition("::")[0] for word in words if not word.startswith("-")]
        files = [
            file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))
        ]
        named = [word.partition("::")[2] for word in words if "::" in word]
        names = [
            node.name
            for file in files
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        assert any(keyword in name for name in names), f"no test of {paths} has {keyword!r}"
        assert set(named) <= set(names), f"no test {named}"


def _without(arguments: list[str], *keys: str) -> list[str]:
    return [word for word in arguments if word.partition("=")[0].lstrip("+") not in keys]


def shrunk(arguments: list[str], run_dir: str) -> list[str]:
    """The arguments of a training run, with QUICK and SMALL in place of what they say of size."""
    given = dict(word.partition("=")[::2] for word in arguments)
    small = SMALL.get(given.get("agent", "gumbel_sac"), {})
    sizes = {**QUICK, **{f"agent.{key}": value for key, value in small.items()}}
    kept = _without(arguments, *sizes)
    if "run_dir" not in given:
        kept.append(f"run_dir={run_dir}")
    return kept + [f"{key}={value}" for key, value in sizes.items()]


def _in_this_process(launcher: LocalLauncher, job: Job) -> Future[Outcome]:
    arguments = next_command(job)[4:]  # behind `python -P -m gumbelrl.train`
    code = train.main(arguments)
    assert code == 0, f"train.py {shlex.join(arguments)} ended with {code}"
    ended: Future[Outcome] = Future()
    ended.set_result(Outcome("finished"))
    return ended
