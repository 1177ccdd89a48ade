"""What a search is: its file in configs/search, and search.py's arguments on top of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from gumbelrl.comparison.command_line import check_workers
from gumbelrl.comparison.experiment import (
    Number,
    as_stated,
    known_keys,
    read_file,
    read_seeds,
    refuse_chosen,
)
from gumbelrl.comparison.launchers import check_launcher
from gumbelrl.comparison.search_space import Parameter, as_data, check_space, read_space
from gumbelrl.configs.compose import (
    GROUPS,
    ConfigError,
    FolderPath,
    Positive,
    RunSettings,
    compose,
    nearest,
    parse_settings,
)
from gumbelrl.configs.tuned_settings import in_hydra
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

CHOSEN_BY_THE_SEARCH = {
    "seed": "give seeds=3, or seeds=[0,1,2]; sampler_seed= is of the suggestions",
    "total_steps": "give budget=STEPS",
    "stop_at_return": "every run goes on to its budget, or returns could not be compared",
    "run_dir": "give out=FOLDER",
    "resume": "the same command goes on with a search that was stopped",
}
Pruner = Literal["median", "hyperband", "none"]
Count = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SearchFile:
    """What a file of configs/search states.

    Args:
        question: in plain words.
        overrides: of train.py for every run: the agent, the environment, the device.
        space: settings to vary; its grammar stands in `search_space`.
        total_steps: environment steps of a run.
        trials: how many settings are tried, failed ones included.
        seeds: of each trial: how many, counted from 0, or a list; its value is the mean over them.
        objective: what a run is worth: `final`, the mean return of its last evaluation, or
            `curve`, the mean over all its evaluations, which pays for learning early.
        pruner: which trials are stopped early: those worse than the `median` of the others,
            all but a third at ever later times (`hyperband`), or `none`.
        prune_after_steps: environment steps that every trial may make; null is a quarter of
            total_steps.
        startup_trials: drawn at random, before there is something to learn from. The median prunes
            when half as many are finished.
        sampler_seed: of the suggestions.
        threshold: a return worth reaching, for the report of compare.py.
        num_gpus: what a run needs on a Ray cluster; a fraction shares a GPU.
    """

    question: str
    overrides: list[str]
    space: dict[str, Any]
    total_steps: Positive
    trials: Count = 30
    seeds: Any = 1
    objective: Literal["final", "curve"] = "final"
    pruner: Pruner = "median"
    prune_after_steps: Positive | None = None
    startup_trials: Count = 10
    sampler_seed: Seed = 0
    threshold: Number | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SearchSettings:
    """The keys of search.py; their meaning stands in its help."""

    experiment: str
    out: FolderPath | None = None
    launcher: str = "local"
    workers: Any = "auto"
    trials: Count | None = None
    seeds: Any = None
    budget: Positive | None = None
    pruner: Pruner | None = None
    sampler_seed: Seed | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    dry_run: bool = False
    overrides: list[str] = field(default_factory=list)  # of train.py


_OWN = [name for name in SearchSettings.__dataclass_fields__ if name != "overrides"]


@dataclass(frozen=True)
class Plan:
    """A search as it is to be made, the command line's word included.

    Args:
        name: of the file.
        stated: the file, with what the command line replaces.
        space: what is varied.
        seeds: of each trial, in this order.
        config: a resolved configuration of the search, but for the suggested values.
        out: the folder.
        command: the command line that goes on with it.
    """

    name: str
    stated: SearchFile
    space: tuple[Parameter, ...]
    seeds: tuple[int, ...]
    config: dict[str, Any]
    out: Path
    command: str

    @property
    def rungs(self) -> int:
        """Evaluations of a run, at which it may be pruned: one every eval_every steps."""
        return max(1, -(-self.stated.total_steps // self.config["eval_every"]))

    @property
    def first_rung(self) -> int:
        """The first evaluation after which a trial may be pruned."""
        given = self.stated.prune_after_steps
        steps = self.stated.total_steps / 4 if given is None else given
        return max(1, -(-int(steps) // self.config["eval_every"]))

    def definition(self) -> dict[str, Any]:
        """What cannot change while a search goes on, as plain data."""
        kept = {**asdict(self.stated), "space": as_data(self.space), "seeds": list(self.seeds)}
        for key in ("question", "trials", "threshold", "num_gpus"):
            del kept[key]
        return {"experiment": self.name, **kept}


def read_arguments(arguments: Sequence[str]) -> SearchSettings:
    """The arguments, checked; what train.py takes goes into `overrides`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, out of range.
    """
    own, overrides = [], []
    train_keys = [*RunSettings.__dataclass_fields__, *GROUPS]
    for text in arguments:
        key, _, _ = text.partition("=")
        if key in _OWN:
            own.append(text)
        elif key.strip("+~ ").split(".")[0] in train_keys and "=" in text:
            overrides.append(text)
        else:
            raise ConfigError(
                f"no key {key!r}{nearest(key, [*_OWN, *train_keys])} Allowed: {', '.join(_OWN)}, "
                "and overrides of train.py"
            )
    if not any(text.startswith("experiment=") for text in own):
        raise ConfigError(
            "give experiment=NAME, of configs/search, or experiment=FILE.yaml of your own"
        )
    settings = replace(parse_settings(own, SearchSettings), overrides=overrides)
    check_launcher(settings.launcher)
    check_workers(settings.workers)
    return settings


def plan(settings: SearchSettings, command: str) -> Plan:
    """The search that is asked for.

    Raises:
        ConfigError: an unknown file, one not of the form above, or what train.py refuses.
    """
    path, content = read_file("search", settings.experiment)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a search: question, overrides, space, total_steps")
    known_keys(str(path), content, SearchFile)
    content["space"] = {} if content.get("space") is None else content["space"]
    stated = as_stated(path, content, SearchFile)
    try:
        for text in stated.overrides:
            _refuse_chosen(text)
        space = read_space(content["space"])
        read_seeds(stated.seeds)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for text in settings.overrides:
        _refuse_chosen(text)
    _refuse_varied(space, [*stated.overrides, *settings.overrides])
    given = {
        "total_steps": settings.budget,
        "overrides": [*stated.overrides, *settings.overrides],
        **{key: getattr(settings, key) for key in _REPLACED},
    }
    stated = replace(stated, **{key: value for key, value in given.items() if value is not None})
    seeds = read_seeds(stated.seeds)
    if not seeds:
        raise ConfigError("seeds must be one or more, got none")
    config = compose(run_overrides(stated, {}, seeds[0]))
    try:
        check_space(space, config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    out = Path(settings.out or f"searches/{path.stem}").expanduser()
    return Plan(path.stem, stated, space, tuple(seeds), config, out, command)


_REPLACED = ("trials", "seeds", "pruner", "sampler_seed", "num_gpus")


def _refuse_chosen(text: str) -> None:
    refuse_chosen(text.partition("=")[0], chosen=CHOSEN_BY_THE_SEARCH, by="search")


def run_overrides(stated: SearchFile, settings: Mapping[str, Any], seed: int | None) -> list[str]:
    """What train.py is given for a run with these settings.

    Args:
        stated: the search.
        settings: values of the parameters.
        seed: of the run; None leaves it out.
    """
    given = [*stated.overrides, *(f"{key}={_in_hydra(value)}" for key, value in settings.items())]
    given.append(f"total_steps={stated.total_steps}")
    return given if seed is None else [*given, f"seed={seed}"]


def _in_hydra(value: Any) -> str:
    """A word without quotes, so that a person can read the command line."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*", value)
    return value if is_word and value.lower() not in _NO_WORDS else in_hydra(value)


_NO_WORDS = ("true", "false", "null", "nan", "inf")  # in Hydra's grammar


def _refuse_varied(space: Sequence[Parameter], overrides: Sequence[str]) -> None:
    for text in overrides:
        key = text.partition("=")[0].strip("+~ ")
        for parameter in space:
            if f"{key}.".startswith(f"{parameter.key}."):
                raise ConfigError(f"{key}= is varied by the search: take it out of the space first")
