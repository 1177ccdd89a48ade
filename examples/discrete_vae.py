"""A variational autoencoder with categorical latents on scikit-learn's digits.

    python examples/discrete_vae.py                                    st_gumbel, 8 factors of 4
    python examples/discrete_vae.py --estimator reinmax --latents 16x12 --seed 3
    python examples/discrete_vae.py --estimator softmax                no sampling in training

The encoder q(D|x) is a FactoredCategorical, the decoder p(x|D) a network of its one-hots. What is
climbed is the ELBO = E_q log p(x|D) − KL(q ‖ uniform): the KL is exact, the gradient of the
expectation the estimator's. Evaluation is the same for all: sampled codes, one-hots decoded.

A pixel counts the dark dots, 0 to 16, of a 4×4 block: p(x|D) is binomial in each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from gumbelrl.gumbel import ESTIMATORS, FactoredCategorical, make_estimator
from gumbelrl.gumbel.choices import positive, unknown_name
from gumbelrl.gumbel.estimator import Objective
from gumbelrl.tracking import TrackingSettings, WandbTracker, resolve_mode
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

DOTS, PIXELS = 16, 64  # 0 to 16 dots in each
Show = Callable[[int, float], None]
DEFAULTS: dict[str, dict[str, Any]] = {
    "reinforce": {"baseline": "running_mean"},  # without a baseline it hardly learns
    "mixed": {"pathwise": "reinmax", "rho": "measured"},
}


class DeterministicSoftmax:
    """No sampling: the decoder sees softmax(θ/τ), and learns to read what no one-hot ever says."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = positive("temperature", temperature)

    def __call__(self, dist: FactoredCategorical, f: Objective, generator: object = None) -> Tensor:
        return f(dist.layout.flatten((dist.theta / self.temperature).softmax(-1)))


def build_estimator(name: str, settings: dict[str, Any]) -> Any:
    """An estimator of the library, or "softmax"; ValueError names the nearest to a wrong one."""
    if name == "softmax":
        return DeterministicSoftmax(**settings)
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, [*ESTIMATORS, "softmax"])
    return make_estimator(name, **{**DEFAULTS.get(name, {}), **settings})


@dataclass(frozen=True)
class Settings:
    """One run; `seed` is of weights, batches and noise, the split of the images never changes."""

    estimator: str = "st_gumbel"
    estimator_settings: dict[str, Any] = field(default_factory=dict)
    factors: int = 8  # M
    categories: int = 4  # K, of each factor
    epochs: int = 60
    learning_rate: float = 0.01
    seed: int = 0
    hidden: int = 256  # units of the one hidden layer of encoder and decoder
    batch_size: int = 100


def load_images() -> dict[str, Tensor]:
    """Counts of dots, 1,797 images [N, 64] in three parts that never change."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = images[order].split([1197, 300, 300])
    return dict(zip(("train", "validation", "test"), parts, strict=True))


class DiscreteVAE(nn.Module):
    """Images [B, 64] to M categoricals of K, one-hots [..., B, M·K] to images."""

    def __init__(self, factors: int, categories: int, hidden: int) -> None:
        super().__init__()
        self.nvec = (categories,) * factors
        total = factors * categories
        self.encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.SiLU(), nn.Linear(hidden, total))
        self.decoder = nn.Sequential(nn.Linear(total, hidden), nn.SiLU(), nn.Linear(hidden, PIXELS))

    def posterior(self, x: Tensor) -> FactoredCategorical:
        """q(D|x)."""
        return FactoredCategorical(self.encoder(x / DOTS), self.nvec)

    def prior(self, n: int) -> FactoredCategorical:
        """n rows of the uniform distribution."""
        return FactoredCategorical(torch.zeros(n, sum(self.nvec)), self.nvec)

    def log_likelihood(self, one_hot: Tensor, x: Tensor) -> Tensor:
        """log p(x|D) of one-hots [..., B, M·K]: 16 trials a pixel -> [..., B]."""
        logits, trials = self.decoder(one_hot), torch.tensor(DOTS + 1.0)
        log_choices = trials.lgamma() - (x + 1).lgamma() - (trials - x).lgamma()
        return (log_choices + x * logits - DOTS * softplus(logits)).sum(-1)

    def kl(self, q: FactoredCategorical) -> Tensor:
        """KL(q ‖ uniform) [B], exact."""
        return q.kl(self.prior(q.batch_shape[0]))

    def decode(self, one_hot: Tensor) -> Tensor:
        """Expected counts of dots [..., 64]."""
        return DOTS * self.decoder(one_hot).sigmoid()


@torch.no_grad()
def evaluate(model: DiscreteVAE, x: Tensor, n_samples: int = 32) -> dict[str, float]:
    """−ELBO, and its two parts, over images x, in nats: codes drawn from q, one-hots decoded."""
    generator = torch.Generator().manual_seed(0)
    q = model.posterior(x)
    samples = (q.one_hot(q.sample(generator)) for _ in range(n_samples))
    losses = torch.stack([-model.log_likelihood(one_hot, x).mean() for one_hot in samples])
    kl, reconstruction = model.kl(q).mean().item(), losses.mean().item()
    return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


def train(settings: Settings, images: Tensor, show: Show = print) -> tuple[DiscreteVAE, float]:
    """Train on images [N, 64]; the model, and processor seconds an epoch. `show` is called with the
    epoch, from 1, and the loss of its last batch.

    Raises ValueError for an estimator that is unknown, or cannot do with this many latents.
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    estimator = build_estimator(settings.estimator, settings.estimator_settings)
    model = DiscreteVAE(settings.factors, settings.categories, settings.hidden)
    adam = torch.optim.Adam(model.parameters(), settings.learning_rate, fused=True)
    seconds = 0.0
    for epoch in range(1, settings.epochs + 1):
        began = time.process_time()
        for rows in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            x = images[rows]
            q = model.posterior(x)
            value = estimator(q, lambda one_hot, x=x: model.log_likelihood(one_hot, x), generator)
            loss = (model.kl(q) - value).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        seconds += time.process_time() - began
        show(epoch, loss.item())
    return model, seconds / settings.epochs


@torch.no_grad()
def draw(model: DiscreteVAE, test: Tensor, settings: Settings, path: Path) -> None:
    """Test images, what comes back of them, and samples of the prior, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator, columns = torch.Generator().manual_seed(0), 15
    q, prior = model.posterior(test[:columns]), model.prior(3 * columns)
    rows = {"test images": test[:columns]}
    if settings.estimator == "softmax":
        softmax = build_estimator("softmax", settings.estimator_settings)
        rows["decoded from softmax"] = softmax(q, model.decode)
    rows["decoded from a sample"] = model.decode(q.one_hot(q.sample(generator)))
    new = model.decode(prior.one_hot(prior.sample(generator))).split(columns)
    rows |= {"drawn from the prior": new[0], " ": new[1], "  ": new[2]}
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 0.6 * len(rows)))
    for axis, (label, row) in zip(axes, rows.items(), strict=True):
        strip = pad(row.view(-1, 8, 8), (0, 1)).permute(1, 0, 2).flatten(1)  # with white gaps
        axis.imshow(strip.numpy(), cmap="gray_r", vmin=0, vmax=DOTS, interpolation="nearest")
        axis.set_axis_off()
        axis.text(-2, 3.5, label, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left=0.19, right=1.0, top=0.99, bottom=0.01, hspace=0.08)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; bad input ends with one message and exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--estimator", default="st_gumbel", metavar="NAME", help="of the library, or softmax")
    add("--temperature", type=float, metavar="T", help="of the estimator, where it has one")
    add("--latents", default="8x4", metavar="MxK", help="factors x categories (8x4)")
    add("--epochs", type=int, default=60)
    add("--learning-rate", type=float, default=0.01)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/discrete_vae"), help="folder of the picture")
    add("--wandb", default="disabled", choices=["auto", "online", "offline", "disabled"])
    options = parser.parse_args(argv)
    sizes = options.latents.split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        parser.error(f"--latents must be factors x categories such as 8x4, got {options.latents}")
    if options.epochs < 1 or options.learning_rate <= 0 or options.seed < 0:
        parser.error("--epochs must be >= 1, --learning-rate > 0 and --seed >= 0")
    given = {} if options.temperature is None else {"temperature": options.temperature}
    numbers = *map(int, sizes), options.epochs, options.learning_rate, options.seed
    settings = Settings(options.estimator, given, *numbers)
    torch.set_num_threads(1)  # networks this small are quicker so
    try:
        build_estimator(settings.estimator, settings.estimator_settings)
        options.out.mkdir(parents=True, exist_ok=True)
        run_example(settings, options.out, options.wandb)
    except ModuleNotFoundError as error:
        parser.error(f'{error.name} is missing: pip install "gumbelrl[examples]"')
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write in {options.out}: {error.strerror}; give --out FOLDER")


def run_example(settings: Settings, out: Path, wandb_mode: str) -> None:
    """Train with a bar, evaluate, draw."""
    images, choice, tracker = load_images(), resolve_mode(wandb_mode), None
    if choice.mode != "disabled":
        tracker = WandbTracker(choice, TrackingSettings(wandb_mode), out, asdict(settings))
        print(choice.reason)
    with (
        closing(tracker) if tracker else nullcontext(),
        Progress(console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task("training", total=settings.epochs)

        def show(epoch: int, loss: float) -> None:
            bar.update(task, completed=epoch, description=f"epoch {epoch}, −ELBO {loss:.1f}")
            if tracker is not None:
                tracker.write({"train/negative_elbo": loss}, {}, epoch)

        model, seconds = train(settings, images["train"], show)
        scores = {part: evaluate(model, images[part]) for part in ("train", "test")}
        if tracker is not None:
            tracker.summarise(scores)
    picture = out / f"discrete_vae_{settings.estimator}.png"
    draw(model, images["test"], settings, picture)
    print(f"{'nats an image':14s} {'−ELBO':>8s} {'reconstruction':>15s} {'KL':>7s}")
    for part, score in scores.items():
        total, reconstruction, kl = score.values()
        print(f"{part:14s} {total:8.2f} {reconstruction:15.2f} {kl:7.2f}")
    print(f"{1e3 * seconds:.0f} ms an epoch of processor time; picture: {picture}")


if __name__ == "__main__":
    main()
