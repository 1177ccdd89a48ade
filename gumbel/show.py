"""The article's pictures: one sample as bars, Gumbel-Softmax beside softmax, samples over τ.

python -m gumbelrl.gumbel.show [--logits 1 2 0.5 1.5] [--temperature 0.5] [--out gumbel.png]
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from gumbelrl.gumbel.choices import positive
from gumbelrl.gumbel.distribution import check_rows
from gumbelrl.gumbel.gradient import choose
from gumbelrl.gumbel.noise import gumbel_noise
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPERATURES = (0.1, 0.5, 1.0, 2.0, 5.0)


def plot_sample(ax: "Axes", theta: Tensor, noise: Tensor, temperature: float) -> None:
    """Bars of one soft sample S_τ(θ + G) [K], the category it falls on (its one-hot) marked."""
    z = theta + noise
    y = (z / positive("temperature", temperature)).softmax(-1)
    colours = ["C1" if hit else "C0" for hit in choose(z).tolist()]
    ax.bar(range(len(y)), y.tolist(), color=colours)
    ax.set(
        ylim=(0, 1), xlabel="category", ylabel="weight", title=f"one sample, τ = {temperature:g}"
    )


def plot_beside_softmax(ax: "Axes", theta: Tensor, noise: Tensor, temperature: float) -> None:
    """softmax θ, the mean of soft samples and the share of hard samples, over noise [n, K]."""
    k = len(theta)
    soft = ((theta + noise) / positive("temperature", temperature)).softmax(-1).mean(0)
    hard = choose(theta + noise).double().mean(0)
    rows = {"softmax(θ)": theta.softmax(-1), f"mean y, τ = {temperature:g}": soft}
    rows["share of argmax(θ + G)"] = hard
    for i, (label, row) in enumerate(rows.items()):
        places = [j + 0.27 * (i - 1) for j in range(k)]
        ax.bar(places, row.tolist(), width=0.25, label=label)
    ax.set(
        xlabel="category",
        xticks=range(k),
        title=f"Gumbel-Softmax beside softmax, {len(noise):,} samples",
    )
    ax.legend()


def plot_temperatures(axes: Sequence["Axes"], theta: Tensor, noise: Tensor) -> None:
    """The same noise [rows, K] at each τ of TEMPERATURES, a panel each: samples as shaded rows."""
    for ax, tau in zip(axes, TEMPERATURES, strict=True):
        y = ((theta + noise) / tau).softmax(-1)
        ax.imshow(y.tolist(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        ax.set(title=f"τ = {tau:g}", xlabel="category", xticks=range(len(theta)), yticks=[])
    axes[0].set_ylabel(f"{len(noise)} samples, same noise")


def figure(logits: Sequence[float], temperature: float = 0.5, seed: int = 0) -> "Figure":
    """All three pictures on one page."""
    from matplotlib.figure import Figure

    theta = torch.tensor(list(logits), dtype=torch.float64)
    check_rows(theta)
    generator = torch.Generator().manual_seed(seed)
    noise = gumbel_noise((20_000, len(theta)), generator, torch.float64)
    page = Figure(figsize=(11, 7), layout="constrained")
    grid = page.add_gridspec(2, 10)
    plot_sample(page.add_subplot(grid[0, :4]), theta, noise[0], temperature)
    plot_beside_softmax(page.add_subplot(grid[0, 4:]), theta, noise, temperature)
    panels = [page.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(len(TEMPERATURES))]
    plot_temperatures(panels, theta, noise[:20])
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page as one PNG."""
    parser = argparse.ArgumentParser(
        prog="gumbelrl.gumbel.show", description="Gumbel-Softmax, seen"
    )
    parser.add_argument("--logits", type=float, nargs="+", default=[1.0, 2.0, 0.5, 1.5])
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="gumbel.png")
    args = parser.parse_args(argv)
    try:
        figure(args.logits, args.temperature, args.seed).savefig(args.out, dpi=110)
    except ModuleNotFoundError:
        parser.error("the pictures need matplotlib: pip install 'gumbelrl[bench]'")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(args.out)


if __name__ == "__main__":
    main()
