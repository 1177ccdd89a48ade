"""From a command line to a checked configuration, by Hydra's compose API.

The Python signature is the schema: a config group carries `_target_` and keyword arguments, and
its keys and types are checked against the target's signature, so nothing is declared twice. Every
mistake ends in one `ConfigError`, a message that names the key and the nearest valid one.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gumbelrl.tracking import first_line
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

CONFIG_DIR = Path(__file__).parent
GROUPS = ("agent", "env", "tracking")
# What the caller of a target supplies itself.
RESERVED = {"agent": {"env", "seed", "device", "_init_setup_model"}, "env": {"seed"}}

T = TypeVar("T")
Positive = Annotated[int, Field(ge=1, le=2**53)]  # what JSON readers keep exact
FolderPath = Annotated[str, Field(min_length=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what is allowed."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RunSettings:
    """The keys of config.yaml outside the groups; their meaning stands there."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    total_steps: Positive
    device: str
    threads: Annotated[int, Field(ge=1, le=1024)]
    eval_every: Positive
    eval_episodes: Positive
    stop_at_return: Annotated[float, Field(allow_inf_nan=False)] | None
    log_every: Positive
    checkpoint_every: Positive
    run_dir: FolderPath | None
    resume: FolderPath | None
    trust: list[str]
    tuned: bool = False  # of a run folder from before there was the key
    checkpoint_keep: Positive = 2  # likewise


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluateSettings:
    """The keys of evaluate.py; their meaning stands in its help."""

    run: str
    checkpoint: str = "last"
    episodes: Positive = 100
    deterministic: bool = True
    seed: Annotated[int, Field(ge=0)] | None = None
    device: str = "cpu"
    video: bool = False
    trust: list[str] = Field(default_factory=list)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ProfileSettings:
    """The keys of profile_training.py beside train.py's; their meaning stands in its help."""

    steps: Positive = 2000
    warm_up: Annotated[int, Field(ge=0)] | None = None


def parse_settings(arguments: Sequence[str], settings: Callable[..., T]) -> T:
    """key=value arguments, in Hydra's grammar, as a pydantic dataclass.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, out of range.
    """
    allowed = list(settings.__dataclass_fields__)  # type: ignore[attr-defined]
    given: dict[str, Any] = {}
    for text in arguments:
        override = _parse_override(text)
        given[override.key_or_group] = override.value()
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"no key {key!r}{nearest(key, allowed)} Allowed: {', '.join(allowed)}"
            )
    return _settings(settings, given)


def _settings(settings: Callable[..., T], given: Mapping[str, Any]) -> T:
    try:
        taken = settings(**given)
    except ValidationError as error:
        raise ConfigError(_first_message("", error)) from error
    for key, value in given.items():
        _refuse_truth_value(key, value, getattr(taken, key))
    return taken


def given_values(arguments: Sequence[str]) -> dict[str, Any]:
    """The keys that the command line sets, such as `tracking.mode`, and their values."""
    overrides = [_parse_override(text) for text in arguments]
    return {override.key_or_group: override.value() for override in overrides}


def group_options(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """Compose config.yaml with command-line overrides in Hydra's grammar, resolved and checked.

    Defaults < settings tuned for this agent on this environment < the command line. A key that no
    YAML file mentions is allowed when the target's signature has it. `env=` also takes the id of
    any environment.

    Raises:
        ConfigError: unknown group option or key (names the nearest), wrong type, out of range.
    """
    from gumbelrl.configs.tuned_settings import find_tuned

    overrides, later = _open_overrides(arguments)
    config = _compose(overrides, later)
    tuned = find_tuned(config) if config.get("tuned") is True else None
    if tuned is not None:
        tuned.check(config)
        config = _compose([*tuned.overrides(), *overrides], later)
    return check_config(config)


def _compose(overrides: list[str], later: Mapping[str, Any]) -> dict[str, Any]:
    """What Hydra makes of config.yaml and the overrides, unchecked; `later` is set at the end."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            node = hydra.compose("config", overrides)
        for key, value in later.items():
            OmegaConf.update(node, key, value)
        config = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(f"{key} has no value; give one: {key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    return typing.cast(dict[str, Any], config)


def _open_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides that Hydra's struct mode lets through, and values to set when it is done: the id
    that `env=` gives, which may hold what Hydra's grammar does not, and `tuned`, which Hydra takes
    for the folder of that name.

    Signatures decide about keys later.
    """
    opened: list[str] = []
    later: dict[str, Any] = {}
    for text in arguments:
        override = _parse_override(text)
        key, value = override.key_or_group, override.value()
        if key in GROUPS and isinstance(value, Mapping):
            raise ConfigError(f"{key}= takes a name; one of {', '.join(group_options(key))}")
        if key.split(".")[0] == "hydra":
            raise ConfigError(
                f"no key {key!r}: Hydra only composes here; the run folder is run_dir="
            )
        if key == "env" and str(value) not in group_options("env") and _looks_like_id(str(value)):
            later["env.id"] = str(value)
            opened.append("env=gym")
        elif key == "tuned":
            later["tuned"] = value
        elif key in GROUPS:
            opened.append(_group_override(key, str(value)))
        elif override.is_add() or override.is_force_add() or override.is_delete():
            opened.append(text)
        else:
            opened += replace_override(key, value, text.partition("=")[2])
    return opened, later


def replace_override(key: str, value: Any, text: str) -> list[str]:
    """`++key=text`, in place of what stands there.

    Hydra merges mappings, so that a schedule would keep the keys of one of another kind.
    """
    whole = isinstance(value, Mapping) and "schedule" in value
    return [f"++{key}=null"] * whole + [f"++{key}={text}"]


def _looks_like_id(name: str) -> bool:
    return ":" in name or "/" in name or "-v" in name


def _parse_override(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"cannot read {text!r}: arguments are key=value, such as seed=3 or agent.gamma=0.98; "
            "a value with quotes, spaces or letters beyond ASCII needs quotes of its own: "
            """'key="value"'"""
        ) from error
    if override.is_sweep_override():
        raise ConfigError(f"{text!r} is a sweep of values; give one")
    return override


def _group_override(group: str, name: str) -> str:
    options = group_options(group)
    if name in options:
        return f"{group}={name}"
    hint = nearest(name, options)
    more = ", or the id of any environment, such as CartPole-v1" if group == "env" else ""
    raise ConfigError(f"no {group} named {name!r}{hint} Allowed: {', '.join(options)}{more}")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or `.` where nothing is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check every key and type of a plain configuration; returns it with converted values.

    Raises:
        ConfigError: the first mistake.
    """
    top = {key: value for key, value in config.items() if key not in GROUPS}
    allowed = list(RunSettings.__dataclass_fields__)
    for key in top:
        if key not in allowed:
            names = [*allowed, *GROUPS]
            raise ConfigError(f"no key {key!r}{nearest(key, names)} Allowed: {', '.join(names)}")
    settings = _settings(RunSettings, top)
    checked = {group: check_group(group, config.get(group)) for group in GROUPS}
    return {**checked, **{name: getattr(settings, name) for name in allowed}}


def check_group(group: str, node: Any) -> dict[str, Any]:
    """Check the keys and types of one group against its target's signature; fills in defaults.

    Raises:
        ConfigError: the first mistake.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{group} needs a _target_: the import path of what it configures")
    target = resolve_target(group, str(node["_target_"]))
    checked: dict[str, Any] = {"_target_": node["_target_"]}
    parameters = accepted_parameters(target)
    reserved = RESERVED.get(group, set())
    names = [name for name in parameters if name not in reserved]
    for key, value in node.items():
        if key.startswith("_") and key.endswith("_"):
            checked[key] = value
        elif key in reserved and key in parameters:
            top = "on the top level" if key in RunSettings.__dataclass_fields__ else "by train.py"
            raise ConfigError(f"{group}.{key} is set {top}, not in the group")
        elif key not in parameters:
            hint = nearest(key, names)
            raise ConfigError(f"no key {group}.{key}{hint} Allowed: {', '.join(names)}")
        else:
            checked[key] = _check_type(f"{group}.{key}", value, parameters[key].annotation)
    for name in names:  # defaults too, so that a run folder outlives a change of defaults
        default = parameters[name].default
        if name not in checked and _is_plain(default):
            checked[name] = list(default) if isinstance(default, tuple) else default
    if group == "agent":
        _check_policy_kwargs(target, checked)
    return checked


def _is_plain(value: Any) -> bool:
    """Whether YAML holds the value as it is."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _check_policy_kwargs(agent: Any, node: dict[str, Any]) -> None:
    aliases = getattr(agent, "policy_aliases", {})
    policy = node.get("policy", "MlpPolicy")
    if isinstance(policy, str) and policy not in aliases:
        hint = nearest(policy, aliases)
        raise ConfigError(f"no agent.policy {policy!r}{hint} Allowed: {', '.join(aliases)}")
    own = {"observation_space", "action_space", "lr_schedule", "use_sde", "n_members"}
    # Names that stand for classes, which YAML cannot hold.
    named = getattr(agent, "POLICY_KWARGS_TYPES", {})
    parameters = accepted_parameters(aliases[policy])
    names = [name for name in parameters if name not in own]
    for key, value in (node.get("policy_kwargs") or {}).items():
        where = f"agent.policy_kwargs.{key}"
        if key not in names:
            raise ConfigError(f"no key {where}{nearest(key, names)} Allowed: {', '.join(names)}")
        _check_type(where, value, named.get(key, parameters[key].annotation))


def resolve_target(group: str, path: str) -> Any:
    """Import what a `_target_` names; ConfigError when it is not there."""
    try:
        target = pkgutil.resolve_name(path)
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = first_line(error)
        raise ConfigError(f"{group}._target_={path} cannot be imported: {reason}") from error
    if group == "agent":
        _check_agent_class(path, target)
    return target


def _check_agent_class(path: str, target: Any) -> None:
    from gumbelrl.agents import AGENTS
    from gumbelrl.agents.storage import PickleFreeAlgorithm

    if not (inspect.isclass(target) and issubclass(target, PickleFreeAlgorithm)):
        raise ConfigError(
            f"agent._target_={path}: train.py runs gumbelrl's agents ({', '.join(AGENTS)}) and "
            "classes derived from gumbelrl.agents.storage.PickleFreeAlgorithm, whose checkpoints "
            "hold no pickle; train others with the library they come from"
        )


def accepted_parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Keyword parameters, their hints resolved; `**kwargs` of a class goes on to its bases."""
    functions: list[Callable[..., Any]]
    if inspect.isclass(target):
        functions = [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)]
    else:
        functions = [target]
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                resolved = parameter.replace(annotation=_type_hint(parameter, function))
                found.setdefault(parameter.name, resolved)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    found.pop("self", None)
    return found


def _type_hint(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """The parameter's type; Any where it has none, or one that exists for type checkers only.

    One by one, because `typing.get_type_hints` gives up on all when one cannot be resolved.
    """
    carrier = type("", (), {"__annotations__": {"hint": parameter.annotation}})
    if parameter.annotation is parameter.empty:
        return Any
    try:
        scope = getattr(function, "__globals__", {})
        return typing.get_type_hints(carrier, scope, include_extras=True)["hint"]
    except Exception:
        return Any


def _check_type(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return value  # an object that is built later; its own constructor checks it
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        adapter = TypeAdapter(hint)  # a dataclass or a model has its own configuration
    except Exception:  # a hint that pydantic does not know: the constructor decides
        return value
    try:
        taken = adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(_first_message(key, error)) from error
    _refuse_truth_value(key, value, taken)
    return taken


def _refuse_truth_value(key: str, given: Any, taken: Any) -> None:
    """Pydantic takes true for 1 where a number is due; a user who writes true means no number."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        raise ConfigError(f"{key} must be a number, got {str(given).lower()}")


def _first_message(key: str, error: ValidationError) -> str:
    """One line from pydantic's report: the key, what was given, what is allowed."""
    details = error.errors()
    where = key or ".".join(str(part) for part in details[0]["loc"])
    if details[0]["type"] == "missing":
        return f"{where} has no value; give one: {where}=..."
    if details[0]["type"] == "string_too_short":
        return f"{where} is empty; give a value: {where}=..."
    wanted = {detail["msg"].removeprefix("Input should be ") for detail in details}
    given = details[0]["input"]
    if key and len(details) > 1:  # a union: every member says what it would take
        return f"{where} must be {' or '.join(sorted(wanted))}, got {given!r}"
    return f"{where} must be {wanted.pop()}, got {given!r}"


def check_trusted(config: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Refuse a run folder's configuration that would import code not named as trusted.

    What a run folder holds is data: `_target_`, wrapper paths and `module:Env` ids may name
    gumbelrl's own parts, its wrappers and Gymnasium's; anything else must be in `trust`. What Hydra
    would look up or rearrange first, `${...}` and `_args_`, could say such a name unseen, and no
    run writes it.

    Raises:
        ConfigError: names the first foreign import and the override that would allow it.
    """
    from gumbelrl.agents import AGENTS

    own = {
        *(f"gumbelrl.agents.{agent.__name__}" for agent in AGENTS.values()),
        "gumbelrl.envs.make_vec_env",
        "gumbelrl.tracking.TrackingSettings",
        "gumbelrl.tracking.WandbSettings",  # in run folders from before there were other trackers
    }

    def walk(node: Any, key: str) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                below = f"{key}.{name}" if key else str(name)
                if re.fullmatch(r"_.*_", str(name)) and name != "_target_":
                    raise ConfigError(f"the run folder's {below} is for Hydra, not data: remove it")
                walk(value, below)
        elif isinstance(node, list | tuple):
            for index, value in enumerate(node):
                walk(value, f"{key}[{index}]")
        elif isinstance(node, str):
            path = node
            if "${" in path:
                raise ConfigError(f"the run folder's {key}={path} is no data: write what it means")
            if key.endswith("_target_"):
                allowed = path in own
            elif re.fullmatch(r"env\.wrappers(\[\d+\])?(\.wrapper)?", key):
                # Classes only: a function in a module of ours might import what it is given.
                wrapper = r"(gymnasium\.wrappers|gumbelrl\.envs)\.(\w+\.)*[A-Z]\w*"
                allowed = "." not in path or re.fullmatch(wrapper, path) is not None
            elif key == "env.id" and ":" in path:
                allowed = False
            else:
                return
            module = path.partition(":")[0]
            if not allowed and not any(
                module == name or module.startswith(f"{name}.") for name in trust
            ):
                raise ConfigError(
                    f"the run folder's {key}={path} would import code; if you trust it, "
                    f"add trust=[{module.rpartition('.')[0] or module}]"
                )

    walk(config, "")
