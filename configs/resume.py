"""Which run a command line goes on with, and with which configuration."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gumbelrl.configs.compose import GROUPS, ConfigError, check_config, check_trusted
from gumbelrl.tracking import RunFolder, RunFolderError, run_stem

AUTO = "auto"
RUNS = "runs"  # where runs without a run_dir are kept
# A resumed run is the same run; these are the only keys that may change.
RESUMABLE = (
    "total_steps",
    "stop_at_return",
    "checkpoint_keep",
    "device",
    "threads",
    "trust",
    "tracking",
)
# What says where a run is, not what it is.
_PLACE = ("resume", "run_dir")
_MISSING = "nothing"


class RunFinished(ConfigError):
    """A run that has come to its end; the message says how to extend it."""


def resumed_config(config: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The configuration of the run folder named by `resume`, with what may change changed.

    Args:
        config: what the command line composes to.
        given: the keys that it sets.

    Raises:
        ConfigError: not a run, a key that may not change, or code that is not trusted.
    """
    fixed = sorted(key for key in given if key.split(".")[0] not in ("resume", *RESUMABLE))
    if fixed:
        raise ConfigError(
            f"a resumed run keeps its configuration: {', '.join(fixed)} cannot change, "
            f"only {', '.join(RESUMABLE)} can. Start a new run for the rest"
        )
    try:
        folder = RunFolder.open(config["resume"])
        stored = folder.read_config()
    except RunFolderError as error:
        raise ConfigError(f"resume: {error}") from error
    check_trusted(stored, config["trust"])
    stored = _checked(folder, stored)
    for key in given:
        group, *rest = key.split(".")
        if rest:  # one setting of a group, on top of the stored ones
            stored[group] = {**stored[group], rest[0]: config[group].get(rest[0])}
        else:
            stored[group] = config[group]
    return check_config({**stored, "resume": str(folder.path), "run_dir": None})


def auto_config(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What `resume=auto` does, and a line that says so.

    With `run_dir` the run in that folder goes on, or begins there. Without, the newest unfinished
    run of this configuration in `runs/` goes on; where all are finished, the newest of them is
    taken, which says so; where there is none, a new one begins. The same command, started again
    and again, thus brings one run to its end and no further.

    Args:
        config: what the command line composes to, which is the whole configuration of the run.

    Raises:
        ConfigError: the run in `run_dir` has another configuration: names the keys, both values.
    """
    from gumbelrl.configs.build import agent_name, env_for_agent

    config = {**config, "env": env_for_agent(config["env"], config["agent"])}
    if config["run_dir"] is not None:
        folder = RunFolder(Path(config["run_dir"]).expanduser())
        if not folder.config_path.is_file():
            return _new(config), f"resume=auto: a new run begins in {folder.path}"
        try:
            stored = _as_asked(folder, config)
            different = differences(stored, config, besides=(*RESUMABLE, *_PLACE))
        except RunFolderError as error:
            raise ConfigError(f"resume=auto: {error}") from error
        if different:
            raise ConfigError(
                f"resume=auto: the run in {folder.path} has another configuration: "
                f"{', '.join(different)}. Only {', '.join(RESUMABLE)} may change; give the same "
                "again, or another run_dir for a new run"
            )
        return _same(folder, stored, config), f"resume=auto: going on with {folder.path}"
    name = agent_name(config["agent"]["_target_"])
    env = str(config["env"].get("id", config["env"]["_target_"]))
    found = list(_alike(run_stem(name, env, config["seed"]), config))
    unfinished = [(folder, stored) for folder, stored in found if not finished(folder, config)]
    for folder, stored in [*unfinished, *found]:
        return _same(folder, stored, config), f"resume=auto: going on with {folder.path}"
    line = f"resume=auto: a new run begins; {RUNS}/ holds none of this configuration"
    return _new(config), line


def _new(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "resume": None}


def _same(
    folder: RunFolder, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    # A run goes on where it once decided to run, unless the command line names another device.
    device = stored["device"] if config["device"] == "auto" else config["device"]
    return {**config, "device": device, "resume": str(folder.path), "run_dir": None}


def _alike(stem: str, config: Mapping[str, Any]) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Runs of this configuration, the newest first, with what their config.yaml says."""
    for path in sorted(Path(RUNS).glob(f"{stem}-*"), reverse=True):
        folder = RunFolder(path)
        try:
            stored = _as_asked(folder, config)
        except (RunFolderError, ConfigError):
            continue  # damaged, or of a gumbelrl that knew other settings
        if not differences(stored, config, besides=(*RESUMABLE, *_PLACE)):
            yield folder, stored


def _as_asked(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder's config.yaml says, as far as the command line names the same code.

    Checking a configuration imports what its groups name, and a run folder must not choose that.
    """
    stored = folder.read_config()
    for group in GROUPS:
        node = stored.get(group)
        if not isinstance(node, Mapping) or node.get("_target_") != config[group]["_target_"]:
            return stored
    return _checked(folder, {**stored, **{key: config[key] for key in ("trust", "tracking")}})


def _checked(folder: RunFolder, stored: dict[str, Any]) -> dict[str, Any]:
    try:
        return check_config(stored)
    except ConfigError as error:
        raise ConfigError(f"{folder.config_path}: {error}") from error


def finished(folder: RunFolder, config: Mapping[str, Any]) -> str | None:
    """What the run in a folder reached, where nothing is left to do for this configuration."""
    try:
        summary = folder.read_summary()
    except RunFolderError:
        return None
    env_steps = summary.get("env_steps")
    if summary.get("complete") is not True or not isinstance(env_steps, int):
        return None
    if env_steps >= config["total_steps"]:
        return f"it has made {env_steps} of {config['total_steps']} steps"
    threshold = config["stop_at_return"]
    if summary.get("reached") and summary.get("stop_at_return") == threshold:
        return f"it reached {threshold:g} at {env_steps} steps"
    return None


def refuse_finished(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Raise RunFinished where nothing is left to do."""
    reached = finished(folder, config)
    if reached is not None:
        another = "" if config["stop_at_return"] is None else ", and another stop_at_return="
        raise RunFinished(
            f"this run is finished: {reached}. To go on, add a larger total_steps={another} to "
            f"resume={folder.path}; to look at it, evaluate run={folder.path}"
        )


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], besides: Collection[str] = ()
) -> list[str]:
    """Where two configurations differ, such as "agent.gamma was 0.99, is 0.5".

    Args:
        was: one of them.
        now: the other.
        besides: keys on the top level that do not count.
    """
    flat_was, flat_now = (_flat(_plain(node, besides)) for node in (was, now))
    return [
        f"{key} was {flat_was.get(key, _MISSING)}, is {flat_now.get(key, _MISSING)}"
        for key in dict.fromkeys([*flat_now, *flat_was])
        if flat_was.get(key) != flat_now.get(key)
    ]


def _plain(config: Mapping[str, Any], besides: Collection[str]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in besides}
    return dict(json.loads(json.dumps(kept, default=str)))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
