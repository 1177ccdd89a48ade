"""configs/experiment/*.yaml: a question, and the agents, environments and seeds that answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from gumbelrl.configs.compose import CONFIG_DIR, ConfigError, Positive, group_options, nearest
from gumbelrl.configs.tuned_settings import in_hydra
from gumbelrl.tracking import first_line
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Number = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1)]
T = TypeVar("T")
_MOST_SEEDS = 100_000
# An experiment lists them; they cannot be overrides of train.py too.
CHOSEN_BY_THE_GRID = {
    "agent": "agents=[LABEL,...] picks among those of the experiment",
    "env": "envs=[LABEL,...] picks among those of the experiment",
    "seed": "give seeds=5, or seeds=[0,1,2]",
    "total_steps": "give budget=STEPS",
    "stop_at_return": "it stands with each environment of the experiment",
    "run_dir": "give out=FOLDER",
    "resume": "the same command goes on with a grid that was stopped",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EnvSpec:
    """One environment of an experiment.

    Args:
        overrides: of train.py, such as `env=cartpole`.
        total_steps: environment steps of a run.
        threshold: a return worth reaching, for the report; runs go on when they reach it.
        stop_at_return: the same, but a run that reaches it ends.
        random: return of a random policy, 0 on the scale on which environments are averaged.
        reference: that of a very good one, 1 on it; both are given, or neither.
        agents: further overrides there of some agents, by label.
    """

    overrides: list[str]
    total_steps: Positive
    threshold: Number | None = None
    stop_at_return: Number | None = None
    random: Number | None = None
    reference: Number | None = None
    agents: dict[Label, list[str]] = Field(default_factory=dict)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Experiment:
    """What an experiment file states.

    Args:
        question: in plain words; the report opens with it.
        agents: overrides of train.py by the label that the report uses.
        envs: environments by label.
        seeds: how many, counted from 0, or a list of them.
        overrides: of train.py, for every run.
        sweep: settings to vary, as lists or in Hydra's grammar: `choice(a, b)`, `range(1, 5)`.
        unswept: labels of agents that run once, as they are: what the others are held against.
        num_gpus: what a run needs on a Ray cluster; a fraction shares a GPU.
    """

    question: str
    agents: dict[Label, list[str]]
    envs: dict[Label, EnvSpec]
    seeds: Any = 5
    overrides: list[str] = Field(default_factory=list)
    sweep: dict[str, list[Any] | str | int | float | bool | None] = Field(default_factory=dict)
    unswept: list[Label] = Field(default_factory=list)
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


def read_seeds(given: Any) -> list[int]:
    """The seeds, each once, from how many (counted from 0) or a list.

    Raises:
        ConfigError: neither.
    """
    if type(given) is int and 0 <= given <= _MOST_SEEDS:
        return list(range(given))
    whole = isinstance(given, list | tuple) and all(type(seed) is int for seed in given)
    if not whole or not all(0 <= seed < 2**31 for seed in given):
        raise ConfigError(
            f"seeds must be how many, such as 5, or a list of whole numbers >= 0, got {given!r}"
        )
    return list(dict.fromkeys(given))


def read_experiment(name: str) -> tuple[str, Experiment]:
    """The experiment of that name in configs/experiment, or in the file of that path.

    Returns:
        Its name and what it states.

    Raises:
        ConfigError: there is none (names the nearest), or it is not of the form above.
    """
    path, content = read_file("experiment", name)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold an experiment: question, agents, envs, seeds")
    return path.stem, _check(path, content)


def read_file(group: str, name: str) -> tuple[Path, Any]:
    """What stands in the file of that name in configs/GROUP, or in the file of that path.

    Raises:
        ConfigError: there is none (names the nearest), or it is no YAML.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"experiment: there is no file {path}")
    else:
        options = group_options(group)
        if name not in options:
            raise ConfigError(
                f"no {group} named {name!r}{nearest(name, options)} Allowed: "
                f"{', '.join(options)}, or the path of a .yaml file"
            )
        path = CONFIG_DIR / group / f"{name}.yaml"
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _check(path: Path, content: dict[Any, Any]) -> Experiment:
    known_keys(str(path), content, Experiment)
    envs = content.get("envs")
    for label, env in envs.items() if isinstance(envs, Mapping) else ():
        if isinstance(env, Mapping):
            known_keys(f"{path}, envs.{label}", env, EnvSpec)
    for group in ("agents", "envs"):  # an empty one is said by what it means: an empty grid
        content[group] = {} if content.get(group) is None else content[group]
    experiment = as_stated(path, content, Experiment)
    for label, env in experiment.envs.items():
        if env.threshold is not None and env.stop_at_return is not None:
            raise ConfigError(
                f"{path}: envs.{label} has both threshold and stop_at_return; a run either goes "
                "on when it reaches the number, or ends"
            )
        if (env.random is None) != (env.reference is None) or (
            env.random is not None and env.random == env.reference
        ):
            raise ConfigError(
                f"{path}: envs.{label} has random={env.random} and reference={env.reference}; a "
                "scale needs both, and they must differ"
            )
        try:
            pick("agents", experiment.agents, list(env.agents))
        except ConfigError as error:
            raise ConfigError(f"{path}, envs.{label}.agents: {error}") from error
    try:
        pick("agents", experiment.agents, experiment.unswept)
    except ConfigError as error:
        raise ConfigError(f"{path}, unswept: {error}") from error
    overrides = list(experiment.overrides)
    overrides += [each for agent in experiment.agents.values() for each in agent]
    overrides += [each for env in experiment.envs.values() for each in env.overrides]
    for env in experiment.envs.values():
        overrides += [each for own in env.agents.values() for each in own]
    groups = ("agent", "env")  # those the lists of an experiment do choose
    try:
        read_seeds(experiment.seeds)
        for key in experiment.sweep:
            refuse_chosen(key)
        for text in overrides:
            refuse_chosen(text.partition("=")[0], allowed=groups)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return experiment


def as_stated(path: Path, content: Any, kind: type[T]) -> T:
    """The content of a file as a pydantic dataclass.

    Raises:
        ConfigError: a value is missing or of a wrong type; names the file and the key.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing":
            raise ConfigError(f"{path}: {where} has no value") from error
        wanted = detail["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{path}: {where} must be {wanted}, got {detail['input']!r}") from error


def known_keys(where: str, node: Mapping[Any, Any], kind: Any) -> None:
    """Refuse a key that the dataclass does not have.

    Raises:
        ConfigError: names the place, the key and the nearest.
    """
    allowed = list(kind.__dataclass_fields__)
    for key in node:
        if key not in allowed:
            hint = nearest(str(key), allowed)
            raise ConfigError(f"{where}: no key {key!r}{hint} Allowed: {', '.join(allowed)}")


def refuse_chosen(
    key: str,
    allowed: Sequence[str] = (),
    chosen: Mapping[str, str] = CHOSEN_BY_THE_GRID,
    by: str = "grid",
) -> None:
    """Refuse an override of train.py for what the grid itself sets.

    Raises:
        ConfigError: names the key and what to give instead.
    """
    name = key.strip("+~ ")
    if name in chosen and name not in allowed:
        raise ConfigError(f"{name}= is set by the {by}: {chosen[name]}")


def pick(group: str, options: Mapping[str, Any], chosen: Sequence[str] | None) -> list[str]:
    """The labels in `chosen`, in the experiment's order; all where it is None.

    Raises:
        ConfigError: an unknown label; names the nearest.
    """
    if chosen is None:
        return list(options)
    for label in chosen:
        if label not in options:
            raise ConfigError(
                f"the experiment has no {group[:-1]} labelled {label!r}"
                f"{nearest(label, options)} Allowed: {', '.join(options)}"
            )
    return [label for label in options if label in chosen]


def sweep_values(key: str, given: Any) -> list[tuple[str, Any]]:
    """The values of one swept setting: each as an override of train.py, and as plain data.

    Args:
        key: of train.py, such as `agent.estimator`.
        given: a list, or text in Hydra's grammar: `0.5,1,2`, `choice(a,b)`, `range(1,5)`.

    Raises:
        ConfigError: the text is not of that grammar, or there are no values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    if isinstance(given, list):
        texts = [in_hydra(value) for value in given]
    else:
        try:
            text = given if isinstance(given, str) else in_hydra(given)
            override = parser.parse_override(f"{key}={text}")
            if override.is_sweep_override():
                texts = [str(value) for value in override.sweep_iterator(Transformer.encode)]
            else:
                texts = [text]
        except (HydraException, ValueError) as error:
            raise ConfigError(
                f"sweep: cannot read {key}={given} ({first_line(error)}); give a list of values, "
                "or 0.5,1,2 or choice(a,b) or range(1,5)"
            ) from error
    if not texts:
        raise ConfigError(f"the grid is empty: sweep.{key} has no values")
    try:
        return [(f"{key}={text}", parser.parse_override(f"{key}={text}").value()) for text in texts]
    except HydraException as error:
        raise ConfigError(f"sweep: cannot read a value of {key}: {first_line(error)}") from error
