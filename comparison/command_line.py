"""From compare.py's arguments to a grid and the folder it is kept in."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from gumbelrl.comparison.experiment import read_experiment, refuse_chosen
from gumbelrl.comparison.grid import MANIFEST, Grid, expand
from gumbelrl.comparison.launchers import check_launcher
from gumbelrl.configs.compose import (
    GROUPS,
    ConfigError,
    FolderPath,
    Positive,
    RunSettings,
    nearest,
    parse_settings,
)
from gumbelrl.tracking import RunFolder, RunFolderError, first_line
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CompareSettings:
    """The keys of compare.py; their meaning stands in its help."""

    experiment: str | None = None
    out: FolderPath | None = None
    launcher: str = "local"
    workers: Any = "auto"
    seeds: Any = None
    budget: Positive | None = None
    agents: list[str] | None = None
    envs: list[str] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    dry_run: bool = False
    runs: FolderPath | None = None
    overrides: list[str] = field(default_factory=list)  # of train.py
    sweep: dict[str, str] = field(default_factory=dict)


_OWN = [name for name in CompareSettings.__dataclass_fields__ if name not in ("overrides", "sweep")]


def read_arguments(arguments: Sequence[str]) -> CompareSettings:
    """The arguments, checked; what train.py takes goes into `overrides`, or `sweep`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, out of range.
    """
    own, overrides, sweep = [], [], {}
    for text in arguments:
        key, _, value = text.partition("=")
        name = key.strip("+~ ").split(".")[0]
        if key in _OWN:
            own.append(text)
        elif name in (*GROUPS, *RunSettings.__dataclass_fields__) and "=" in text:
            refuse_chosen(key)
            if _is_sweep(text):
                sweep[key] = value
            else:
                overrides.append(text)
        else:
            known = [*_OWN, *RunSettings.__dataclass_fields__, *GROUPS]
            raise ConfigError(
                f"no key {key!r}{nearest(key, known)} Allowed: {', '.join(_OWN)}, "
                "and overrides of train.py"
            )
    settings = parse_settings(own, CompareSettings)
    check_launcher(settings.launcher)
    check_workers(settings.workers)
    if settings.runs is not None and len(arguments) > 1:
        raise ConfigError("runs=FOLDER only reports; it takes no other key")
    if settings.runs is None and settings.experiment is None:
        raise ConfigError("give experiment=NAME to run a grid, or runs=FOLDER to report on one")
    return replace(settings, overrides=overrides, sweep=sweep)


def check_workers(workers: Any) -> None:
    """Refuse what is no number of runs at once.

    Raises:
        ConfigError: says what is.
    """
    if workers != "auto" and (type(workers) is not int or not 1 <= workers <= 4096):
        raise ConfigError(f"workers must be auto or a whole number from 1 to 4096, got {workers}")


def _is_sweep(text: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(text).is_sweep_override())
    except HydraException:
        return False  # train.py's own words say what is wrong


def plan(settings: CompareSettings, command: str) -> tuple[Grid, Path, float]:
    """The grid that is asked for, its folder, and the GPUs of a run.

    Raises:
        ConfigError: an unknown experiment or label, or nothing to run.
    """
    assert settings.experiment is not None
    name, experiment = read_experiment(settings.experiment)
    points = expand(
        experiment,
        seeds=settings.seeds,
        budget=settings.budget,
        agents=settings.agents,
        envs=settings.envs,
        overrides=settings.overrides,
        sweep=settings.sweep,
    )
    out = Path(settings.out or f"comparisons/{name}").expanduser()
    num_gpus = experiment.num_gpus if settings.num_gpus is None else settings.num_gpus
    grid = Grid(name, experiment.question.strip(), command, points)
    for env, spec in experiment.envs.items():
        if spec.random is not None and spec.reference is not None:
            grid.references[env] = {"random": spec.random, "reference": spec.reference}
    return grid, out, num_gpus


def make_out(out: Path, manifest: str = MANIFEST, of: str = "grid") -> None:
    """Make the grid's folder, or take the one that is empty or holds a grid.

    Args:
        out: the folder.
        manifest: the file that stands in every such folder.
        of: what it is the folder of.

    Raises:
        ConfigError: it cannot be made or written, or holds something else.
    """
    probe = out / f".probe-{secrets.token_hex(4)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / manifest).exists() and any(p.name[0] != "." for p in out.iterdir()):
            raise ConfigError(
                f"{out} holds files but no {manifest}, so it is not of a {of}; give out=FOLDER"
            )
        probe.write_bytes(b"probe")
    except OSError as error:
        why = error.strerror or first_line(error)
        raise ConfigError(
            f"cannot write in {out}: {why}; give out=FOLDER somewhere you can write"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path, program: str = "compare.py", runs: str = "grid") -> Iterator[None]:
    """While it lasts no other compare.py runs this grid.

    Raises:
        ConfigError: one does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(RunFolder(out).locked())
        except RunFolderError as error:
            raise ConfigError(
                f"another {program} runs the {runs} in {out}; wait for its end, or stop it"
            ) from error
        yield
