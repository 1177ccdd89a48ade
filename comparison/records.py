"""What the run folders of a comparison hold, read as data: nothing in them is trusted or run."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from gumbelrl.configs.build import agent_name
from gumbelrl.tracking import RunFolder, RunFolderError, first_line, read_metrics

Array = npt.NDArray[np.float64]
Status = Literal["pending", "running", "finished", "interrupted", "pruned", "failed", "n/a"]

DIAGNOSTICS = ("estimator/cosine", "estimator/std", "train/entropy", "train/temperature")
"""Metrics that the report draws beside the returns."""

# Of the configuration, what says how a run was kept and watched, not what was run.
_KEEPING = frozenset({"seed", "run_dir", "resume", "tracking", "trust", "tuned", "device"})
_KEEPING |= {
    "threads",
    "log_every",
    "checkpoint_every",
    "checkpoint_keep",
    "eval_every",
    "eval_episodes",
}
# Of env.*, what makes it another task; the rest (n_envs, normalisation) belongs to the agent.
_TASK = frozenset({"wrappers", "max_episode_steps", "kwargs"})
# Of env.*, what neither shows in a label nor parts groups.
_SILENT = frozenset({"env.render_mode", "env._target_", "agent._target_", "env.id"})
# The loader in C reads a configuration ten times faster; both build plain data alone.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST_CONFIG = 1 << 20  # bytes


@dataclass(frozen=True)
class RunRecord:
    """One run, or one point of a grid that has no run.

    Args:
        folder: its run folder.
        agent: label of the agent, the swept settings in it.
        env: label of the environment.
        seed: the run's seed.
        status: what became of it.
        reason: why it failed or does not apply.
        threshold: return worth reaching, or None.
        total_steps: its budget in env steps, or None where unknown.
        config: the configuration, flat: `{"agent.gamma": 0.99}`.
        summary: `summary.json`, empty where the run has not ended.
        steps: [E] env steps of the evaluations, ascending.
        seconds: [E] seconds of training until then, evaluations left out; NaN where unknown.
        returns: [E] mean returns of the evaluations.
        episodes: [E] episodes of each.
        diagnostics: name to (env steps [D], values [D]), those of `DIAGNOSTICS` that were logged.
        overrides: of train.py, as the grid gave them.
        swept: the settings that the grid varies, with this run's values.
        label: the agent's in the experiment, where settings are swept.
    """

    folder: Path
    agent: str
    env: str
    seed: int
    status: Status
    reason: str | None = None
    threshold: float | None = None
    total_steps: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    steps: Array = field(default_factory=lambda: np.empty(0))
    seconds: Array = field(default_factory=lambda: np.empty(0))
    returns: Array = field(default_factory=lambda: np.empty(0))
    episodes: Array = field(default_factory=lambda: np.empty(0))
    diagnostics: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    swept: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def base(self) -> str:
        """Label of the agent without its swept settings."""
        return self.agent if self.label is None else self.label

    @property
    def score(self) -> float | None:
        """Mean return of the last evaluation of a finished run, else None."""
        if self.status != "finished" or len(self.returns) == 0:
            return None
        return float(self.returns[-1])

    @property
    def env_steps(self) -> float:
        """Env steps of training, as far as they are known."""
        last = float(self.steps[-1]) if len(self.steps) else 0.0
        return max(last, _number(self.summary.get("env_steps")) or 0.0)

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training, evaluations left out."""
        told = _number(self.summary.get("train_seconds"))
        known = self.seconds[np.isfinite(self.seconds)]
        return told if told is not None else float(known[-1]) if len(known) else None

    @property
    def confirms(self) -> bool:
        """Whether the run confirmed the threshold by further episodes before it counted."""
        return self.threshold is not None and self.summary.get("stop_at_return") == self.threshold

    def reached(self) -> tuple[float, float] | None:
        """Env steps and seconds of training at which the threshold was reached, or None.

        The run's own confirmed arrival where it looked for this threshold, else the first
        evaluation at or above it.
        """
        if self.threshold is None:
            return None
        if self.confirms:
            told = self.summary.get("reached")
            if not isinstance(told, Mapping):
                return None
            steps, seconds = _number(told.get("env_steps")), _number(told.get("train_seconds"))
            return None if steps is None else (steps, math.nan if seconds is None else seconds)
        above = np.flatnonzero(self.returns >= self.threshold)
        if len(above) == 0:
            return None
        return float(self.steps[above[0]]), float(self.seconds[above[0]])


@dataclass(frozen=True)
class Comparison:
    """All that a report tells.

    Args:
        out: the folder.
        records: runs and points, in the order of the grid or of their folders' names.
        experiment: its name.
        question: what it asks, or None.
        command: what runs it again, or None.
        created: when the grid was made, or None.
        skipped: a line for every folder that could not be read: which, and why.
        notes: a line for everything a reader must know before averaging.
        references: label of an environment to (random policy's return, reference's return).
    """

    out: Path
    records: tuple[RunRecord, ...]
    experiment: str
    question: str | None = None
    command: str | None = None
    created: str | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def agents(self) -> tuple[str, ...]:
        """Labels of the agents, in order of appearance."""
        return tuple(dict.fromkeys(record.agent for record in self.records))

    @property
    def envs(self) -> tuple[str, ...]:
        """Labels of the environments, in order of appearance."""
        return tuple(dict.fromkeys(record.env for record in self.records))

    def of(self, agent: str, env: str) -> tuple[RunRecord, ...]:
        """The records of one agent in one environment, in order of their seeds."""
        return self._cells.get((agent, env), ())

    def threshold(self, env: str) -> float | None:
        """The return worth reaching there; None where none, or several, were given."""
        found = {r.threshold for r in self.records if r.env == env} - {None}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def _cells(self) -> dict[tuple[str, str], tuple[RunRecord, ...]]:
        gathered = defaultdict(list)
        for record in self.records:
            gathered[record.agent, record.env].append(record)
        return {k: tuple(sorted(v, key=lambda r: r.seed)) for k, v in gathered.items()}


def read_run(folder: str | Path) -> RunRecord:
    """Read one run folder. The labels are the run's own names of its agent and environment.

    A run without `summary.json` is still running, or was killed; a last line of `metrics.jsonl`
    that a crash cut off is left out.

    Raises:
        RunFolderError: a file is missing, empty, damaged, or not of a run; the message says which.
    """
    run = RunFolder.open(folder)
    nested = _read_config(run)
    agent_config, env_config = nested.get("agent"), nested.get("env")
    if not isinstance(agent_config, dict) or not isinstance(env_config, dict):
        raise RunFolderError(f"{run.config_path} is not the configuration of a run")
    seed = nested.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RunFolderError(f"{run.config_path} is not the configuration of a run: no seed")
    summary = run.read_summary() if run.summary_path.exists() else {}
    try:
        rows = read_metrics(run.metrics_path)
    except FileNotFoundError as error:
        raise RunFolderError(f"there is no {run.metrics_path.name} in {run.path}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise RunFolderError(first_line(error)) from error
    if not rows and "failure" not in summary:
        raise RunFolderError(f"{run.metrics_path} is empty")
    failure = summary.get("failure")
    status: Status = "finished"
    if failure is not None:
        status = "failed"
    elif not summary:
        status = "running"
    elif summary.get("complete") is False:
        status = "interrupted"
    curves = _curves(rows, run.metrics_path)
    ended, took = _number(summary.get("env_steps")), _number(summary.get("train_seconds"))
    at_the_end = len(curves["steps"]) > 0 and curves["steps"][-1] == ended
    if at_the_end and took is not None and not math.isfinite(curves["seconds"][-1]):
        curves["seconds"][-1] = took  # the evaluation at the end has no clock of its own
    return RunRecord(
        folder=run.path,
        agent=str(summary.get("agent") or agent_name(str(agent_config.get("_target_", "agent")))),
        env=str(env_config.get("id") or summary.get("env") or "unknown"),
        seed=seed,
        status=status,
        reason=None if failure is None else str(failure),
        threshold=_number(nested.get("stop_at_return")),
        total_steps=_whole(nested.get("total_steps")),
        config=dict(_flat(nested)),
        summary=summary,
        **curves,
    )


def read_runs(out: str | Path) -> Comparison:
    """Read all runs of a comparison.

    `OUT/grid.json` names the runs, their labels and what does not apply. Without it, every folder
    below OUT that holds a `config.yaml`, `metrics.jsonl` or `summary.json` is taken for a run, and
    runs that differ in nothing but the seed form one agent, labelled by what they differ in.

    Folders that cannot be read are left out, and a line of `skipped` says why.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    out = Path(out).expanduser()
    if not out.is_dir():
        raise ValueError(f"there is no folder {out}; give one that holds run folders")
    notes: list[str] = []
    if (out / "grid.json").is_file():
        try:
            return _from_grid(out)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            notes.append(
                f"grid.json is damaged ({first_line(error)}): the runs are grouped by their "
                "configurations instead, and points without a run are missing."
            )
    records, skipped = [], []
    for folder in _run_folders(out):
        try:
            records.append(read_run(folder))
        except RunFolderError as error:
            skipped.append(_skipped(out, folder, error))
    if not records:
        why = f" ({skipped[0]})" if skipped else ""
        raise ValueError(f"there is no run that can be read in {out}{why}")
    labelled, repeated = _one_of_each_seed(_labelled(records))
    notes += [*repeated, *_differences(labelled)]
    return Comparison(
        out, tuple(labelled), out.resolve().name, skipped=tuple(skipped), notes=tuple(notes)
    )


def with_settings(label: str, settings: Mapping[str, Any]) -> str:
    """`ppo (gamma=0.9)`: the label of an agent whose settings are swept."""
    if not settings:
        return label
    return f"{label} (" + ", ".join(f"{_short(k)}={v}" for k, v in settings.items()) + ")"


def flat_settings(record: RunRecord) -> dict[str, Any]:
    """What of the configuration decides the result, without the seed: `{"agent.gamma": 0.99}`."""
    return {k: v for k, v in record.config.items() if k.partition(".")[0] not in _KEEPING}


def differing_settings(records: Mapping[str, RunRecord]) -> dict[str, dict[str, Any]]:
    """Settings in which agents differ: setting to the value of each that has it."""
    table: dict[str, dict[str, Any]] = defaultdict(dict)
    for label, record in records.items():
        for key, value in flat_settings(record).items():
            table[key][label] = value
    return {
        key: values
        for key, values in sorted(table.items())
        if len({repr(value) for value in values.values()}) > 1 or len(values) < len(records)
    }


def _from_grid(out: Path) -> Comparison:
    grid = json.loads((out / "grid.json").read_text(encoding="utf-8"))
    if not isinstance(grid, dict) or not isinstance(grid.get("points"), list):
        raise ValueError("it holds no points")
    records: list[RunRecord] = []
    skipped: list[str] = []
    for point in grid["points"]:
        records.append(_point_record(out, point, skipped))
    if not records:
        raise ValueError("it holds no points")
    references = {}
    given = grid.get("references")
    for env, pair in given.items() if isinstance(given, dict) else ():
        if isinstance(pair, dict):
            random, reference = _number(pair.get("random")), _number(pair.get("reference"))
            if random is not None and reference is not None and random != reference:
                references[str(env)] = (random, reference)
    records = _parted_by_budget(records)

    def text(key: str) -> str | None:
        return str(grid[key]) if grid.get(key) else None

    return Comparison(
        out,
        tuple(records),
        text("experiment") or out.resolve().name,
        question=text("question"),
        command=text("command"),
        created=text("created"),
        skipped=tuple(skipped),
        notes=tuple(_differences(records)),
        references=references,
    )


def _point_record(out: Path, point: Any, skipped: list[str]) -> RunRecord:
    """A point of the grid with what its run folder says, which is newer than the grid's word."""
    settings, label = point.get("settings") or {}, str(point["agent"])
    folder = out / str(point["run"])
    status, reason = point["status"], point.get("reason")
    if status not in ("pending", "running", "finished", "pruned", "failed", "n/a"):
        raise ValueError(f"a point has the status {status!r}")
    record = RunRecord(
        folder=folder,
        agent=with_settings(label, settings),
        env=str(point["env"]),
        seed=int(point["seed"]),
        status=status,
        reason=None if reason is None else str(reason),
        threshold=_number(point.get("threshold")),
        total_steps=_whole(point.get("total_steps")),
        overrides=tuple(map(str, point.get("overrides") or ())),
        swept=settings,
        label=label,
    )
    if status == "n/a":
        return record
    if not folder.resolve().is_relative_to(out.resolve()):
        skipped.append(f"{point['run']}: lies outside {out}")
        return replace(record, status="failed", reason="its run folder lies outside the comparison")
    if not folder.exists() and status != "finished":
        return record
    try:
        run = read_run(folder)
    except RunFolderError as error:
        if status == "finished":
            skipped.append(_skipped(out, folder, error))
            return replace(record, status="failed", reason="its run folder cannot be read")
        if status == "running":  # its files appear one by one
            return record
        if status == "pending":
            skipped.append(_skipped(out, folder, error))
        return record
    if status == "failed" and run.status != "finished":
        reason = record.reason or run.reason or "it did not come to its end"
        run = replace(run, status="failed", reason=reason)
    if status == "pruned":
        run = replace(run, status="pruned", reason=record.reason)
    return replace(
        run,
        agent=record.agent,
        env=record.env,
        seed=record.seed,
        threshold=record.threshold,
        total_steps=record.total_steps or run.total_steps,
        overrides=record.overrides,
        swept=record.swept,
        label=record.label,
    )


def _skipped(out: Path, folder: Path, error: Exception) -> str:
    name = os.path.relpath(folder, out)
    said = first_line(error).replace(str(folder) + os.sep, "").replace(str(folder), "the folder")
    return f"{name}: {said}"


def _run_folders(out: Path) -> Iterator[Path]:
    """Folders that look like runs, by name; not what lies inside them (wandb/ has configs too)."""
    for path, names, files in os.walk(out):
        if {"config.yaml", "metrics.jsonl", "summary.json"} & set(files):
            names.clear()
            yield Path(path)
        else:
            # A grid has a wandb/ of its own.
            names[:] = sorted(name for name in names if name[0] != "." and name != "wandb")


def _read_config(run: RunFolder) -> dict[str, Any]:
    try:
        if run.config_path.stat().st_size > _LARGEST_CONFIG:
            raise RunFolderError(f"{run.config_path} is too large for a configuration")
        content = run.config_path.read_text(encoding="utf-8")
        config = yaml.load(content, Loader=_Loader)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise RunFolderError(f"{run.config_path} cannot be read: {first_line(error)}") from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise RunFolderError(f"{run.config_path} is damaged: {said[:200]}") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{run.config_path} is {'damaged' if content.strip() else 'empty'}")
    return config


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and not prefix.count("."):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _curves(rows: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Evaluations and diagnostics of the rows of metrics.jsonl.

    Of two evaluations at the same step the one of more episodes counts: it confirms the other.
    """
    evaluations: dict[int, tuple[float, float, float]] = {}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        try:
            step = row["env_steps"]
            if "eval/return_mean" in row:
                mean = float(row["eval/return_mean"])
                episodes = float(row.get("eval/episodes", math.nan))
                seconds = float(row.get("time/train_seconds", math.nan))
                if math.isfinite(mean):
                    earlier = evaluations.get(step)
                    if earlier is None or not episodes < earlier[2]:
                        evaluations[step] = (seconds, mean, episodes)
            for name in DIAGNOSTICS:
                if name in row and math.isfinite(value := float(row[name])):
                    found[name].append((step, value))
        except (TypeError, ValueError) as error:
            raise RunFolderError(f"line {number} of {path} is damaged: {error}") from error
    steps = sorted(evaluations)
    columns = np.array([evaluations[step] for step in steps], dtype=float).reshape(-1, 3)
    return {
        "steps": np.array(steps, dtype=float),
        "seconds": columns[:, 0],
        "returns": columns[:, 1],
        "episodes": columns[:, 2],
        "diagnostics": {
            name: (pairs[:, 0], pairs[:, 1])
            for name, pairs in ((name, np.array(found[name])) for name in found)
        },
    }


def _labelled(records: list[RunRecord]) -> list[RunRecord]:
    """Label runs by what they differ in: nothing is averaged but seeds."""
    envs: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        envs[record.env].append(record)
    renamed: list[RunRecord] = []
    for record in records:
        varied = _varied([_task(other) for other in envs[record.env]])
        renamed.append(replace(record, env=record.env + _in_brackets(_task(record), varied)))
    cells: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in renamed:
        cells[record.agent, record.env].append(record)
    varied_of: dict[str, set[str]] = defaultdict(set)
    for (agent, _), runs in cells.items():
        varied_of[agent] |= _varied([_agent_settings(run) for run in runs])
    return [
        replace(run, agent=run.agent + _in_brackets(_agent_settings(run), varied_of[run.agent]))
        for run in renamed
    ]


def _task(record: RunRecord) -> dict[str, Any]:
    return {k: v for k, v in record.config.items() if _is_task(k)}


def _is_task(key: str) -> bool:
    parts = key.split(".")
    return len(parts) > 1 and parts[0] == "env" and parts[1] in _TASK


def _agent_settings(record: RunRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat_settings(record).items()
        if key not in _SILENT and not _is_task(key)
    }


def _varied(settings: list[dict[str, Any]]) -> set[str]:
    keys = set().union(*settings)
    return {key for key in keys if len({repr(each.get(key)) for each in settings}) > 1}


def _in_brackets(settings: Mapping[str, Any], keys: set[str]) -> str:
    parts = [f"{_short(key)}={settings.get(key)}" for key in sorted(keys)]
    return f" ({', '.join(parts)})" if parts else ""


def _short(key: str) -> str:
    return key.rpartition(".")[2] if key.startswith(("agent.", "env.")) else key


def _parted_by_budget(records: list[RunRecord]) -> list[RunRecord]:
    """Runs of one agent with other budgets get a label of their own: they are never averaged."""
    budgets: dict[tuple[str, str], set[int | None]] = defaultdict(set)
    for record in records:
        budgets[record.agent, record.env].add(record.total_steps)
    return [
        replace(record, agent=f"{record.agent} (total_steps={record.total_steps})")
        if len(budgets[record.agent, record.env]) > 1
        else record
        for record in records
    ]


def _one_of_each_seed(records: list[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Without runs that were made again, and a sentence on each: of several the last finished one
    counts, by the folders' names, which hold the time."""
    groups: dict[tuple[str, str, int], list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[record.agent, record.env, record.seed].append(record)
    kept, notes = [], []
    for (agent, env, seed), group in groups.items():
        last = max(group, key=lambda record: (record.score is not None, record.folder.name))
        kept.append(last)
        if len(group) > 1:
            notes.append(
                f"{env}: {agent} has {len(group)} runs of seed {seed}; {last.folder.name} counts."
            )
    return kept, notes


def _differences(records: list[RunRecord]) -> Iterator[str]:
    """What makes runs of one environment unequal, a sentence each."""
    for env in dict.fromkeys(record.env for record in records):
        here = [record for record in records if record.env == env and record.status != "n/a"]
        budgets = {record.total_steps for record in here if record.total_steps is not None}
        if len(budgets) > 1:
            said = ", ".join(f"{budget:,}" for budget in sorted(budgets))
            yield f"{env}: runs have different budgets ({said} env steps): scores are not equal."
        tasks = {str(r.config["env.id"]) for r in here if r.config.get("env.id")}
        if len(tasks) > 1:
            yield f"{env}: runs are of different environments ({', '.join(sorted(tasks))})."
        thresholds = {record.threshold for record in here}
        if len(thresholds) > 1:
            said = ", ".join(
                "none" if x is None else f"{x:g}"
                for x in sorted(thresholds, key=lambda x: (x is None, x or 0.0))
            )
            yield f"{env}: runs have different thresholds ({said})."
        seeds: dict[str, set[int]] = defaultdict(set)
        for record in here:
            if record.score is not None:
                seeds[record.agent].add(record.seed)
        if len({frozenset(each) for each in seeds.values()}) > 1:
            yield f"{env}: not all agents have finished runs of the same seeds."
        for key in ("eval_every", "eval_episodes"):
            values = {repr(r.config[key]) for r in here if key in r.config}
            if len(values) > 1:
                yield f"{env}: runs differ in {key} ({', '.join(sorted(values))})."
        devices = {str(r.summary["device"]) for r in here if r.summary.get("device")}
        if len(devices) > 1:
            yield f"{env}: runs were made on different devices ({', '.join(sorted(devices))})."


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
