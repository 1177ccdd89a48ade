"""The points of an experiment, and grid.json, which maps them to run folders."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from gumbelrl.comparison.experiment import Experiment, pick, read_seeds, sweep_values
from gumbelrl.configs.compose import ConfigError, compose
from gumbelrl.configs.resume import differences
from gumbelrl.tracking import RunFolder, RunFolderError, first_line, write_atomically

Status = Literal["pending", "running", "finished", "pruned", "failed", "n/a"]
MANIFEST = "grid.json"
# What does not change a result, or is decided where the run is made.
_BESIDES = ("run_dir", "resume", "trust", "tracking", "device", "threads", "seed")


@dataclass
class Point:
    """One run of the grid.

    Args:
        agent: label of the agent.
        env: label of the environment.
        seed: of the run.
        settings: values of the swept settings.
        overrides: what train.py is given, but for the run folder.
        run: the run folder, relative to the grid's.
        threshold: a return worth reaching, or None.
        total_steps: environment steps.
        status: pending, running, finished, failed or n/a; pruned is what search.py stopped early.
        reason: why it failed, was pruned or does not apply.
    """

    agent: str
    env: str
    seed: int
    settings: dict[str, Any]
    overrides: list[str]
    run: str
    threshold: float | None
    total_steps: int
    status: Status = "pending"
    reason: str | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        return Path(self.run).name

    @property
    def key(self) -> str:
        """Which point of a grid it is."""
        settings = json.dumps(self.settings, sort_keys=True)
        return f"{self.agent}\n{self.env}\n{settings}\n{self.seed}"

    @property
    def cell(self) -> str:
        """The same for all its seeds."""
        return self.key.rpartition("\n")[0]

    def __str__(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return ", ".join([f"{self.agent} on {self.env}", *settings, f"seed {self.seed}"])


@dataclass
class Grid:
    """What grid.json holds.

    Args:
        experiment: its name.
        question: in plain words.
        command: the command line that goes on with it.
        points: its runs, those of seed 0 first.
        created: when it was first begun.
        references: returns of a "random" policy and of a "reference", by environment.
    """

    experiment: str
    question: str
    command: str
    points: list[Point]
    created: str = field(
        default_factory=lambda: datetime.now().astimezone().isoformat("T", "seconds")
    )
    references: dict[str, dict[str, float]] = field(default_factory=dict)

    def count(self, *statuses: Status) -> int:
        """How many points have one of these statuses."""
        return sum(point.status in statuses for point in self.points)

    def write(self, out: Path) -> None:
        """Write grid.json.

        Raises:
            OSError: the disk refused.
        """
        write_atomically(out / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, out: Path) -> Grid:
        """Read grid.json.

        Raises:
            ConfigError: it is missing or damaged.
        """
        path = out / MANIFEST
        remedy = "repair it, or give another out="
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            points = [Point(**point) for point in content.pop("points")]
            grid = cls(points=points, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read ({first_line(error)}); {remedy}") from error
        sound = all(
            point.status in get_args(Status) and isinstance(point.settings, dict)
            for point in points
        )
        names = Counter(str(point.run) for point in points)
        if not sound or any(Path(name).parent != Path("runs") or names[name] > 1 for name in names):
            raise ConfigError(f"{path} is damaged (its points are not those of a grid); {remedy}")
        return grid


def expand(
    experiment: Experiment,
    *,
    seeds: Any = None,
    budget: int | None = None,
    agents: Sequence[str] | None = None,
    envs: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    sweep: Mapping[str, Any] | None = None,
) -> list[Point]:
    """Every agent on every environment with every swept value, for one seed after the other.

    Agents that the experiment names as unswept take part once, whatever is swept.

    Args:
        experiment: what is asked.
        seeds: in place of the experiment's; how many, or a list.
        budget: environment steps of each run, in place of the experiment's.
        agents: labels, to take some of the experiment's.
        envs: labels, to take some of the experiment's.
        overrides: of train.py, after the experiment's own.
        sweep: settings to vary beside the experiment's.

    Raises:
        ConfigError: an unknown label, or nothing to run.
    """
    seeds = read_seeds(experiment.seeds if seeds is None else seeds)
    chosen_agents = pick("agents", experiment.agents, agents)
    chosen_envs = pick("envs", experiment.envs, envs)
    for what, values in (("agents", chosen_agents), ("envs", chosen_envs), ("seeds", seeds)):
        if not values:
            raise ConfigError(f"the grid is empty: it has no {what}")
    swept = {**experiment.sweep, **(sweep or {})}
    # [[("agent.gamma=0.9", "agent.gamma", 0.9), ...], ...], one list for each swept setting
    axes = [
        [(text, key, value) for text, value in sweep_values(key, given)]
        for key, given in swept.items()
    ]
    cells = [
        (agent, values)
        for agent in chosen_agents
        for values in itertools.product(*([] if agent in experiment.unswept else axes))
    ]
    points = []
    for seed, env, (agent, values) in itertools.product(seeds, chosen_envs, cells):
        spec, settings = experiment.envs[env], {key: value for _, key, value in values}
        total_steps = spec.total_steps if budget is None else budget
        given = [*experiment.overrides, *spec.overrides, *experiment.agents[agent]]
        given += [*spec.agents.get(agent, []), *(text for text, _, _ in values), *overrides]
        given += [f"total_steps={total_steps}", f"seed={seed}"]
        if spec.stop_at_return is not None:
            given.append(f"stop_at_return={repr(spec.stop_at_return).removesuffix('.0')}")
        threshold = spec.threshold if spec.stop_at_return is None else spec.stop_at_return
        name = run_name(agent, env, settings, seed)
        points.append(
            Point(agent, env, seed, settings, given, f"runs/{name}", threshold, total_steps)
        )
    _tell_apart(points)
    return points


def run_name(agent: str, env: str, settings: Mapping[str, Any], seed: int) -> str:
    """A readable name for a folder: `cartpole-ppo-gamma=0.9-seed3`."""
    parts = [env, agent]
    for key, value in settings.items():
        text = f"{key.rpartition('.')[2]}={value}"
        parts.append(text if len(text) <= 40 else f"{text[:30]}~{_digest(text)}")
    parts.append(f"seed{seed}")
    return "-".join(re.sub(r"[^A-Za-z0-9._+=~-]+", "_", part).strip("._") or "x" for part in parts)


def _tell_apart(points: Iterable[Point]) -> None:
    """Labels that differ in letters no file name holds get folders that do."""
    taken: dict[str, str] = {}
    for point in points:
        if taken.setdefault(point.run.lower(), point.key) != point.key:
            point.run += f"~{_digest(point.key)}"
            taken[point.run.lower()] = point.key


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def check_points(points: Sequence[Point], swept: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The resolved configuration of every cell (of all its seeds).

    A point whose agent or environment does not have a swept setting becomes n/a.

    Args:
        points: of the grid.
        swept: the keys that are swept.

    Raises:
        ConfigError: overrides that train.py refuses, or a swept setting that nothing has.
    """
    from gumbelrl.configs.build import env_for_agent

    configs: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for point in points:
        if point.cell in configs or point.cell in refused:
            continue
        try:
            config = compose(point.overrides)
            config["env"] = env_for_agent(config["env"], config["agent"])
            configs[point.cell] = config
        except ConfigError as error:
            if not any(str(error).startswith(f"no key {key}") for key in swept):
                raise ConfigError(f"{point.agent} on {point.env}: {error}") from error
            refused[point.cell] = str(error)
    if refused and not configs:
        raise ConfigError(f"sweep: {next(iter(refused.values()))}")
    for point in points:
        if point.cell in refused:
            point.status, point.reason = "n/a", refused[point.cell]
    return configs


def merge(old: Grid, new: Grid, out: Path) -> Grid:
    """The new grid with what is known of the old one, which it may extend but not change.

    Raises:
        ConfigError: they differ in more than points that are added.
    """
    before = {point.key: point for point in old.points}
    after = {point.key: point for point in new.points}
    differences = [] if old.experiment == new.experiment else [
        f"it is of experiment {old.experiment}, not {new.experiment}"
    ]  # fmt: skip
    missing = [before[key] for key in before if key not in after]
    if missing:
        differences.append(f"it has {_some([str(point) for point in missing])}, which this has not")
    for key in (key for key in before if key in after):
        was, now = before[key], after[key]
        # What never began may be corrected: nothing was made with it.
        if was.overrides != now.overrides and (out / was.run).exists():
            gone = [each for each in was.overrides if each not in now.overrides]
            come = [each for each in now.overrides if each not in was.overrides]
            change = f"{' '.join(gone) or 'nothing'} there, {' '.join(come) or 'nothing'} here"
            change = change if gone or come else "the order of its overrides"
            differences.append(f"{now}: {change}")
            break
    if differences:
        raise ConfigError(
            f"{out} holds another grid: {'; '.join(differences)}. To go on with that one: "
            f"{old.command}. For this one give another out=FOLDER"
        )
    for key, point in after.items():
        if key in before:
            was = before[key]
            point.run = was.run
            # Whether an agent applies is asked again: its code may have changed.
            if "n/a" not in (was.status, point.status):
                point.status, point.reason = was.status, was.reason
    _tell_apart(new.points)
    new.created = old.created
    return new


def _some(items: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def find_difference(run: Path, config: Mapping[str, Any], seed: int) -> str | None:
    """How the configuration of a run differs from what the grid asks for; None if it does not.

    A run folder without a readable config.yaml differs in nothing: it has not begun.
    """
    try:
        stored = RunFolder.open(run).read_config()
    except RunFolderError:
        return None
    if stored.get("seed") != seed:
        return f"seed was {stored.get('seed')}, is {seed}"
    return next(iter(differences(stored, config, besides=_BESIDES)), None)
