"""What the figures of a comparison are drawn on: colours, canvases with legends, SVG and PNG files.

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart; from the ninth series on
the lines are dashed. An SVG names its colours as CSS variables, so it follows the reader's light or
dark scheme, alone as well as inside the report. PNGs are light.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from gumbelrl.tracking import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

Looks = Mapping[str, Mapping[str, Any]]
"""Series by label, to their colour and dash."""

# Light and dark shade of each series; Okabe and Ito's order changed so that neighbours contrast.
SERIES = (
    ("#0072b2", "#58b0ea"),
    ("#d55e00", "#ff8c42"),
    ("#009e73", "#2fc99b"),
    ("#cc79a7", "#eb9fca"),
    ("#e69f00", "#f7c14a"),
    ("#56b4e9", "#a5dcff"),
    ("#6f5e53", "#c2ada0"),
    ("#8c8c00", "#d8d84a"),
)
INK, _LINE, _PAPER = ("#1f2430", "#e6e9ef"), ("#d5d9e0", "#39404d"), ("#ffffff", "#171a21")
_DASHES = ("-", "--", ":", "-.")
WIDTH, _HEIGHT = 4.5, 2.75  # inches

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and selected
    "svg.hashsalt": "gumbelrl",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK[0],
    "axes.labelcolor": INK[0],
    "text.color": INK[0],
    "xtick.color": INK[0],
    "ytick.color": INK[0],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE[0],
    "grid.linewidth": 0.7,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def css_variables() -> str:
    """Declarations of the colours: light ones, and dark ones where the reader asks for dark."""
    names = ["--ink", "--line", "--paper", *(f"--s{i}" for i in range(len(SERIES)))]
    pairs = dict(zip(names, (INK, _LINE, _PAPER, *SERIES), strict=True))
    light, dark = ("".join(f"{k}:{v[shade]};" for k, v in pairs.items()) for shade in (0, 1))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{@media screen{{:root{{{dark}}}}}}}"


def look(number: int) -> dict[str, Any]:
    """Colour and dash of a series, counted from 0."""
    return {
        "color": SERIES[number % len(SERIES)][0],
        "linestyle": _DASHES[number // len(SERIES) % len(_DASHES)],
    }


def save(fig: Canvas, file: Path, title: str) -> str:
    """Write `FILE.png` and `FILE.svg`; the svg element for a page that declares `css_variables()`.

    Raises:
        OSError: the folder cannot be written.
    """
    png, svg = io.BytesIO(), io.StringIO()
    FigureCanvasAgg(fig)
    fig.savefig(png, format="png", dpi=150, facecolor="white")
    fig.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    inline = _inlined(svg.getvalue(), file.name, title)
    write_atomically(file.with_name(f"{file.name}.png"), png.getvalue())
    style = f"<style>{css_variables()}svg{{background:var(--paper)}}</style>"
    alone = inline.replace(">", f' xmlns="http://www.w3.org/2000/svg">{style}', 1)
    write_atomically(file.with_name(f"{file.name}.svg"), alone)
    return inline


def panel_grid(panels: int, looks: Looks) -> tuple[Canvas, list[Axes]]:
    """Panels in two columns, each with axes of its own, and room for a legend below."""
    rows = -(-panels // 2)
    legend = _legend_height(len(looks))
    fig = Canvas(figsize=(WIDTH, 1.55 * rows + 0.2 + legend))
    _legend(fig, looks)
    width, height = fig.get_size_inches()
    axes = fig.subplots(rows, 2, squeeze=False)
    fig.subplots_adjust(
        0.52 / width,
        (0.3 + legend) / height,
        1 - 0.08 / width,
        1 - 0.24 / height,
        wspace=0.3,
        hspace=0.5,
    )
    for empty in axes.flat[panels:]:
        empty.remove()
    return fig, list(axes.flat[:panels])


def _legend_height(series: int) -> float:
    """Inches."""
    return 0.19 * -(-series // 2) + 0.08


def _legend(fig: Canvas, looks: Looks) -> None:
    fig.legend(
        [Line2D([], [], linewidth=2.2, **each) for each in looks.values()],
        [cut(label, 44 if len(looks) == 1 else 28) for label in looks],
        loc="lower center",
        ncols=min(2, len(looks)),
        handlelength=1.6,
        columnspacing=1.2,
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=0.2,
    )


def panel_column(panels: int, looks: Looks) -> tuple[Canvas, list[Axes]]:
    """Panels one above the other, and room for a legend below."""
    legend = _legend_height(len(looks))
    height = (_HEIGHT if panels == 1 else 1.4 * panels + 0.5) + legend
    fig = Canvas(figsize=(WIDTH, height))
    _legend(fig, looks)
    return fig, place(fig, panels, left=0.78, bottom=0.5 + legend, top=0.12)


def place(fig: Canvas, panels: int, *, left: float, bottom: float, top: float) -> list[Axes]:
    """Axes with margins in inches; automatic layouts would draw every figure twice."""
    width, height = fig.get_size_inches()
    axes = fig.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    fig.subplots_adjust(
        left / width, bottom / height, 1 - 0.14 / width, 1 - top / height, hspace=0.16
    )
    return list(axes)


def name_rows(axes: Axes, agents: list[str]) -> None:
    """Agents by name, one a row from the top."""
    axes.set_yticks(range(len(agents)), [wrapped(agent, 19) for agent in agents])
    axes.set_ylim(len(agents) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _inlined(svg: str, name: str, title: str) -> str:
    """The svg element alone, in the page's colours, with ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    for number, (shade, _) in enumerate(SERIES):
        svg = svg.replace(shade, f"var(--s{number})")
    svg = svg.replace(INK[0], "var(--ink)").replace(_LINE[0], "var(--line)")
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', opening)
    assert box is not None  # matplotlib always writes one
    label = escape(title)
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-label="{label}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def short_number(value: float, _: object = None) -> str:
    """A number on an axis: 20000 as 20k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def cut(label: str, width: int) -> str:
    """At most `width` letters, the last an ellipsis where some are left out."""
    return label if len(label) <= width else label[: width - 1] + "…"


def wrapped(label: str, width: int) -> str:
    """In two lines of at most `width` letters."""
    return "\n".join(textwrap.wrap(cut(label, 2 * width), width)) or label


def file_name(label: str) -> str:
    """The label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", label).strip("._")[:60] or "env"
