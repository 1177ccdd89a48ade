"""What tracking and checkpoints cost a run, and how long a failing W&B server holds one up.

    python -m benchmarks.tracking_cost                   # 12,000 steps each, in processor time
    python -m benchmarks.tracking_cost --steps 20000

GumbelSAC with default settings on CartPole and LunarLander, with all trackers at once. The main
thread trains, and each tracker works in a thread of its own, so costs are added up directly instead
of being small differences of large figures: processor time of each tracker's thread, of the main
thread within its calls, and of what W&B runs beside. Runs with failing servers are told by the wall
time that the main thread spends in calls of trackers, start and end included: with a core to spare
nothing else of a tracker adds to a run's wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.modules.wandb_server import WandbServer

ENVS = {"CartPole": "cartpole", "LunarLander": "lunarlander"}
TRACKERS = ("W&B", "TensorBoard", "CSV")
ALL = ["tracking.mode=offline", "tracking.tensorboard=true", "tracking.csv=true"]
SERVERS = ("refuses", "hangs", "drops in mid-run")
DEFAULT_STEPS = 50_000


class Clock:
    """Processor and wall seconds that the main thread spends in some calls."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0
        self.depth = 0

    def around(self, owner: Any, name: str) -> None:
        """Let calls of `owner.name` count; calls within calls count once."""
        called: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            processor, wall = time.thread_time(), time.perf_counter()
            self.depth += 1
            try:
                return called(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.processor += time.thread_time() - processor
                    self.wall += time.perf_counter() - wall

        setattr(owner, name, timed)


def child(arguments: list[str], result: Path) -> None:
    """One run in this process; its figures go to `result`."""
    from gumbelrl import train
    from gumbelrl.tracking import BackgroundWriter, EvaluationCallback, Trackers, checkpoints
    from gumbelrl.tracking.histograms import HistogramCallback

    clocks: dict[str, Clock] = defaultdict(Clock)
    clocks["learning"].around(train.Run, "_learn")
    clocks["evaluation"].around(EvaluationCallback, "_evaluate")
    clocks["checkpoints"].around(checkpoints, "write_checkpoint")
    clocks["histograms"].around(HistogramCallback, "_look")
    clocks["start and end"].around(Trackers, "start")
    clocks["start and end"].around(Trackers, "finish")
    write, work = BackgroundWriter.write, BackgroundWriter._work
    once: dict[str, float] = {}  # opening, by tracker
    threads: dict[str, float] = {}  # the whole of its thread

    def timed_write(self: Any, *given: Any) -> None:
        began = time.thread_time(), time.perf_counter()
        write(self, *given)
        clocks[self.name].processor += time.thread_time() - began[0]
        clocks[self.name].wall += time.perf_counter() - began[1]

    def timed_work(self: Any) -> None:
        opened = self._open_output

        def open_output() -> Any:
            output = opened()
            once[self.name] = time.thread_time()
            return output

        self._open_output = open_output
        work(self)
        threads[self.name] = time.thread_time()

    BackgroundWriter.write = timed_write  # type: ignore[method-assign]
    BackgroundWriter._work = timed_work  # type: ignore[method-assign]
    processor, main, wall = time.process_time(), time.thread_time(), time.perf_counter()
    code = train.main(arguments)
    main, wall = time.thread_time() - main, time.perf_counter() - wall
    beside = time.process_time() - processor - main - sum(threads.values())
    total = {name: threads.get(name, 0.0) + clocks[name].processor for name in TRACKERS}
    # What runs beside, and the start, are W&B's but for a little of the others'.
    total["W&B"] += beside + clocks["start and end"].processor
    once["W&B"] = once.get("W&B", 0.0) + clocks["start and end"].processor
    figures = {
        "code": code,
        "training": clocks["learning"].processor - clocks["evaluation"].processor,
        "total": {**total, "histograms": clocks["histograms"].processor}
        | {"checkpoints": clocks["checkpoints"].processor},
        "service": service_seconds(),
        "once": once,
        "wall": wall,
        "held_up": sum(clocks[name].wall for name in (*TRACKERS, "histograms", "start and end")),
    }
    result.write_text(json.dumps(figures))
    os._exit(0)  # W&B's service is read above; nothing is left to say


def service_seconds() -> float:
    """Processor time of processes that this one started and that still run."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(arguments: list[str], environ: dict[str, str], while_it_runs: Any = None) -> Any:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.tracking_cost", "--child", str(result)]
        process = subprocess.Popen(
            [*command, *arguments, f"run_dir={folder}/run"],
            env={**os.environ, **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if while_it_runs is not None:
            while_it_runs(process)
        process.wait()
        figures = json.loads(result.read_text())
        rows = len((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
    if figures["code"] != 0:
        raise RuntimeError(f"the run ended with exit code {figures['code']}")
    return {**figures, "rows": rows}


def trackers_table(steps: int) -> None:
    """Cost of each tracker and of checkpoints."""
    print(
        f"GumbelSAC, default settings, {steps:,} steps; seconds of processor time, and their\n"
        "share of training (evaluations left out). `once` of it is the start, which does not\n"
        f"grow with the run; the last column is the share at the default {DEFAULT_STEPS:,} steps.\n"
        "W&B's service looks at the machine every 15 s: its share is one of the run's wall time.\n"
    )
    print(f"{'env':13}{'what':16}{'seconds':>9}{'once':>7}{'share':>8}{'at 50,000':>11}")
    for env, group in ENVS.items():
        given = [f"env={group}", "tuned=false", "device=cpu", f"total_steps={steps}"]
        run = measure([*given, *ALL], {})
        training, longer = run["training"], DEFAULT_STEPS / steps
        print(f"{env:13}{'training':16}{training:9.2f}")
        shares = defaultdict(float)
        for name, seconds in run["total"].items():
            once = run["once"].get(name, 0.0)
            share = (once + (seconds - once) * longer) / (training * longer)
            shares["default" if name not in TRACKERS[1:] else name] += share
            print(
                f"{env:13}{name:16}{seconds:9.2f}{once:7.2f}{seconds / training:8.2%}{share:11.2%}"
            )
        service = run["service"] / run["wall"]
        shares["default"] += service
        print(
            f"{env:13}{'W&B, service':16}{run['service']:9.2f}{'':7}{service:8.2%}{service:11.2%}"
        )
        print(f"{env:13}{'by default':16}{shares['default']:35.2%}", flush=True)


def servers_table(steps: int) -> None:
    """How long a failing server holds up a run."""
    print(
        f"\nW&B online, CartPole, {steps:,} steps; seconds of wall time that the main thread\n"
        "spends with trackers, start and end of the run included.\n"
    )
    print(f"{'server':23}{'run':>9}{'held up':>9}{'share':>7}{'rows in metrics.jsonl':>24}")
    given = ["env=cartpole", f"total_steps={steps}", "device=cpu"]
    for trouble in ("no tracker", *SERVERS):
        server = WandbServer(hangs=trouble == "hangs")
        environ = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40}

        def drop(process: subprocess.Popen[bytes], server: WandbServer = server) -> None:
            server.started.wait(60)
            time.sleep(5)
            server.drop()

        if trouble == "refuses":
            server.drop()
        mode = "disabled" if trouble == "no tracker" else "online"
        run = measure(
            [*given, f"tracking.mode={mode}"],
            environ,
            drop if trouble == "drops in mid-run" else None,
        )
        server.drop()
        print(
            f"{trouble:23}{run['wall']:9.1f}{run['held_up']:9.2f}"
            f"{run['held_up'] / run['wall']:7.1%}{run['rows']:24}",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        result, *arguments = given.child
        child(arguments, Path(result))
        return
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        os.environ.pop(name, None)
    os.environ |= {"OMP_NUM_THREADS": "1", "NETRC": os.devnull}
    trackers_table(given.steps)
    servers_table(given.steps // 2)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {metadata.version('torch')}")


if __name__ == "__main__":
    main()
