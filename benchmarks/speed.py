"""Updates per second of GumbelSAC on one core, beside five peers, in one run.

    python -m benchmarks.speed --sbx-python PATH     all; PATH is an interpreter with sbx-rl
    python -m benchmarks.speed --rounds 1 --width 64 --batch 256      a first look, not stored

Every agent has two hidden layers of the width, the batch from its replay, and one update a call, as
a training loop asks for them. `updates/s` is of replay sample and update alone, `steps/s` of an
environment step and an update. The SACs of Stable-Baselines3 and SBX are continuous (Pendulum-v1),
the others act in CartPole-v1; "CleanRL-style" and "LeanRL-style" are `benchmarks.plain_sac`. DQN
trains one network where the actor-critics train three, so it is there for scale.

Seconds are processor time of one thread. The agents take turns, round by round, and the median
round counts, with the slowest and the quickest beside it; `times SAC` is the median over rounds of
the rate over that of Stable-Baselines3's SAC in the same round. `ready` is the processor time of
making the agent, 1,000 random steps and 20 with updates, compilation included. Numbers below 1e-38
count as 0, as GumbelSAC has it, for all agents of this process, which quickens the others too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.jax_peers import ONE_THREAD
from benchmarks.sbx_peer import NOT_GIVEN, SBX, has_sbx, processor_seconds, used

RESULTS = Path(__file__).parent / "results"
WIDTHS, BATCHES = (64, 256), (256, 4096)
MEASURES = ("update", "step")
RANDOM_STEPS, WARM_UP = 1000, 20
SECONDS = 0.3  # of one measurement, about
REFERENCE, COMPILED, SEPARATE = "SB3 SAC", "LeanRL-style SAC", "SBX SAC"
LABELS = (
    REFERENCE,
    SEPARATE,
    "SB3 DQN",
    "CleanRL-style SAC",
    COMPILED,
    "GumbelSAC, heads",
    "GumbelSAC, action_in",
)
HEADER = f"{'width':>5s}{'batch':>6s} {'agent':21s}{'ready s':>8s}" + "".join(
    f"{rate:>11s}{'spread':>16s}{'times SAC':>11s}" for rate in ("updates/s", "steps/s")
)

Timer = Callable[[str, int], float]
"""`timer(measure, count)`: processor seconds of `count` updates, or steps with one each."""
Rates = dict[str, list[float]]
"""By measure: per second, of each round."""


def settings(batch: int) -> dict[str, Any]:
    """What the agents with Stable-Baselines3's interface share."""
    return {
        "batch_size": batch,
        "learning_starts": RANDOM_STEPS,
        "train_freq": 1,
        "gradient_steps": 1,
        "seed": 0,
    }


def makers(width: int, batch: int) -> dict[str, Callable[[], Any]]:
    """What makes each agent of this process, by its label."""
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.envs import make_vec_env
    from stable_baselines3 import DQN, SAC

    from benchmarks.plain_sac import LeanSAC, PlainSAC

    shared = {**settings(batch), "device": "cpu"}
    plain = ("CartPole-v1", width, batch, RANDOM_STEPS)

    def arch() -> dict[str, Any]:
        return {"net_arch": [width, width]}  # made for each: Stable-Baselines3 writes into it

    def gumbel_sac(critic: str) -> GumbelSAC:
        env = make_vec_env("CartPole-v1")
        return GumbelSAC("MlpPolicy", env, policy_kwargs={**arch(), "critic": critic}, **shared)

    return {
        REFERENCE: lambda: SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=arch(), **shared),
        "SB3 DQN": lambda: DQN("MlpPolicy", "CartPole-v1", policy_kwargs=arch(), **shared),
        "CleanRL-style SAC": lambda: PlainSAC(*plain),
        COMPILED: lambda: LeanSAC(*plain),
        "GumbelSAC, heads": lambda: gumbel_sac("heads"),
        "GumbelSAC, action_in": lambda: gumbel_sac("action_in"),
    }


def start(
    width: int, batch: int, sbx: SBX | None
) -> tuple[dict[str, Timer], dict[str, float], dict[str, str]]:
    """Agents past their first updates.

    Returns:
        By label: timers, the processor seconds until they were ready, and of those that cannot be
        measured the reason.
    """
    timers: dict[str, Timer] = {}
    ready: dict[str, float] = {}
    missing: dict[str, str] = {}
    for label, make in makers(width, batch).items():
        began = used()
        agent = make()
        try:
            agent.learn(RANDOM_STEPS + WARM_UP, log_interval=None)
        except RuntimeError as error:  # of all that torch's compiler raises the common class
            if label != COMPILED:
                raise
            missing[label] = f"not measured: {str(error).strip().splitlines()[0]}"
            continue
        ready[label] = used() - began
        timers[label] = partial(processor_seconds, agent, batch)
    if sbx is None:
        missing[SEPARATE] = NOT_GIVEN
        return timers, ready, missing
    try:
        ready[SEPARATE] = sbx.make(settings(batch), width, RANDOM_STEPS + WARM_UP)
        timers[SEPARATE] = partial(sbx.seconds, batch)
    except RuntimeError as error:
        missing[SEPARATE] = f"not measured: {error}"
    return timers, ready, missing


def measure(timers: dict[str, Timer], rounds: int) -> dict[str, Rates]:
    """Everybody's turn, round by round."""
    counts = {
        label: max(3, round(3 * SECONDS / timer("step", 3))) for label, timer in timers.items()
    }
    rates: dict[str, Rates] = {label: {what: [] for what in MEASURES} for label in timers}
    for _ in range(rounds):
        for what in MEASURES:
            for label, timer in timers.items():
                rates[label][what].append(counts[label] / timer(what, counts[label]))
    return rates


def columns(values: list[float], reference: list[float]) -> str:
    """Median, spread and ratio of one measure."""

    def short(rate: float) -> str:
        return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"

    ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True))
    spread = f"{short(min(values))} to {short(max(values))}"
    return f"{short(statistics.median(values)):>11s}{spread:>16s}{ratio:>11.2f}"


def compare(width: int, batch: int, rounds: int, sbx: SBX | None) -> list[str]:
    """The rows of one width and batch."""
    timers, ready, missing = start(width, batch, sbx)
    rates = measure(timers, rounds)
    lines = []
    for label in LABELS:
        head = f"{width:5d}{batch:6d} {label:21s}"
        if label in missing:
            lines.append(f"{head} {missing[label]}")
            continue
        parts = [columns(rates[label][what], rates[REFERENCE][what]) for what in MEASURES]
        lines.append(f"{head}{ready[label]:8.1f}{''.join(parts)}")
    return lines


def pin_to_one_core() -> None:
    """This process and those that it starts, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    """Print the table; store it if it is whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, action="append", help="these alone, else 64 and 256")
    parser.add_argument("--batch", type=int, action="append", help="these alone, else 256 and 4096")
    parser.add_argument("--sbx-python", metavar="PATH", help="an interpreter that has sbx-rl")
    options = parser.parse_args()
    widths, batches = options.width or WIDTHS, options.batch or BATCHES
    for name, least in (
        ("rounds", options.rounds),
        ("width", min(widths)),
        ("batch", min(batches)),
    ):
        if least < 1:
            parser.error(f"--{name} must be >= 1, got {least}")
    if options.sbx_python and not has_sbx(options.sbx_python):
        parser.error(
            f"--sbx-python: {options.sbx_python} is no interpreter that has sbx; "
            "python3 -m venv FOLDER && FOLDER/bin/pip install sbx-rl, then FOLDER/bin/python"
        )
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # `ready` is that of the first time
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
    import torch

    pin_to_one_core()
    torch.set_num_threads(1)
    sbx = SBX(options.sbx_python, ONE_THREAD) if options.sbx_python else None
    lines = [HEADER]
    print(HEADER, flush=True)
    for width in widths:
        for batch in batches:
            lines += compare(width, batch, options.rounds, sbx)
            print("\n".join(lines[-len(LABELS) :]), flush=True)
    versions = f"torch {torch.__version__}" + (f", {sbx.versions}" if sbx else "")
    note = f"{platform.machine()}, one core, {versions}, {options.rounds} rounds"
    print(f"\n{note}")
    if sbx is not None:
        sbx.close()
    if options.width or options.batch:
        return
    command = f"python -m benchmarks.speed --rounds {options.rounds}"
    command += " --sbx-python PATH" if sbx else ""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.txt").write_text(f"$ {command}\n" + "\n".join(lines) + f"\n\n{note}\n")


if __name__ == "__main__":
    main()
