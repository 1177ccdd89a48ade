"""Bias and spread of every estimator on objectives whose true gradient is enumerated.

Per row: bias = ‖E ĝ − ∇‖/‖∇‖ (sampling error taken out), std = sqrt(tr cov ĝ)/‖∇‖ of one draw,
cosine and norm ratio of E ĝ with ∇, evaluations of f, and processor time of one forward and
backward at a batch of 64 on one core. Eight rows of N(0, 1) logits make one gradient vector; those
of the parity are 3 times as wide, since at even odds its gradient drowns in any estimator's spread.

    python -m benchmarks.bias_variance [--draws 4000] [--figure docs/bias_variance.png]
"""

import argparse
import math
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from gumbelrl.gumbel import FactoredCategorical, GradientReport, gradient_report, make_estimator
from torch import Tensor, nn

FLOOR = 0.01  # of the figure: what lies below is not told from 0 with a few thousand draws

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("exact", {}),
    ("local_expectation", {}),
    ("reinforce", {}),
    ("reinforce", {"baseline": "given"}),
    ("rloo", {"k": 4}),
    ("rebar", {}),
    ("relax", {}),
    ("muprop", {}),
    *[("gumbel_softmax", {"temperature": tau}) for tau in (0.5, 1.0)],
    *[("st_gumbel", {"temperature": tau}) for tau in (0.1, 0.3, 0.5, 1.0, 2.0)],
    *[("gumbel_rao", {"temperature": tau, "k": 10}) for tau in (0.1, 0.3, 0.5, 1.0, 2.0)],
    *[("straight_through", {"temperature": tau}) for tau in (1.0, 2.0)],
    ("decoupled_st_gumbel", {"temperature_forward": 2.0, "temperature_backward": 0.5}),
    ("gapped_st", {}),
    *[("reinmax", {"temperature": tau}) for tau in (0.5, 1.0, 1.3, 2.0)],
    ("reinmax_rao", {"temperature": 0.7, "k": 32}),
    ("mixed", {"pathwise": "reinmax", "score": "rloo", "rho": 0.3}),
    ("mixed", {"pathwise": "reinmax", "score": "rloo", "rho": "measured"}),
]


class Objective:
    """f with its factors and a baseline E f, as a learned V(s) would be."""

    def __init__(
        self, nvec: tuple[int, ...], f: Callable[[Tensor], Tensor], scale: float = 1.0
    ) -> None:
        self.nvec, self.f, self.scale = nvec, f, scale
        self.mean = torch.zeros(())

    def __call__(self, one_hot: Tensor) -> Tensor:
        return self.f(one_hot)

    def baseline(self) -> Tensor:
        return self.mean


def corners(nvec: tuple[int, ...]) -> Tensor:
    """All joint one-hots, [∏K, ΣK]."""
    every = torch.tensor(list(product(*map(range, nvec))))
    eyes = [torch.nn.functional.one_hot(a, k) for a, k in zip(every.T, nvec, strict=True)]
    return torch.cat(eyes, -1).float()


def fitted(nvec: tuple[int, ...], f: Callable[[Tensor], Tensor]) -> nn.Module:
    """A ReLU critic fitted to f at every corner, and nowhere else."""
    x = corners(nvec)
    y = f(x)
    net = nn.Sequential(nn.Linear(sum(nvec), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    net.append(nn.Linear(64, 1)).append(nn.Flatten(-2))
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(3000):
        for group in adam.param_groups:
            group["lr"] = 3e-3 * (1 - step / 3000)
        adam.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        adam.step()
    print(f"ReLU critic on {len(x)} actions: fitted to R² = {1 - loss.item() / y.var().item():.6f}")
    return net.requires_grad_(False)


def objectives() -> dict[str, Objective]:
    """Name -> objective; the parity and the pairwise reward once as they are (linear in each
    factor given the others) and once as a ReLU critic that learned them."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, generator=g), torch.randn(8, 8, generator=g)
    w, v = torch.randn(8, 16, generator=g), torch.randn(16, generator=g)
    six = (3,) * 6
    c = torch.randn(18, 18, generator=g)
    for m in range(6):  # no interaction of a factor with itself
        c[3 * m : 3 * m + 3, 3 * m : 3 * m + 3] = 0
    bits = (2,) * 6

    def pairwise(d: Tensor) -> Tensor:
        return torch.einsum("...i,ij,...j->...", d, c, d) / 4

    def parity(d: Tensor) -> Tensor:
        return (1 - 2 * d.unflatten(-1, (6, 2))[..., 1]).prod(-1)

    return {
        "linear": Objective((8,), lambda d: d @ a),
        "quadratic": Objective((8,), lambda d: d @ a + torch.einsum("...i,ij,...j->...", d, b, d)),
        "tanh MLP": Objective((8,), lambda d: (2 * d @ w).tanh() @ v),
        "pairwise, 6×3": Objective(six, pairwise),
        "pairwise, ReLU critic": Objective(six, fitted(six, pairwise)),
        "needle, 6×3": Objective(six, lambda d: d.unflatten(-1, (6, 3))[..., 0].prod(-1)),
        "parity, 6×2": Objective(bits, parity, 3.0),
        "parity, ReLU critic": Objective(bits, fitted(bits, parity), 3.0),
    }


def label(name: str, settings: dict[str, Any]) -> str:
    """Short name of a row."""
    text = name + "".join(f" {key}={value}" for key, value in settings.items())
    return text.replace("temperature", "τ").replace("_forward", "f").replace("_backward", "b")


def measure(
    name: str, settings: dict[str, Any], f: Objective, draws: int
) -> tuple[GradientReport, float]:
    """(report, milliseconds of one forward and backward at batch 64)."""
    generator = torch.Generator().manual_seed(1)
    total = sum(f.nvec)
    logits = f.scale * torch.randn(8, total, generator=generator)
    dist = FactoredCategorical(logits, f.nvec)
    f.mean = make_estimator("exact")(dist, f).detach()
    estimator = make_estimator(name, **settings)
    learner = FactoredCategorical(logits.repeat(32, 1).requires_grad_(), f.nvec)
    if name in ("rebar", "relax", "mixed"):  # let them learn what they learn
        for _ in range(300):
            estimator(learner, f, generator)
    n = 16 if name == "exact" else draws
    report = gradient_report(
        estimator, dist, f, n, generator=generator, enumerate_up_to=math.prod(f.nvec)
    )
    x = torch.randn(64, total, generator=generator, requires_grad=True)
    f.mean = torch.zeros(64)
    times = []
    for _ in range(7):
        begin = time.thread_time()
        for _ in range(5):
            value = estimator(FactoredCategorical(x, f.nvec), f, generator)
            torch.autograd.grad(value.sum(), x)
        times.append((time.thread_time() - begin) / 5)
    return report, 1e3 * sorted(times)[3]


def evaluations(name: str, settings: dict[str, Any], f: Objective) -> str:
    """Evaluations of f per row and call."""
    if name == "mixed":
        return "10" if settings["rho"] == "measured" else "5"
    formula = make_estimator(name, **settings).evaluations
    known = {"∏K": math.prod(f.nvec), "ΣK": sum(f.nvec), "k": settings.get("k")}
    return str(known.get(formula, formula)).replace("1 + 2 of c", "3")


def draw(results: dict[str, dict[str, GradientReport]], path: str) -> None:
    """Bias against std, a line through the temperatures of ST-GS, Gumbel-Rao and ReinMax."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(12, 8), layout="constrained")
    axes = page.subplots(2, 3).flat
    shown = ["linear", "quadratic", "tanh MLP", "pairwise, 6×3", "pairwise, ReLU critic"]
    shown.append("parity, ReLU critic")
    for ax, objective in zip(axes, shown, strict=True):
        rows = results[objective]
        for i, family in enumerate(("st_gumbel", "gumbel_rao", "reinmax")):
            chosen = [(n, r) for n, r in rows.items() if n.split(" ")[0] == family]
            xs, ys = [r.std for _, r in chosen], [max(r.bias, FLOOR) for _, r in chosen]
            ax.plot(xs, ys, "o-", color=f"C{i}", label=f"{family} over τ")
            for (n, _), x, y in zip(chosen, xs, ys, strict=True):
                ax.annotate(n.split("τ=")[1].split(" ")[0], (x, y), fontsize=7)
        others = {
            "straight_through τ=1.0": "s",
            "gapped_st": "D",
            "reinforce baseline=given": "v",
            "rloo k=4": "^",
            "relax": "P",
            "muprop": "X",
            "local_expectation": "*",
        }
        for i, (n, marker) in enumerate(others.items()):
            r = rows[n]
            ax.plot(max(r.std, FLOOR), max(r.bias, FLOOR), marker, color=f"C{i + 3}", label=n, ms=7)
        ax.set(xscale="log", yscale="log")
        ax.xaxis.set_minor_formatter("")
        ax.yaxis.set_minor_formatter("")
        ax.set(title=objective, xlabel="std / |∇|", ylabel="bias / |∇|")
    axes[0].legend(fontsize=7)
    page.suptitle(f"Bias against spread of one draw; values below {FLOOR} are drawn at {FLOOR}")
    page.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--figure", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, dict[str, GradientReport]] = {}
    for objective, f in objectives().items():
        print(f"\n{objective}")
        print(f"{'':52s}{'bias':>8s}{'std':>8s}{'cosine':>8s}{'norm':>7s}{'evals':>7s}{'ms':>7s}")
        results[objective] = {}
        for name, settings in ROWS:
            r, ms = measure(name, settings, f, args.draws)
            results[objective][label(name, settings)] = r
            print(
                f"{label(name, settings):52s}{r.bias:8.3f}{r.std:8.3f}{r.cosine:8.3f}"
                f"{r.norm_ratio:7.2f}{evaluations(name, settings, f):>7s}{ms:7.2f}",
                flush=True,
            )
        print(
            f"{'standard error of an unbiased bias, REINFORCE':52s}"
            f"{results[objective]['reinforce'].bias_error:8.3f}"
        )
    if args.figure:
        draw(results, args.figure)


if __name__ == "__main__":
    main()
