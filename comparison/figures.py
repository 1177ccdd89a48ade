"""The figures of a comparison, drawn from records; each is written, and inlined in the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gumbelrl.comparison import statistics, sweeps
from gumbelrl.comparison.canvas import (
    INK,
    SERIES,
    STYLE,
    WIDTH,
    Canvas,
    cut,
    file_name,
    look,
    name_rows,
    panel_column,
    panel_grid,
    place,
    save,
    short_number,
    wrapped,
)
from gumbelrl.comparison.records import Comparison, RunRecord
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

Array = npt.NDArray[np.float64]

_POINTS = 80  # of a learning curve
_MOST_INTERVALS = 6  # agents up to which a matrix has room for intervals


@dataclass(frozen=True)
class Figure:
    """A figure that has been drawn.

    Args:
        name: of its files, without ending.
        env: label of its environment, or None where it is of all.
        title: what it shows.
        caption: how to read it.
        svg: for a page that declares `css_variables()`; its ids are its own.
    """

    name: str
    env: str | None
    title: str
    caption: str
    svg: str


def draw_figures(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw what the records have data for, and write `NAME.svg` and `NAME.png`.

    Args:
        comparison: what was read.
        folder: made if it is not there.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with rc_context(STYLE):
        if len(comparison.envs) > 1:
            drawn += _overall(comparison, folder)
        for number, env in enumerate(comparison.envs):
            drawn += _of_env(comparison, env, number, folder)
    names = {figure.name for figure in drawn}
    for path in folder.glob("*-*.*"):
        ours = re.fullmatch(r"(all|\d\d)-.+\.(svg|png)", path.name)
        if ours and path.stem not in names:  # of an earlier report on fewer runs
            path.unlink()
    return drawn


def scores(comparison: Comparison, agent: str, env: str) -> dict[int, float]:
    """Final mean return by seed, of the finished runs."""
    found = ((run.seed, run.score) for run in comparison.of(agent, env))
    return {seed: score for seed, score in found if score is not None}


def normalised_scores(comparison: Comparison, agent: str) -> list[list[float]] | None:
    """Scores on the scale 0 (random) to 1 (reference), a list an environment.

    Of the seeds that have one in all. None where an environment has no references, or no seed is
    left: means over different environments do not compare.
    """
    seeds = common_seeds(comparison, agent)
    if not seeds or any(env not in comparison.references for env in comparison.envs):
        return None
    strata = []
    for env in comparison.envs:
        found = scores(comparison, agent, env)
        random, reference = comparison.references[env]
        strata.append([statistics.normalised(found[seed], random, reference) for seed in seeds])
    return strata


def common_seeds(comparison: Comparison, agent: str) -> list[int]:
    """Seeds of which the agent has a score in every environment: each then counts alike."""
    found = [scores(comparison, agent, env).keys() for env in comparison.envs]
    return sorted(set.intersection(*map(set, found)))


def _overall(comparison: Comparison, folder: Path) -> list[Figure]:
    pen = _Pen(comparison, None, folder, "all")
    pen.overview_figure()
    for key in sweeps.numbers(comparison):
        pen.sweep_figure(key)
    agents = comparison.agents
    strata = {a: s for a in agents if (s := normalised_scores(comparison, a)) is not None}
    if strata:
        estimates = {a: statistics.aggregate(s) for a, s in strata.items()}
        dots = {a: np.concatenate([np.asarray(x) for x in s]) for a, s in strata.items()}
        pen.score_figure(dots, estimates, "score (random policy 0, reference 1)")
        pen.profile_figure(strata, "score τ (random policy 0, reference 1)")
    by_env = {
        a: {e: list(scores(comparison, a, e).values()) for e in comparison.envs} for a in agents
    }
    pen.improvement_figure(by_env)
    return pen.figures


def _of_env(comparison: Comparison, env: str, number: int, folder: Path) -> list[Figure]:
    pen = _Pen(comparison, env, folder, f"{number + 1:02d}-{file_name(env)}")
    pen.curve_figure("steps")
    pen.curve_figure("seconds")
    found = {a: np.array(list(scores(comparison, a, env).values())) for a in comparison.agents}
    found = {agent: values for agent, values in found.items() if len(values)}
    if found:
        estimates = {agent: statistics.aggregate([values]) for agent, values in found.items()}
        pen.score_figure(found, estimates, "mean return of the last evaluation")
        if max(map(len, found.values())) > 1:
            pen.profile_figure({a: [v] for a, v in found.items()}, "return τ")
        pen.improvement_figure({a: {env: list(v)} for a, v in found.items()})
        for key in sweeps.numbers(comparison):
            pen.sweep_figure(key)
    pen.threshold_figure("steps")
    pen.threshold_figure("seconds")
    pen.diagnostic_figure(
        "alignment",
        ("estimator/cosine", "estimator/std"),
        ("cosine to the\ntrue gradient", "std of one draw /\ngradient's norm"),
        "Estimator alignment and gradient spread",
        "Cosine between the mean of the estimator and the critic's own gradient (1 is the right "
        "direction, 0 and below climbs nowhere), and the spread of a single draw, in units of that "
        "gradient.",
    )
    pen.diagnostic_figure(
        "entropy",
        ("train/entropy", "train/temperature"),
        ("entropy [nats]", "temperature"),
        "Entropy and temperature during training",
        "Entropy of the policy (per action, summed over factors), and the temperature of the "
        "relaxation where the agent has one.",
    )
    return pen.figures


class _Pen:
    """Draws the figures of one environment (or of all, env None) and keeps what it drew."""

    def __init__(self, comparison: Comparison, env: str | None, folder: Path, stem: str) -> None:
        self.comparison, self.env, self.folder, self.stem = comparison, env, folder, stem
        self.index = {agent: i for i, agent in enumerate(comparison.agents)}
        self.figures: list[Figure] = []

    def look(self, agent: str) -> dict[str, Any]:
        """The agent's colour and dash, the same in all figures."""
        return look(self.index[agent])

    def looks(self, agents: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Those of a figure's legend."""
        return {agent: self.look(agent) for agent in agents}

    def runs(self, agent: str, env: str | None = None) -> tuple[RunRecord, ...]:
        """Finished runs of the agent that were evaluated, in `env` or the figures' own."""
        env = self.env if env is None else env
        assert env is not None
        return tuple(r for r in self.comparison.of(agent, env) if r.score is not None)

    def curves(self, env: str, axis: str) -> dict[str, list[tuple[Array, Array]]]:
        """(`axis`, return) of every finished run that was evaluated, by agent where it has one."""
        found = {}
        for agent in self.comparison.agents:
            pairs = _timed([(getattr(run, axis), run.returns) for run in self.runs(agent, env)])
            if pairs:
                found[agent] = pairs
        return found

    def overview_figure(self) -> None:
        """Learning curves against env steps, a panel for each environment."""
        panels = {env: each for env in self.comparison.envs if (each := self.curves(env, "steps"))}
        if len(panels) < 2:
            return
        agents = [a for a in self.comparison.agents if any(a in each for each in panels.values())]
        fig, places = panel_grid(len(panels), self.looks(agents))
        for axes, (env, pairs) in zip(places, panels.items(), strict=True):
            self._draw_curves(axes, env, pairs)
            axes.set_title(cut(env, 30))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
            if env in self.comparison.references:
                low, high = self.comparison.references[env]
                top = axes.dataLim.ymax
                bottom = max(axes.dataLim.ymin, low - 0.5 * (high - low))
                axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
        self._keep(
            fig,
            "curves-steps",
            "Learning curves against environment steps",
            "Mean return, interquartile over seeds, with its pointwise 95 % bootstrap band"
            + ("" if all(map(_enough, panels.values())) else " where seeds are enough")
            + "; dotted: the threshold. Cut off far below the random policy.",
        )

    def curve_figure(self, axis: str) -> None:
        """Learning curves against env steps or seconds of training."""
        assert self.env is not None
        pairs = self.curves(self.env, axis)
        if not pairs:
            return
        fig, (axes,) = panel_column(1, self.looks(pairs))
        ends = [max(x[-1] for x, _ in each) for each in pairs.values()]
        log = axis == "seconds" and max(ends) > 20 * max(min(ends), 1e-9)
        self._draw_curves(axes, self.env, pairs, log=log)
        if log:
            axes.set_xscale("log")
        axes.set_ylabel("mean return")
        axes.set_xlabel("environment steps" if axis == "steps" else "seconds of training")
        if not log:
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        threshold = self.comparison.threshold(self.env)
        self._keep(
            fig,
            f"curves-{axis}",
            f"Learning curves against {'environment steps' if axis == 'steps' else 'seconds'}",
            "Interquartile mean over seeds with its pointwise 95 % bootstrap band"
            + ("" if _enough(pairs) else " (thin lines: single runs, where seeds are too few)")
            + "; a run that ended keeps its last return"
            + (f"; dotted: the threshold {threshold:g}" if threshold is not None else "")
            + (". Evaluation is left out of the time." if axis == "seconds" else "."),
        )

    def score_figure(
        self, dots: dict[str, Array], estimates: dict[str, statistics.Estimate], label: str
    ) -> None:
        """Every run a dot, the interquartile mean and its interval above them."""
        fig = Canvas(figsize=(WIDTH, 0.9 + 0.42 * len(dots)))
        axes = place(fig, 1, left=1.42, bottom=0.6, top=0.12)[0]
        for row, (agent, values) in enumerate(dots.items()):
            color, estimate = self.look(agent)["color"], estimates[agent]
            axes.plot(values, np.full(len(values), row), "|", color=color, alpha=0.75, ms=9)
            if estimate.low is not None and estimate.high is not None:
                axes.plot(
                    [estimate.low, estimate.high],
                    [row, row],
                    color=color,
                    linewidth=5,
                    alpha=0.4,
                    solid_capstyle="butt",
                )
            axes.plot(estimate.value, row, "o", color=color, ms=6)
        name_rows(axes, list(dots))
        axes.set_xlabel(label)
        intervals = any(estimate.low is not None for estimate in estimates.values())
        self._keep(
            fig,
            "scores",
            "Final scores" + ("" if self.env else " over all environments"),
            "Point: interquartile mean; "
            + ("bar: its 95 % stratified-bootstrap interval; " if intervals else "")
            + "ticks: single runs.",
        )

    def sweep_figure(self, key: str) -> None:
        """Final scores against a swept setting, a panel for each environment."""
        envs = self.comparison.envs if self.env is None else (self.env,)
        panels = {env: each for env in envs if (each := sweeps.read(self.comparison, env, key))}
        if not panels:
            return
        lines = list(dict.fromkeys(line for each in panels.values() for line in each.lines))
        looks = {line: look(number) for number, line in enumerate(lines)}
        if self.env is None:
            fig, places = panel_grid(len(panels), looks)
        else:
            fig, places = panel_column(1, looks)
        for axes, (env, each) in zip(places, panels.items(), strict=True):
            sweeps.draw(axes, each, looks)
            if self.env is None:
                axes.set_title(cut(env, 30))
        name = key.rpartition(".")[2]
        if self.env is not None:
            places[0].set(xlabel=name, ylabel="mean return of the last evaluation")
        self._keep(
            fig,
            f"sweep-{file_name(name)}",
            f"Final scores against {name}",
            f"Interquartile mean of the last evaluation over seeds, by {key}, with its 95 % "
            "bootstrap band where seeds are enough"
            + (
                "; level lines: agents that are not swept."
                if any(each.level for each in panels.values())
                else "."
            ),
        )

    def profile_figure(self, strata: dict[str, Any], label: str) -> None:
        """Share of runs above each score."""
        pooled = np.concatenate([np.concatenate([*map(np.asarray, s)]) for s in strata.values()])
        low, high = float(pooled.min()), float(pooled.max())
        margin = 0.03 * (high - low or abs(high) or 1.0)
        limits = np.linspace(low - margin, high + margin, 121)
        fig, (axes,) = panel_column(1, self.looks(strata))
        banded = False
        for agent, groups in strata.items():
            share, lower, upper = statistics.performance_profile(groups, limits)
            axes.step(limits, share, where="post", linewidth=1.8, **self.look(agent))
            if lower is not None and upper is not None:
                banded = True
                axes.fill_between(
                    limits,
                    lower,
                    upper,
                    step="post",
                    alpha=0.09,
                    linewidth=0,
                    color=self.look(agent)["color"],
                )
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(label)
        axes.set_ylabel("share of runs above τ")
        self._keep(
            fig,
            "profile",
            "Performance profile" + ("" if self.env else " over all environments"),
            "The higher, the better; a curve that lies above another everywhere belongs to the "
            "agent that is better at every level"
            + (" (bands: pointwise 95 % Wilson)." if banded else "."),
        )

    def improvement_figure(self, by_env: dict[str, dict[str, list[float]]]) -> None:
        """Matrix of P(row beats column), averaged over the environments that both ran."""
        agents = [agent for agent, envs in by_env.items() if any(envs.values())]
        if len(agents) < 2:
            return
        n, cell = len(agents), max(0.34, min(0.8, 2.9 / len(agents)))
        fig = Canvas(figsize=(WIDTH, 1.15 + min(cell, 0.6) * n))
        axes = place(fig, 1, left=1.42, bottom=1.0, top=0.1)[0]
        axes.grid(False)
        full = n <= _MOST_INTERVALS
        for row, first in enumerate(agents):
            for column, second in enumerate(agents):
                if first == second:
                    continue
                both = [e for e, x in by_env[first].items() if x and by_env[second].get(e)]
                if not both:
                    axes.text(column, row, "–", ha="center", va="center")
                    continue
                estimate = statistics.probability_of_improvement(
                    [by_env[first][e] for e in both], [by_env[second][e] for e in both]
                )
                ahead = estimate.value - 0.5
                shade = SERIES[0 if ahead > 0 else 1][0]
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5),
                        1,
                        1,
                        facecolor=shade,
                        alpha=min(0.7, 1.2 * abs(ahead)),
                        linewidth=0,
                    )
                )
                said = f"{estimate.value:.2f}"
                if full and estimate.low is not None:
                    said += f"\n{estimate.low:.2f}–{estimate.high:.2f}"
                axes.text(column, row, said, ha="center", va="center", fontsize=7 if full else 6.5)
        axes.set_xlim(-0.5, n - 0.5)
        name_rows(axes, agents)
        axes.set_ylim(n - 0.5, -0.5)
        slanted = n > 3
        axes.set_xticks(
            range(n),
            [wrapped(a, 16) if not slanted else cut(a, 17) for a in agents],
            rotation=35 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else None,
        )
        self._keep(
            fig,
            "improvement",
            "Probability of improvement" + ("" if self.env else " over all environments"),
            "Probability that a run of the row scores higher than a run of the column, ties "
            "counted half, with 95 % intervals where there is room and seeds enough; 0.5 is no "
            "difference.",
        )

    def threshold_figure(self, axis: str) -> None:
        """Share of runs that have reached the threshold, by Kaplan and Meier."""
        assert self.env is not None
        threshold = self.comparison.threshold(self.env)
        curves = {}
        for agent in self.comparison.agents if threshold is not None else ():
            curve = survival(self.comparison.of(agent, self.env), axis)
            if curve is not None:
                curves[agent] = curve
        if not curves or not any(curve.events for curve in curves.values()):
            return
        fig, (axes,) = panel_column(1, self.looks(curves))
        ends = [curve.times[-1] for curve in curves.values()]
        log = axis == "seconds" and max(ends) > 20 * max(min(ends), 1e-9)
        for agent, curve in curves.items():
            start = curve.times[0] if log else 0.0
            x = np.concatenate([[start], curve.times])
            look = self.look(agent)
            axes.step(
                x, np.concatenate([[0], 1 - curve.waiting]), where="post", linewidth=1.8, **look
            )
            if curve.low is not None and curve.high is not None:
                lower, upper = 1 - curve.high, 1 - curve.low
                known = np.isfinite(lower) & np.isfinite(upper)
                axes.fill_between(
                    curve.times[known],
                    lower[known],
                    upper[known],
                    step="post",
                    alpha=0.13,
                    linewidth=0,
                    color=look["color"],
                )
            if curve.events < curve.n:
                axes.plot(x[-1], 1 - curve.waiting[-1], ">", color=look["color"], ms=6)
        if log:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.axhline(0.5, color=INK[0], linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_ylim(-0.02, 1.04)
        axes.set_ylabel(f"share of runs at {threshold:g}")
        axes.set_xlabel("environment steps" if axis == "steps" else "seconds of training")
        censored = any(curve.events < curve.n for curve in curves.values())
        banded = any(curve.low is not None for curve in curves.values())
        self._keep(
            fig,
            f"threshold-{axis}",
            f"{'Steps' if axis == 'steps' else 'Seconds'} to a return of {threshold:g}",
            "Kaplan–Meier estimate"
            + (" with pointwise 95 % log-log bands" if banded else "")
            + "; dotted: half of the runs"
            + ("; ▸ runs that never got there count as still waiting." if censored else "."),
        )

    def diagnostic_figure(
        self, name: str, metrics: Sequence[str], labels: Sequence[str], title: str, caption: str
    ) -> None:
        """Metrics that the agent logged during training, one above the other."""
        panels = []
        for metric, label in zip(metrics, labels, strict=True):
            pairs = {
                agent: [r.diagnostics[metric] for r in self.runs(agent) if metric in r.diagnostics]
                for agent in self.comparison.agents
            }
            pairs = {agent: each for agent, each in pairs.items() if each}
            if pairs:
                panels.append((label, pairs))
        if not panels:
            return
        names = [a for a in self.comparison.agents if any(a in pairs for _, pairs in panels)]
        fig, places = panel_column(len(panels), self.looks(names))
        for axes, (label, pairs) in zip(places, panels, strict=True):
            for agent, each in pairs.items():
                self._band(axes, agent, each, log=False)
            axes.set_ylabel(label)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        places[-1].set_xlabel("environment steps")
        self._keep(fig, name, title, caption)

    def _draw_curves(
        self,
        axes: Axes,
        env: str,
        pairs: dict[str, list[tuple[Array, Array]]],
        log: bool = False,
    ) -> None:
        """Every agent's band, and the threshold."""
        for agent, each in pairs.items():
            self._band(axes, agent, each, log=log)
        threshold = self.comparison.threshold(env)
        if threshold is not None:
            axes.axhline(threshold, color=INK[0], linewidth=0.8, linestyle=(0, (2, 3)))

    def _band(self, axes: Axes, agent: str, pairs: list[tuple[Array, Array]], log: bool) -> None:
        look = self.look(agent)
        start, end = max(x[0] for x, _ in pairs), max(x[-1] for x, _ in pairs)
        if log:
            grid = np.geomspace(max(start, 1e-3), max(end, 1e-3), _POINTS)
        else:
            grid = np.linspace(start, end, _POINTS)
        values = np.stack([np.interp(grid, x, y) for x, y in pairs])  # (S, G)
        if len(pairs) >= statistics.MIN_SEEDS:
            low, high = statistics.column_intervals(values)
            shade = min(0.16, 0.8 / len(self.comparison.agents))  # or many bands hide all lines
            axes.fill_between(grid, low, high, color=look["color"], alpha=shade, linewidth=0)
        elif len(pairs) > 1:
            for x, y in pairs:
                axes.plot(x, y, linewidth=0.7, alpha=0.45, **look)
        dot = "o" if start == end else None  # a single point draws no line
        axes.plot(grid, statistics.column_values(values), linewidth=1.8, marker=dot, **look)

    def _keep(self, fig: Canvas, kind: str, title: str, caption: str) -> None:
        name = f"{self.stem}-{kind}"
        inline = save(fig, self.folder / name, title)
        self.figures.append(Figure(name, self.env, title, caption, inline))


def survival(runs: Sequence[RunRecord], axis: str) -> statistics.Survival | None:
    """Time to the threshold of runs that have one; None where there is none, or no time is known.

    Runs that failed or were interrupted are censored where they ended.

    Args:
        runs: of one agent in one environment.
        axis: `steps` (env steps) or `seconds` (of training).
    """
    times, reached = [], []
    for run in runs:
        if run.threshold is None or run.status in ("n/a", "pending", "running"):
            continue
        hit = run.reached()
        if hit is not None:
            when: float | None = hit[0 if axis == "steps" else 1]
        else:
            when = run.env_steps if axis == "steps" else run.train_seconds
        if when is None or not np.isfinite(when) or (hit is None and when <= 0):
            continue
        times.append(when)
        reached.append(hit is not None)
    return statistics.time_to_threshold(times, reached) if times else None


def _timed(pairs: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """The runs that have points of known time, with these points."""
    known = [(x[np.isfinite(x)], y[np.isfinite(x)]) for x, y in pairs]
    return [(x, y) for x, y in known if len(x)]


def _enough(pairs: dict[str, list[Any]]) -> bool:
    return min(map(len, pairs.values())) >= statistics.MIN_SEEDS
