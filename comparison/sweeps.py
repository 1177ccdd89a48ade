"""Final scores against a setting that a comparison varies: how sensitive is each agent to it?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gumbelrl.comparison import statistics
from gumbelrl.comparison.canvas import Looks, short_number
from gumbelrl.comparison.records import Comparison, with_settings
from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sweep:
    """What a swept setting makes of the agents in one environment.

    Args:
        swept: final returns by agent (and what else is swept), and by the setting's value.
        level: those of agents that are not swept.
    """

    swept: Mapping[str, Mapping[float, list[float]]]
    level: Mapping[str, list[float]]

    @property
    def lines(self) -> tuple[str, ...]:
        """All agents."""
        return (*self.swept, *self.level)


def numbers(comparison: Comparison) -> list[str]:
    """The swept settings that take three values or more, all of them numbers."""
    found: dict[str, set[Any]] = defaultdict(set)
    for record in comparison.records:
        for key, value in record.swept.items():
            found[key].add(value if isinstance(value, int | float) else None)
    return [key for key, values in found.items() if len(values) > 2 and None not in values]


def read(comparison: Comparison, env: str, key: str) -> Sweep | None:
    """The finished runs of one environment by a swept setting; None where it has none."""
    swept: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    level: dict[str, list[float]] = defaultdict(list)
    for record in comparison.records:
        if record.env != env or record.score is None:
            continue
        rest = {each: value for each, value in record.swept.items() if each != key}
        line = with_settings(record.base, rest)
        if key in record.swept:
            swept[line][record.swept[key]].append(record.score)
        else:
            level[line].append(record.score)
    return Sweep(swept, level) if swept else None


def draw(axes: Axes, sweep: Sweep, looks: Looks) -> None:
    """Interquartile means with their bands; level lines for what is not swept."""
    values = sorted({value for at in sweep.swept.values() for value in at})
    if values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [short_number(value) for value in values])
    axes.minorticks_off()
    for line, at in sweep.swept.items():
        _draw_line(axes, dict(sorted(at.items())), {**looks[line], "marker": "o"})
    for line, scores in sweep.level.items():
        _draw_line(axes, dict.fromkeys((values[0], values[-1]), scores), looks[line])


def _draw_line(axes: Axes, at: Mapping[float, list[float]], look: Mapping[str, Any]) -> None:
    estimates = [statistics.aggregate([scores]) for scores in at.values()]
    axes.plot(list(at), [each.value for each in estimates], linewidth=1.8, markersize=4, **look)
    bands = [(e.low, e.high) for e in estimates if e.low is not None and e.high is not None]
    if len(bands) == len(at):
        low, high = zip(*bands, strict=True)
        axes.fill_between(list(at), low, high, color=look["color"], alpha=0.13, linewidth=0)
