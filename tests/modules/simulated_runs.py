"""Run folders as train.py leaves them, without any training: curves are drawn, not learned."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

VERSIONS = {"python": "3.11.7", "gumbelrl": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}


def write_run(
    folder: Path,
    *,
    agent: str = "reinforce",
    env: str = "CartPole-v1",
    seed: int = 0,
    total_steps: int = 20_000,
    scale: float = 500.0,
    half_way: float = 8_000.0,
    noise: float = 0.05,
    evaluations: int = 20,
    stop_at_return: float | None = None,
    settings: Mapping[str, Any] | None = None,
    diagnostics: bool = False,
    failure: str | None = None,
    complete: bool = True,
    seconds_per_step: float = 1e-3,
) -> Path:
    """One run: returns rise along a logistic curve, `scale` high, through half at `half_way`."""
    rng = np.random.default_rng(sum(map(ord, agent + env)) + 7919 * seed)
    folder.mkdir(parents=True)
    half_way *= float(rng.lognormal(0, 0.25))
    rows: list[dict[str, Any]] = []
    reached = None
    for step in np.linspace(total_steps / evaluations, total_steps, evaluations).astype(int):
        clean = scale / (1 + math.exp(-6 * (step - half_way) / half_way))
        mean = min(scale, clean + noise * scale * float(rng.normal()))
        seconds = float(step * seconds_per_step)
        if diagnostics:
            share = step / total_steps
            rows.append(
                {
                    "env_steps": int(step),
                    "estimator/cosine": float(1 - 0.3 * share + 0.05 * rng.normal()),
                    "estimator/std": float(0.5 + share + 0.05 * rng.normal()),
                    "train/entropy": float(0.69 * (1 - 0.7 * share)),
                    "train/temperature": float(2 - 1.5 * share),
                }
            )
        rows.append(
            {
                "env_steps": int(step),
                "eval/return_mean": mean,
                "eval/return_std": 5.0,
                "eval/episodes": 10,
                "eval/length_mean": mean,
                "time/train_seconds": seconds,
                "time/evaluation_seconds": 0.1,
            }
        )
        if stop_at_return is not None and mean >= stop_at_return:
            reached = {"env_steps": int(step), "train_seconds": seconds, "total_seconds": seconds}
            break
    last = rows[-1]
    config = {
        "agent": {"_target_": f"gumbelrl.agents.{agent}", "gamma": 0.99, **dict(settings or {})},
        "env": {"_target_": "gumbelrl.envs.make_vec_env", "id": env, "n_envs": 1, "kwargs": None},
        "tracking": {"mode": "disabled"},
        "seed": seed,
        "total_steps": total_steps,
        "device": "cpu",
        "eval_every": total_steps // evaluations,
        "stop_at_return": stop_at_return,
        "run_dir": str(folder),
    }
    summary: dict[str, Any] = {
        "agent": agent,
        "env": env,
        "seed": seed,
        "env_steps": last["env_steps"],
        "train_seconds": last["time/train_seconds"],
        "complete": complete and failure is None,
        "device": "cpu",
        "versions": VERSIONS,
        "git_commit": "0123456789abcdef",
        "command": f"python train.py agent={agent} env={env} seed={seed}",
        "eval": {"env_steps": last["env_steps"], "return_mean": last["eval/return_mean"]},
    }
    if stop_at_return is not None:
        summary |= {"stop_at_return": stop_at_return, "reached": reached}
    if failure is not None:
        summary["failure"] = failure
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_comparison(
    out: Path,
    agents: Mapping[str, Mapping[str, Any]],
    envs: Sequence[str] = ("CartPole-v1",),
    seeds: int = 5,
    *,
    threshold: float | None = 475.0,
    question: str = "Which agent learns faster?",
    **shared: Any,
) -> Path:
    """A grid of runs and its grid.json: label of an agent to what `write_run` is given for it."""
    points = []
    for seed in range(seeds):
        for env in envs:
            for label, given in agents.items():
                name = f"run-{len(points):04d}"
                options = {**shared, **given}
                write_run(out / "runs" / name, env=env, seed=seed, agent=label, **options)
                points.append(
                    {
                        "agent": label,
                        "env": env,
                        "seed": seed,
                        "settings": {},
                        "overrides": [f"agent={label}", f"env={env}"],
                        "run": f"runs/{name}",
                        "threshold": threshold,
                        "total_steps": options.get("total_steps", 20_000),
                        "status": "failed" if options.get("failure") else "finished",
                        "reason": options.get("failure"),
                    }
                )
    write_grid(out, points, question=question)
    return out


def write_grid(out: Path, points: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """grid.json of these points."""
    grid = {
        "experiment": "simulated",
        "question": "Which agent learns faster?",
        "command": "python compare.py experiment=simulated",
        "created": "2026-01-01T00:00:00+00:00",
        "points": list(points),
        **more,
    }
    (out / "grid.json").write_text(json.dumps(grid))
