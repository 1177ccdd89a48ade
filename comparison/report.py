"""The report of a comparison: one HTML file that opens from disk; its tables as text and CSV."""

from __future__ import annotations

import csv
import io
import os
import platform
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gumbelrl.comparison import statistics
from gumbelrl.comparison.canvas import css_variables
from gumbelrl.comparison.figures import (
    Figure,
    common_seeds,
    draw_figures,
    normalised_scores,
    scores,
    survival,
)
from gumbelrl.comparison.records import (
    Comparison,
    RunRecord,
    differing_settings,
    read_runs,
)
from gumbelrl.comparison.statistics import Estimate, Survival
from gumbelrl.tracking import environment_versions, write_atomically

_MOST_PAIRS = 15  # of agents: all against all up to here, else against the first alone


@dataclass(frozen=True)
class Row:
    """What one agent did in one environment; a figure that it has no runs for is None.

    Args:
        agent: its label.
        env: the environment's.
        finished: runs that finished and were evaluated.
        asked: runs that were asked for.
        note: why there is nothing, or what the seeds cannot support; None where all is well.
        iqm: interquartile mean of the final returns.
        median: their median.
        mean: their mean.
        area: interquartile mean of the areas under the learning curves.
        normalised: interquartile mean on the scale random policy 0, reference 1.
        below_random: finished runs that end worse than the random policy.
        steps: env steps to the threshold.
        seconds: seconds of training to the threshold.
        train_seconds: median seconds of training of the finished runs.
    """

    agent: str
    env: str
    finished: int
    asked: int
    note: str | None
    iqm: Estimate | None = None
    median: Estimate | None = None
    mean: Estimate | None = None
    area: Estimate | None = None
    normalised: Estimate | None = None
    below_random: int | None = None
    steps: Survival | None = None
    seconds: Survival | None = None
    train_seconds: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two agents in one environment.

    Args:
        first: label.
        second: label.
        env: label of the environment.
        improvement: probability that a run of the first scores higher.
        test: paired by seed, or None where they share none.
        adjusted: its p after Holm's adjustment over the pairs of this environment.
    """

    first: str
    second: str
    env: str
    improvement: Estimate
    test: statistics.PairedTest | None
    adjusted: float | None


def write_report(out: str | Path) -> str:
    """Read the runs in OUT and write what they say.

    `OUT/report.html` (figures inside), `OUT/figures/*.svg` and `*.png`, `OUT/table.txt`,
    `OUT/scores.csv` (a line for each agent and environment), `OUT/pairs.csv`, `OUT/runs.csv`.

    Returns:
        The headline: what was found, in plain words with its numbers.

    Raises:
        ValueError: no such folder, or no run in it that can be read.
        OSError: OUT cannot be written.
    """
    comparison = read_runs(out)
    rows = [row(comparison, agent, env) for env in comparison.envs for agent in comparison.agents]
    pairs = [pair for env in comparison.envs for pair in pairs_of(comparison, env)]
    sentences = [headline_of(comparison, env, rows, pairs) for env in comparison.envs]
    headline = " ".join(sentences)
    table = text_table(comparison, rows)
    figures = draw_figures(comparison, comparison.out / "figures")
    page = _page(comparison, rows, pairs, sentences, figures)
    for name, content in (
        ("report.html", page),
        ("table.txt", f"{headline}\n\n{table}\n"),
        ("scores.csv", _csv(_score_lines(rows))),
        ("pairs.csv", _csv(_pair_lines(pairs))),
        ("runs.csv", _csv(_run_lines(comparison))),
    ):
        write_atomically(comparison.out / name, content)
    return headline


def row(comparison: Comparison, agent: str, env: str) -> Row:
    """All figures of one agent in one environment."""
    runs = comparison.of(agent, env)
    finished = [run for run in runs if run.score is not None]
    asked = sum(run.status != "n/a" for run in runs)
    steps, seconds = survival(runs, "steps"), survival(runs, "seconds")
    if not finished:
        return Row(agent, env, 0, asked, _absence(runs), steps=steps, seconds=seconds)
    final = [list(scores(comparison, agent, env).values())]
    budget = max(max(run.total_steps or 0, run.env_steps) for run in finished)
    areas = [statistics.area_under_curve(run.steps, run.returns, budget) for run in finished]
    normalised, below_random = None, None
    if env in comparison.references:
        scaled = [statistics.normalised(s, *comparison.references[env]) for s in final[0]]
        normalised = statistics.aggregate([scaled])
        below_random = sum(score < 0 for score in scaled)
    times = [run.train_seconds for run in finished if run.train_seconds is not None]
    return Row(
        agent,
        env,
        len(finished),
        asked,
        statistics.few_seeds(len(finished)),
        iqm=statistics.aggregate(final, "iqm"),
        median=statistics.aggregate(final, "median"),
        mean=statistics.aggregate(final, "mean"),
        area=statistics.aggregate([areas]),
        normalised=normalised,
        below_random=below_random,
        steps=steps,
        seconds=seconds,
        train_seconds=float(np.median(times)) if times else None,
    )


def pairs_of(comparison: Comparison, env: str) -> list[Pair]:
    """Agents two by two: all of them, or each against the first where they are many."""
    found = {agent: scores(comparison, agent, env) for agent in comparison.agents}
    agents = [agent for agent, values in found.items() if values]
    couples = [(a, b) for i, a in enumerate(agents) for b in agents[i + 1 :]]
    if len(couples) > _MOST_PAIRS:
        couples = [(agents[0], other) for other in agents[1:]]
    tests = [
        statistics.paired_test(found[a], found[b]) if found[a].keys() & found[b].keys() else None
        for a, b in couples
    ]
    known = [test.p for test in tests if test is not None and test.p is not None]
    adjusted = iter(statistics.holm(known))
    return [
        Pair(
            a,
            b,
            env,
            statistics.probability_of_improvement(
                [list(found[a].values())], [list(found[b].values())]
            ),
            test,
            next(adjusted) if test is not None and test.p is not None else None,
        )
        for (a, b), test in zip(couples, tests, strict=True)
    ]


def headline_of(
    comparison: Comparison, env: str, rows: Sequence[Row], pairs: Sequence[Pair]
) -> str:
    """What was found in one environment, in a sentence or two.

    The first agent is the one asked about. Its time to the threshold stands beside that of the
    quickest other one, its scores beside REINFORCE's where that took part.
    """
    here = [each for each in rows if each.env == env and each.iqm is not None]
    where = f"{env}: "
    if not here:
        return f"{where}no run has finished."
    first, others = here[0], here[1:]
    parts = []
    threshold = comparison.threshold(env)
    if threshold is not None and first.steps is not None:
        parts.append(f"{first.agent} {_arrival(first.steps, threshold)}{_ratio(first, others)}")
    else:
        parts.append(f"{first.agent} ends at an interquartile mean of {_measure(first.iqm)}")
    rival = next(
        (o for o in others if "reinforce" in o.agent.lower()), others[0] if others else None
    )
    if rival is not None and rival.agent != first.agent:
        beats = statistics.probability_of_improvement(
            [list(scores(comparison, first.agent, env).values())],
            [list(scores(comparison, rival.agent, env).values())],
        )
        parts.append(
            f"probability that a run of it scores higher than one of {rival.agent}: "
            f"{_probability(beats)}"
        )
    if first.finished < 2:
        parts.append("one seed says nothing of the next")
    return f"{where}{'; '.join(parts)}."


def text_table(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The scores as a table of 100 columns or so, for a terminal."""
    widest = max(12, *(len(_fit(each.agent)) for each in rows))
    lines = []
    for env in comparison.envs:
        threshold, scaled = comparison.threshold(env), env in comparison.references
        heads = [f"{'agent':{widest}s}", "runs", f"{'IQM':>9s} ", f"{'95 % interval':>19s} "]
        heads += ["below random "] if scaled else []
        heads += [] if threshold is None else [f"to {threshold:g}: runs, median steps"]
        lines += [env, f"  {' '.join(heads)}".rstrip()]
        for each in (each for each in rows if each.env == env):
            cells = [f"{_fit(each.agent):{widest}s}", f"{f'{each.finished}/{each.asked}':>4s}"]
            if each.iqm is None:
                cells.append(f" {(each.note or '').partition('. ')[0]}")  # the report has the whole
            else:
                cells.append(f"{_plain(each.iqm.value):>9s} ")
                cells.append(f"{_span(each.iqm) or each.note or '':>19s} ")
                cells += [f"{each.below_random:12d} "] if scaled else []
                if each.steps is not None:
                    cells.append(f"{each.steps.events}/{each.steps.n}, {_median(each.steps)}")
            lines.append(f"  {' '.join(cells)}".rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()


def _page(
    comparison: Comparison,
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    sentences: Sequence[str],
    figures: Sequence[Figure],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # every name comes from a configuration
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = defaultdict(list)
    for figure in figures:
        drawn[figure.env].append({"figure": figure, "svg": Markup(figure.svg)})
    overall = {
        agent: statistics.aggregate(strata)
        for agent in comparison.agents
        if len(comparison.envs) > 1 and (strata := normalised_scores(comparison, agent)) is not None
    }
    sections = [
        {
            "env": env,
            "threshold": comparison.threshold(env),
            "rows": [each for each in rows if each.env == env],
            "normalised": env in comparison.references,
            "pairs": [pair for pair in pairs if pair.env == env],
            "figures": drawn[env],
            "settings": _settings(comparison, env),
            "confirms": any(run.confirms for run in comparison.records if run.env == env),
        }
        for env in comparison.envs
    ]
    page = environment.get_template("report.html.jinja").render(
        comparison=comparison,
        title=comparison.question or f"Comparison {comparison.experiment}",
        sentences=sentences,
        sections=sections,
        overall=overall,
        overall_figures=drawn[None],
        notes=[*comparison.notes, *_notes(comparison, rows, figures)],
        not_applicable=_not_applicable(comparison),
        failures=[r for r in comparison.records if r.status == "failed"],
        unfinished=[
            r
            for r in comparison.records
            if r.status in ("pending", "running", "interrupted", "pruned")
        ],
        finished=sum(r.status == "finished" for r in comparison.records),
        commands=_commands(comparison),
        versions=_versions(comparison),
        machine=_machine(comparison),
        colors=Markup(css_variables()),
        plain=_plain,
        measure=_measure,
        span=_span,
        median=_median,
        median_span=_median_span,
        probability=_probability,
        p_value=_p_value,
        relative=lambda folder: os.path.relpath(folder, comparison.out),
        min_seeds=statistics.MIN_SEEDS,
        min_pairs=statistics.MIN_PAIRS,
    )
    return page + "\n"


def _notes(comparison: Comparison, rows: Sequence[Row], figures: Sequence[Figure]) -> Iterator[str]:
    """What the reader must know that the figures do not show."""
    for each in rows:
        if each.finished == 1:
            yield f"{each.env}, {each.agent}: one seed; nothing is known of its spread."
    few = sorted({each.finished for each in rows if 1 < each.finished < statistics.MIN_SEEDS})
    for count in few:
        yield f"{statistics.few_seeds(count)} (it takes {statistics.MIN_SEEDS})."
    for env in comparison.envs:
        if comparison.threshold(env) is None:
            yield f"{env}: no threshold was given, so there is no time to it."
        if not any(f.env == env and f.name.endswith("alignment") for f in figures):
            yield f"{env}: no finished run logged estimator/cosine or estimator/std."
        silent = [
            run
            for run in comparison.records
            if run.env == env and run.status == "finished" and run.score is None
        ]
        if silent:
            yield f"{env}: {len(silent)} finished runs hold no evaluation (eval/return_mean)."
        if any(
            len(run.seconds) and not np.isfinite(run.seconds).all()
            for run in comparison.records
            if run.env == env
        ):
            yield f"{env}: some runs logged no time/train_seconds; figures in seconds lack them."
    failed = sum(run.status == "failed" for run in comparison.records)
    if failed:
        yield (
            f"{_counted(failed, 'run')} failed. Final scores leave failures out, which flatters an "
            "agent that fails; the time to the threshold counts them up to where they ended."
        )
    if comparison.references and len(comparison.envs) > 1:
        for agent in comparison.agents:
            common = common_seeds(comparison, agent)
            counts = {len(scores(comparison, agent, env)) for env in comparison.envs}
            if common and counts != {len(common)}:
                yield (
                    f"Over all environments {agent} counts with {_counted(len(common), 'seed')}, "
                    "finished in each of them."
                )
    commits = {
        str(r.summary["git_commit"]) for r in comparison.records if r.summary.get("git_commit")
    }
    if len(commits) > 1:
        yield f"Runs come from {len(commits)} different commits."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _absence(runs: Sequence[RunRecord]) -> str:
    if not runs:
        return "not in this comparison"
    reasons = list(dict.fromkeys(run.reason for run in runs if run.reason))
    if all(run.status == "n/a" for run in runs):
        return f"n/a: {reasons[0] if reasons else 'no reason was given'}"
    statuses = list(dict.fromkeys(run.status for run in runs))
    if statuses == ["finished"]:
        return "its runs hold no evaluation (eval/return_mean)"
    return f"no finished run ({', '.join(statuses)})"


def _not_applicable(comparison: Comparison) -> list[tuple[str, str, str]]:
    found = [
        (run.agent, run.env, run.reason or "no reason was given")
        for run in comparison.records
        if run.status == "n/a"
    ]
    return list(dict.fromkeys(found))


def _settings(comparison: Comparison, env: str) -> dict[str, Any]:
    """Settings in which the agents differ: the agents of the table, and its rows."""
    chosen: dict[str, RunRecord] = {}
    for agent in comparison.agents:
        run = next((run for run in comparison.of(agent, env) if run.config), None)
        if run is not None:
            chosen[agent] = run
    table = differing_settings(chosen) if len(chosen) > 1 else {}
    return {
        "agents": list(chosen),
        "rows": [
            (key, [values.get(agent, "·") for agent in chosen]) for key, values in table.items()
        ],
    }


def _commands(comparison: Comparison) -> list[tuple[str, str, str]]:
    """One run's command for each agent and environment."""
    found = []
    for env in comparison.envs:
        for agent in comparison.agents:
            for run in comparison.of(agent, env):
                told = run.summary.get("command")
                if run.overrides:
                    told = shlex.join(["python", "train.py", *run.overrides])
                if told:
                    found.append((agent, env, str(told)))
                    break
    return found


def _versions(comparison: Comparison) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for run in comparison.records:
        told = run.summary.get("versions")
        for name, version in told.items() if isinstance(told, Mapping) else ():
            found[str(name)].add(str(version))
        if run.summary.get("git_commit"):
            commit, dirty, _ = str(run.summary["git_commit"]).partition("-dirty")
            found["commit"].add(commit[:12] + dirty)
    return [(name, ", ".join(sorted(versions))) for name, versions in found.items()]


def _machine(comparison: Comparison) -> str:
    devices = sorted(
        {str(r.summary["device"]) for r in comparison.records if r.summary.get("device")}
    )
    ran = f"Runs on {', '.join(devices)}. " if devices else ""
    here = environment_versions()
    return (
        f"{ran}Report made on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {here['python']}, numpy {here['numpy']}."
    )


def _arrival(curve: Survival, threshold: float) -> str:
    if curve.median is None:
        return f"reaches {threshold:g} in {curve.events} of {curve.n} runs, too few for a median"
    of_all = "" if curve.events == curve.n else f", {curve.events} of {curve.n} runs"
    return f"reaches {threshold:g} in a median of {curve.median:,.0f} steps{of_all}"


def _ratio(first: Row, others: Sequence[Row]) -> str:
    """How its median compares with the quickest other agent's."""
    timed = [o for o in others if o.steps is not None and o.steps.median is not None]
    if first.steps is None or first.steps.median is None or not timed:
        return ""
    rival = min(timed, key=lambda o: _time(o.steps))
    ratio = first.steps.median / max(_time(rival.steps), 1.0)
    said = f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"
    among = f", the quickest of the other {len(others)}" if len(others) > 1 else ""
    return f", {said} times {rival.agent}'s{among}"


def _time(curve: Survival | None) -> float:
    return curve.median if curve is not None and curve.median is not None else float("inf")


def _plain(value: float | None) -> str:
    """A number as short as its size allows."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _span(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{_plain(estimate.low)} to {_plain(estimate.high)}"


def _measure(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    span = _span(estimate)
    return f"{_plain(estimate.value)} ({span or statistics.few_seeds(estimate.n)})"


def _probability(estimate: Estimate) -> str:
    said = f"{estimate.value:.2f}"
    if estimate.low is None or estimate.high is None:
        return f"{said} ({statistics.few_seeds(estimate.n)})"
    return f"{said} ({estimate.low:.2f}–{estimate.high:.2f})"


def _median(curve: Survival | None) -> str:
    if curve is None:
        return "–"
    if curve.median is None:
        return "not half"
    return _plain(curve.median)


def _median_span(curve: Survival | None) -> str:
    if curve is None or curve.n < statistics.MIN_SEEDS or curve.median_low is None:
        return ""
    if curve.median_high is None:
        return f"from {_plain(curve.median_low)} on"
    return f"{_plain(curve.median_low)} to {_plain(curve.median_high)}"


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _fit(label: str, width: int = 40) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"


def _csv(lines: Iterator[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _score_lines(rows: Sequence[Row]) -> Iterator[Sequence[Any]]:
    measures = ("iqm", "median", "mean", "area", "normalised")
    names = [f"{name}{end}" for name in measures for end in ("", "_low", "_high")]
    times = [
        f"{axis}_{what}" for axis in ("steps", "seconds") for what in ("median", "low", "high")
    ]
    ends = ["train_seconds", "note"]
    yield ["env", "agent", "finished", "asked", *names, "below_random", "reached", *times, *ends]
    for each in rows:
        cells: list[Any] = [each.env, each.agent, each.finished, each.asked]
        for name in measures:
            estimate: Estimate | None = getattr(each, name)
            cells += [estimate.value, estimate.low, estimate.high] if estimate else [None] * 3
        cells += [each.below_random, each.steps.events if each.steps else None]
        for curve in (each.steps, each.seconds):
            cells += [curve.median, curve.median_low, curve.median_high] if curve else [None] * 3
        yield [*cells, each.train_seconds, each.note]


def _pair_lines(pairs: Sequence[Pair]) -> Iterator[Sequence[Any]]:
    yield [
        "env",
        "first",
        "second",
        "p_improvement",
        "low",
        "high",
        "pairs",
        "difference",
        "p",
        "holm",
    ]
    for pair in pairs:
        better, test = pair.improvement, pair.test
        yield [
            *(pair.env, pair.first, pair.second, better.value, better.low, better.high),
            *((test.n, test.difference, test.p) if test else (0, None, None)),
            pair.adjusted,
        ]


def _run_lines(comparison: Comparison) -> Iterator[Sequence[Any]]:
    yield [
        *("env", "agent", "seed", "status", "score", "env_steps", "train_seconds"),
        *("reached_steps", "reached_seconds", "run", "reason"),
    ]
    for run in comparison.records:
        steps, seconds = run.reached() or (None, None)
        yield [
            *(
                run.env,
                run.agent,
                run.seed,
                run.status,
                run.score,
                run.env_steps,
                run.train_seconds,
            ),
            *(steps, seconds, os.path.relpath(run.folder, comparison.out), run.reason),
        ]
