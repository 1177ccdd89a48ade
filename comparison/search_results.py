"""What a search leaves: best.yaml, trials.csv, and what is printed at its end."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml
from gumbelrl.comparison.search_settings import Plan, run_overrides
from gumbelrl.comparison.search_space import as_text
from gumbelrl.comparison.trials import Trial
from gumbelrl.configs.compose import compose, given_values
from gumbelrl.tracking import write_atomically
from rich.console import Console
from rich.table import Table

BEST = "best.yaml"
TRIALS = "trials.csv"
_SHOWN = 5


def write_trials(plan: Plan, trials: Sequence[Trial]) -> None:
    """Write trials.csv: a row for every trial.

    Raises:
        OSError: the disk refused.
    """
    keys = [parameter.key for parameter in plan.space]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "value", *keys, "scores", "evaluations", "reason"])
    for trial in trials:
        settings = [as_text(trial.settings[key]) if key in trial.settings else "" for key in keys]
        value = "" if trial.value is None else repr(trial.value)
        scores = " ".join(map(repr, trial.scores))
        last = [scores, trial.last_rung, trial.reason or ""]
        table.writerow([trial.number, trial.state, value, *settings, *last])
    write_atomically(plan.out / TRIALS, text.getvalue())


def write_best(plan: Plan, best: Trial) -> None:
    """Write best.yaml: the best settings, as configs/tuned/ENV.yaml holds them.

    Raises:
        OSError: the disk refused.
    """
    from gumbelrl.configs.build import agent_name

    config = compose(run_overrides(plan.stated, best.settings, None))
    name, file = agent_name(str(config["agent"]["_target_"])), tuned_file(config)
    source = f"search.py experiment={plan.name}, {told(plan, best)}, {best} of {plan.stated.trials}"
    section = {"from": source, **{k: v for k, v in tuned_values(plan, config, best).items() if v}}
    text = yaml.safe_dump({name: section}, sort_keys=False, allow_unicode=True, width=1000)
    head = f"# To use it always, put it into configs/tuned/{file}\n"
    write_atomically(plan.out / BEST, head + text)


def tuned_file(config: Mapping[str, Any]) -> str:
    """Where settings for the environment of a configuration would stand."""
    return str(config["env"]["id"]).replace("/", "_").replace(":", "_") + ".yaml"


def tuned_values(plan: Plan, config: Mapping[str, Any], trial: Trial) -> dict[str, dict[str, Any]]:
    """All of a trial's settings that no default has, by group: what was tuned already, what the
    search gives every run, and what it found."""
    from gumbelrl.configs.tuned_settings import find_tuned

    tuned = find_tuned(config) if config["tuned"] else None
    values: dict[str, dict[str, Any]] = deepcopy(tuned.values) if tuned else {}
    values = {group: dict(values.get(group, {})) for group in ("agent", "env")}
    for key, value in {**given_values(plan.stated.overrides), **trial.settings}.items():
        group, *path = key.strip("+~ ").split(".")
        if group not in values or not path or key == "env.id":
            continue
        node = values[group]
        for name in path[:-1]:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[path[-1]] = value
    return values


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The finished ones from the best to the worst, then the others."""
    return sorted(trials, key=lambda trial: (trial.state != "finished", -trial.worth))


def told(plan: Plan, trial: Trial) -> str:
    """What a finished trial's value is, in words."""
    what = "return" if plan.stated.objective == "final" else "mean return while learning"
    seeds = f"mean of {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "1 seed"
    return f"{what} {trial.value:.4g}, {seeds}, {plan.stated.total_steps:,} steps"


def print_end(plan: Plan, trials: Sequence[Trial], best: Trial | None, train: str) -> None:
    """What failed, how many trials came to what, the best of them and how to use it.

    Args:
        plan: the search.
        trials: all.
        best: of them.
        train: how the user starts train.py.
    """
    for trial in trials:
        if trial.state == "failed":
            print(f"failed: {trial}: {trial.reason}")
            position = min(len(trial.scores), len(plan.seeds) - 1)
            log = plan.out / "logs" / f"{run_folder(trial.number, plan, position)}.log"
            if log.exists():
                print(f"        log: {log}")
    counts: Counter[str] = Counter(trial.state for trial in trials)
    order = ("finished", "pruned", "failed", "running")
    words = [f"{counts[state]} {state}" for state in order if counts[state]]
    said = (", ".join(words) or "none").replace("running", "stopped")
    print(f"{len(trials)} of {plan.stated.trials} trials: {said}")
    if best is not None:
        print(f"the best of {counts['finished']} finished trials:")
        # In a file or a pipe values stay on one line, to be copied.
        console = Console()
        Console(width=None if console.is_terminal else 160).print(_table(plan, trials))
        print(f"best: {best}, {told(plan, best)}")
        print(f"  {train} {shlex.join(run_overrides(plan.stated, best.settings, None))}")
        print(f"settings: {plan.out / BEST}")
    print(f"trials: {plan.out / TRIALS}\nfolder: {plan.out}")


def _table(plan: Plan, trials: Sequence[Trial]) -> Table:
    ended = [trial for trial in ranked(trials) if trial.state == "finished"]
    table = Table()
    table.add_column("trial", justify="right")
    table.add_column("value", justify="right")
    for parameter in plan.space:
        table.add_column(parameter.key.removeprefix("agent."), justify="right")
    for trial in ended[:_SHOWN]:
        table.add_row(
            str(trial.number),
            f"{trial.value:.4g}",
            *(brief_value(trial.settings[parameter.key]) for parameter in plan.space),
        )
    return table


def brief_value(value: Any) -> str:
    """As a person compares it: four digits of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def run_folder(number: int, plan: Plan, position: int) -> str:
    """The name of a trial's run with the seed at that position."""
    return f"trial{number:04d}-seed{plan.seeds[position]}"
