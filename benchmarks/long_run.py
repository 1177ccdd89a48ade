"""One million steps: is memory flat once the replay is full, and what grows on the disk?

    python -m benchmarks.long_run                     three agents on CartPole, one after the other
    python -m benchmarks.long_run --steps 100000      a first look

The settings are made cheap, not good: GumbelSAC takes one gradient step in 320 steps (every 10 of
32 Gymnasium environments) with a network of 16, and its replay is full at 10 %; GumbelSHAC and
REINFORCE learn on device, in 64 environments. Everything else is what a run does: evaluations, rows
of metrics, checkpoints, environments made anew, heartbeat. Resident memory is read from the system
ten times a second; the table holds the first figures after 10 % and 50 %, and the last one.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gumbelrl.tracking import read_metrics

NET = "agent.policy_kwargs.net_arch=[16]"
AGENTS = {
    "gumbel_sac": ["env=cartpole", "env.n_envs=32", "agent.train_freq=10", "agent.batch_size=32"],
    "gumbel_shac": ["env=device_cartpole"],
    "reinforce": ["env=device_cartpole", "agent.rollout=steps", "agent.n_steps=32"],
}
SECONDS_BETWEEN_LOOKS = 0.1
_TAIL = 4096  # bytes of metrics.jsonl that hold its last row


def resident_mb(pid: int) -> float:
    """Memory that a process holds, in MB of 10^6 bytes; 0 once it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def env_steps(metrics: Path) -> int:
    """Of the last whole row."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            row = file.read().split(b"\n")[-2]
    except (OSError, IndexError):
        return 0
    return int(row.removeprefix(b'{"env_steps": ').split(b",")[0])


def long_run(agent: str, steps: int, run: Path) -> dict[float, float]:
    """MB resident at shares of the steps."""
    arguments = [f"agent={agent}", *AGENTS[agent], NET, f"total_steps={steps}", f"run_dir={run}"]
    arguments += [
        "tuned=false",
        "device=cpu",
        "tracking.mode=disabled",
        f"eval_every={steps // 20}",
    ]
    arguments += ["eval_episodes=10"]
    if agent == "gumbel_sac":
        arguments.append(f"agent.buffer_size={steps // 10}")
    command = [sys.executable, "-m", "gumbelrl.train", *arguments]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    seen: dict[float, float] = {}
    while process.poll() is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        done, now = env_steps(run / "metrics.jsonl") / steps, resident_mb(process.pid)
        for share in (0.1, 0.5):
            if done >= share and now:
                seen.setdefault(share, now)
        if now:
            seen[1.0] = now
    if process.returncode != 0:
        raise RuntimeError(f"{process.args} ended with exit code {process.returncode}")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(
        f"{'agent':12s} {'MB at 10 %':>11s} {'at 50 %':>8s} {'at 100 %':>9s} {'change':>7s}"
        f" {'cpu s':>7s} {'rows':>6s} {'bytes/row':>10s} {'metrics kB':>11s} {'folder kB':>10s}"
    )
    for agent in AGENTS:
        if args.only not in agent:
            continue
        with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            run = Path(folder) / "run"
            seen = long_run(agent, args.steps, run)
            seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            n_rows = len(read_metrics(run / "metrics.jsonl"))
            size = (run / "metrics.jsonl").stat().st_size
            whole = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
            print(
                f"{agent:12s} {seen[0.1]:11.1f} {seen[0.5]:8.1f} {seen[1.0]:9.1f}"
                f" {seen[1.0] / seen[0.1] - 1:+7.1%} {seconds:7.0f} {n_rows:6d}"
                f" {size / n_rows:10.0f} {size / 1e3:11.0f} {whole / 1e3:10.0f}",
                flush=True,
            )
    print(f"\n{platform.machine()}, {args.steps:,} steps, torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
