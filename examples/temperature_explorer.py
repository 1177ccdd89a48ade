"""What the temperature does, as one page for a browser: python examples/temperature_explorer.py

The page holds everything it needs, so it opens from disk and asks no network: Gumbel noise drawn by
the library, and bias and spread of the estimators' gradients, measured by the library over a grid
of temperatures. The browser itself computes three formulas, which
`tests/examples/test_temperature_explorer.py` checks against the library: y = softmax((θ + G)/τ),
D = argmax(θ + G) and ĝ = J(y) g/τ.
"""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from gumbelrl.gumbel import FactoredCategorical, GradientReport, gumbel_noise, make_estimator
from gumbelrl.gumbel.diagnostics import gradient_reports
from rich.progress import track
from torch import Tensor

TEMPLATE = Path(__file__).with_name("temperature_explorer.html.jinja")
# Evenly in log τ, nearly; with 1, where straight_through and reinmax have their best point.
TEMPERATURES = (
    *(0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.5, 0.6, 0.8),
    *(1.0, 1.25, 1.6, 2.0, 2.8, 4.0, 5.6, 7.5, 10.0),
)
CATEGORIES = "ABCDE"
VALUES = (1.0, 0.5, 0.2, -0.3, -0.8)  # f at the five choices, whatever lies between them
PRESETS = {
    "even": (0.0, 0.0, 0.0, 0.0, 0.0),
    "leaning": (-0.5, 1.0, 0.5, 0.0, -1.0),
    "nearly decided": (0.0, 3.0, 1.0, -1.0, -1.0),
}


@dataclass(frozen=True)
class Shown:
    """An estimator on the page.

    Args:
        label: its name there.
        name: the library's.
        settings: without a temperature.
        tempered: whether τ is one of its settings.
        about: one line.
    """

    label: str
    name: str
    settings: dict[str, Any]
    tempered: bool
    about: str


ESTIMATORS = (
    Shown("st_gumbel", "st_gumbel", {}, True, "a hard sample, the gradient of the soft one"),
    Shown("gumbel_rao", "gumbel_rao", {"k": 10}, True, "the same, averaged over ten noises"),
    Shown("straight_through", "straight_through", {}, True, "the gradient of softmax(θ/τ)"),
    Shown("reinmax", "reinmax", {}, True, "second order; made for τ = 1"),
    Shown("gumbel_softmax", "gumbel_softmax", {}, True, "f sees the soft sample itself"),
    Shown("rloo", "rloo", {"k": 4}, False, "four samples, values of f alone"),
    Shown("reinforce", "reinforce", {"baseline": "given"}, False, "one sample, values of f alone"),
)


class Objective:
    """f [..., 5] -> [...] with `VALUES` at the corners, and a baseline E f as a critic would learn.

    Args:
        between: "linear", "quadratic", "network" or "misleading": what f is off the corners, the
            only thing in which the four differ, and the only thing that a slope can see.
    """

    about: ClassVar = {
        "linear": "straight between the choices",
        "quadratic": "a gentle curve between them",
        "network": "a small tanh network, shifted to the same five values",
        "misleading": "right at every choice, with slopes that point elsewhere: what a critic may "
        "become that only ever saw the choices",
    }

    def __init__(self, between: str, probabilities: Tensor) -> None:
        g = torch.Generator().manual_seed(0)
        k = len(VALUES)
        self.values = torch.tensor(VALUES)
        self.between = between
        self.curve = torch.randn(k, k, generator=g) / 2
        self.w, self.v = torch.randn(k, 16, generator=g), torch.randn(16, generator=g) / 2
        self.lift = 2.0 * torch.tensor([-1.0, 0.0, 1.0, -1.0, 1.0])
        self.mean = probabilities @ self.values

    def __call__(self, d: Tensor) -> Tensor:
        return d @ self.values + self._bend(d) - d @ self._bend(torch.eye(len(VALUES)))

    def _bend(self, d: Tensor) -> Tensor:
        if self.between == "quadratic":
            return torch.einsum("...i,ij,...j->...", d, self.curve, d)
        if self.between == "network":
            return (d @ self.w).tanh() @ self.v
        if self.between == "misleading":
            return (d * (1 - d).square()) @ self.lift
        return d.new_zeros(d.shape[:-1])

    def baseline(self) -> Tensor:
        return self.mean.expand(1)


def measure(
    logits: Sequence[float], between: str, draws: int, seed: int
) -> dict[str, list[GradientReport]]:
    """Label -> reports over τ; a single one where the estimator has no temperature."""
    dist = FactoredCategorical(torch.tensor([list(logits)]))
    f = Objective(between, torch.tensor(logits).softmax(-1))
    reports = {}
    for shown in ESTIMATORS:
        settings = [{"temperature": tau} for tau in TEMPERATURES] if shown.tempered else [{}]
        built = [make_estimator(shown.name, **shown.settings, **extra) for extra in settings]
        reports[shown.label] = [
            # The same draws at every τ, so that a curve shows τ and not chance.
            *(_report(estimator, dist, f, draws, seed) for estimator in built)
        ]
    return reports


def _report(
    estimator: Any, dist: FactoredCategorical, f: Objective, draws: int, seed: int
) -> GradientReport:
    generator = torch.Generator().manual_seed(seed)
    (report,) = gradient_reports([estimator], dist, f, draws, generator=generator)
    return report


def _curves(reports: Sequence[GradientReport]) -> dict[str, list[float]]:
    """Field -> four significant digits over τ."""
    fields = ("bias", "std", "cosine", "norm_ratio", "bias_error")
    return {key: [float(f"{getattr(r, key):.4g}") for r in reports] for key in fields}


def _measurements(
    draws: int, seed: int
) -> Iterator[tuple[str, str, dict[str, dict[str, list[float]]]]]:
    cells = [(preset, between) for preset in PRESETS for between in Objective.about]
    for preset, between in track(cells, "measuring gradients"):
        reports = measure(PRESETS[preset], between, draws, seed)
        yield preset, between, {label: _curves(rows) for label, rows in reports.items()}


def page_data(draws: int, samples: int, seed: int, command: str) -> dict[str, Any]:
    """What the page is drawn from."""
    generator = torch.Generator().manual_seed(seed)
    noise = gumbel_noise((samples, len(VALUES)), generator)  # float32
    curves: dict[str, dict[str, Any]] = {preset: {} for preset in PRESETS}
    for preset, between, rows in _measurements(draws, seed):
        curves[preset][between] = rows
    return {
        "categories": list(CATEGORIES),
        "values": VALUES,
        "presets": PRESETS,
        "objectives": Objective.about,
        "estimators": [
            {"label": e.label, "tempered": e.tempered, "about": e.about} for e in ESTIMATORS
        ],
        "temperatures": TEMPERATURES,
        "curves": curves,
        # Little-endian float32, row after row: the library's draws to the bit.
        "noise": base64.b64encode(noise.numpy().astype("<f4").tobytes()).decode(),
        "samples": samples,
        "draws": draws,
        "seed": seed,
        "command": command,
        "torch": torch.__version__,
    }


def render(data: dict[str, Any]) -> str:
    """The page."""
    from gumbelrl.comparison.canvas import css_variables
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = Environment(undefined=StrictUndefined, autoescape=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return template.render(data=Markup(embedded), colors=Markup(css_variables()), **data) + "\n"


def _at_least(minimum: int) -> Any:
    limit = 2**31  # of seeds in train.py, and more than memory holds of the rest

    def read(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) < limit:
            raise argparse.ArgumentTypeError(
                f"must be a whole number >= {minimum} and < 2^31, got {text}"
            )
        return int(text)

    return read


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", default="temperature_explorer.html", help="the page (temperature_explorer.html)"
    )
    parser.add_argument(
        "--draws", type=_at_least(2), default=40_000, help="for every point (40000)"
    )
    parser.add_argument(
        "--samples", type=_at_least(200), default=2000, help="of noise, kept in the page (2000)"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of noise and gradients (0)")
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "examples/temperature_explorer.py", *given])
    torch.set_num_threads(1)
    out = Path(args.out)
    try:
        # What is missing or cannot be written is found before a minute of measuring.
        import gumbelrl.comparison.canvas  # noqa: F401
        import jinja2  # noqa: F401

        out.open("a").close()
        data = page_data(args.draws, args.samples, args.seed, command)
        out.write_text(render(data), encoding="utf-8")
    except KeyboardInterrupt:
        if out.is_file() and not out.stat().st_size:
            out.unlink()
        parser.exit(130, f"{parser.prog}: interrupted, no page is written\n")
    except ModuleNotFoundError as error:
        parser.error(f"the page needs {error.name}: pip install 'gumbelrl[compare]'")
    except OSError as error:
        parser.error(f"cannot write {out}: {error.strerror}; give --out FILE")
    print(out)


if __name__ == "__main__":
    main()
