"""SBX's SAC (JAX), in an interpreter of its own: it need not be installed beside gumbelrl.

    python3 -m venv ~/sbx && ~/sbx/bin/pip install sbx-rl
    python -m benchmarks.speed --sbx-python ~/sbx/bin/python

(https://github.com/araffin/sbx, MIT.) This file is both ends of the pipe between the two, a line of
JSON each way: the interpreter that has SBX runs it as a program, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOT_GIVEN = "not measured: give --sbx-python"
HAS_SBX = "import sys, importlib.util as u; sys.exit(u.find_spec('sbx') is None)"


def used() -> float:
    """Processor seconds of this process, and of those it has waited for (compilers)."""
    return sum(os.times()[:4])


def processor_seconds(agent: Any, batch: int, what: str, count: int) -> float:
    """Of `count` updates, one a call as a training loop asks for them, or of as many steps with an
    update each."""
    began = time.process_time()
    if what == "update":
        for _ in range(count):
            agent.train(1, batch)
    else:
        agent.learn(count, reset_num_timesteps=False, log_interval=None)
    return time.process_time() - began


def has_sbx(python: str) -> bool:
    """Whether that interpreter is there and finds sbx."""
    try:
        return subprocess.run([python, "-c", HAS_SBX], capture_output=True).returncode == 0
    except OSError:
        return False


class SBX:
    """The end on our side.

    Args:
        python: an interpreter with sbx.
        environment: variables to set for it.

    Raises:
        RuntimeError: it ended, with its last line.
    """

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        # A pipe that nobody reads would fill up.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, __file__],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.versions = str(self._ask({}))

    def make(self, settings: dict[str, Any], width: int, warm_up: int) -> float:
        """A new SAC on Pendulum-v1 that has made `warm_up` steps; processor seconds of those."""
        return float(self._ask({"settings": settings, "width": width, "warm_up": warm_up}))

    def seconds(self, batch: int, what: str, count: int) -> float:
        """See `processor_seconds`."""
        return float(self._ask({"batch": batch, "what": what, "count": count}))

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._errors.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError((self._errors.read().strip().splitlines() or ["it ended"])[-1])
        return json.loads(answer)


def make_agent(settings: dict[str, Any], width: int, warm_up: int) -> Any:
    """SBX's SAC, compiled and past its first updates."""
    from sbx import SAC  # type: ignore[import-not-found]

    policy_kwargs = {"net_arch": [width, width]}
    agent = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings)
    agent.learn(warm_up, log_interval=None)
    return agent


def main() -> None:
    """The end on SBX's side: answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import sbx
    import torch
    from jax import __version__ as jax_version

    torch.set_num_threads(1)  # of the replay's samples
    agent: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any = f"sbx {sbx.__version__}, jax {jax_version}"
        if "settings" in question:
            began = used()
            agent = make_agent(**question)
            answer = used() - began
        elif question:
            answer = processor_seconds(agent, **question)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # its files have names of their own
    main()
