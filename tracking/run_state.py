"""What training goes on from beside the agent's own file: one checkpoint of a run."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gumbelrl.tracking.checkpoints import latest
from gumbelrl.tracking.evaluation import EvaluationCallback
from gumbelrl.tracking.json_values import as_json, from_json
from gumbelrl.tracking.manifest import REPLAY, STATE, VERSION, Checkpoint, reading
from gumbelrl.tracking.metrics import cut_metrics
from gumbelrl.tracking.random_streams import random_state, set_random_state
from gumbelrl.tracking.run_folder import RunFolder
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger


@dataclass(frozen=True)
class RestoredState:
    """What `load_state` hands back: the rest it has put where it belongs."""

    wall_seconds: float  # of the segments before this one
    waiting: dict[str, tuple[Any, int]]  # for the next row of metrics, see `waiting_metrics`
    tracker: dict[str, Any]  # what `Trackers.start` goes on from


def save_weights(agent: BaseAlgorithm, path: Path) -> None:
    """Fill a checkpoint with what evaluates: the agent and the statistics it normalises by."""
    _save_agent(agent, path)
    _save_json({"env_steps": agent.num_timesteps}, path)


def save_state(
    agent: BaseAlgorithm,
    evaluation: EvaluationCallback,
    wall_seconds: float,
    folder: RunFolder,
    path: Path,
    tracker: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Fill a checkpoint with everything that training goes on from.

    Chunks of the replay that have not changed are those of the last checkpoint beside this one.

    Returns:
        The sha256 of the replay's chunks, by their path in the checkpoint.
    """
    _save_agent(agent, path)
    digests: dict[str, str] = {}
    if hasattr(agent, "save_replay_buffer"):
        last = latest(path.parent)
        earlier = None if last is None else last / REPLAY
        chunks = agent.save_replay_buffer(path / REPLAY, earlier)
        digests = {f"{REPLAY}/{name}": digest for name, digest in chunks.items()}
    records = [record for record in folder.records if record.is_file()]
    state = {
        "env_steps": agent.num_timesteps,
        "wall_seconds": wall_seconds,
        "evaluation": evaluation.state_dict(),
        "episodes": list(agent.ep_info_buffer or ()),
        "successes": [bool(success) for success in agent.ep_success_buffer or ()],
        "random": random_state(),
        "waiting": waiting_metrics(agent.logger),
        "tracker": dict(tracker or {}),  # `Trackers.state`
        "bytes": {record.name: record.stat().st_size for record in records},
    }
    _save_json(state, path)
    return digests


def _save_agent(agent: BaseAlgorithm, path: Path) -> None:
    from gumbelrl.configs.build import save_normalization

    agent.save(path / "agent.zip")
    env = agent.get_env()
    assert env is not None
    save_normalization(env, path)


def _save_json(state: Mapping[str, Any], path: Path) -> None:
    # With the version it says that a manifest stands beside it.
    (path / STATE).write_text(json.dumps({"version": VERSION, **state}))


def load_state(
    agent: BaseAlgorithm,
    evaluation: EvaluationCallback,
    env: Mapping[str, Any],
    checkpoint: Checkpoint,
    folder: RunFolder,
) -> RestoredState:
    """Put back what `save_state` wrote beside the agent, and cut later rows of its records.

    Args:
        env: the `env` group, which says whether environments normalise.

    Raises:
        RunFolderError: a file is missing, damaged, or of something else.
    """
    from gumbelrl.configs.build import NORMALIZATION, load_normalization
    from gumbelrl.envs import write_statistics

    statistics = load_normalization(env, checkpoint)
    normalize = agent.get_vec_normalize_env()
    if normalize is not None:
        with checkpoint.reading(NORMALIZATION):
            write_statistics(normalize, statistics)
    with checkpoint.reading(STATE) as path:
        state = json.loads(path.read_text())
        wall_seconds = float(state["wall_seconds"])
        evaluation.load_state_dict(state["evaluation"])
        set_random_state(state["random"])
        window = agent._stats_window_size
        agent.ep_info_buffer = deque(state["episodes"], maxlen=window)
        agent.ep_success_buffer = deque(state["successes"], maxlen=window)
        waiting = dict(from_json(state.get("waiting", {})))
        tracker = dict(state.get("tracker", {}))
        sizes = {str(name): int(size) for name, size in state.get("bytes", {}).items()}
    for record in folder.records:
        if record != folder.metrics_path and not record.is_file():
            continue  # of a run from before there was the other
        with reading(record, "repair the file, or make an empty one"):
            cut_metrics(record, agent.num_timesteps)
            # The final evaluation comes after the last checkpoint, at the same step.
            if record.stat().st_size > sizes.get(record.name, sys.maxsize):
                os.truncate(record, sizes[record.name])
    return RestoredState(wall_seconds, waiting, tracker)


def waiting_metrics(logger: Logger) -> dict[str, tuple[Any, int]]:
    """What the agent has handed over for the next row of metrics, with how many values each
    is the mean of. Figures and the like are left out: no row of metrics.jsonl holds them."""
    waiting = {}
    for name, value in logger.name_to_value.items():
        with suppress(TypeError):
            waiting[name] = (as_json(value), logger.name_to_count[name])
    return waiting


def restore_waiting(logger: Logger, waiting: Mapping[str, tuple[Any, int]]) -> None:
    """Hand `waiting_metrics` to the logger again."""
    for name, (value, count) in waiting.items():
        logger.name_to_value[name] = value
        logger.name_to_count[name] = count
        logger.name_to_excluded[name] = ()
