"""Images of digits from a code whose categories are set by hand.

    python examples/image_synthesis.py                                 what each category does
    python examples/image_synthesis.py --set digit=7                   sevens in all 64 styles
    python examples/image_synthesis.py --set digit=7 --set style2=1    those of one category

A code is one factor of 10 categories, the digit, and three of 4, the style. Ten labelled images of
each digit give the first its meaning; 1,197 without labels teach the rest, through samples of
q(digit, style|x) whose gradient is the estimator's (a semi-supervised VAE, Kingma 2014, Jang 2016).
For a labelled image a mask leaves q one digit, so both kinds share a batch. Control is measured by
a support vector machine, the judge, that was trained on real images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from gumbelrl.gumbel import FactoredCategorical, make_estimator
from gumbelrl.gumbel.choices import unknown_name
from gumbelrl.tracking import TrackingSettings, WandbTracker, resolve_mode
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, pad, softplus

FACTORS = {"digit": 10, "style1": 4, "style2": 4, "style3": 4}
NVEC, TOTAL = tuple(FACTORS.values()), sum(FACTORS.values())
DOTS, PIXELS = 16, 64  # a pixel counts the dark dots of a 4×4 block
EPOCHS, BATCH, HIDDEN, LEARNING_RATE = 60, 100, 256, 0.01
LABEL_WEIGHT = 50.0  # of −log q(label|x) beside the ELBO in nats
Show = Callable[[int, float], None]


class Digits:
    """scikit-learn's digits, images [N, 64], always split alike, and the judge."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.svm import SVC

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(data.data, dtype=torch.float32)[order], torch.tensor(data.target)[order]
        (self.train, self.test), (self.train_labels, self.test_labels) = (
            values.split([1297, 500]) for values in (x, y)
        )
        named = torch.cat([(self.train_labels == d).nonzero()[:10, 0] for d in range(10)])
        self.labelled, self.labels = self.train[named], self.train_labels[named]
        unnamed = torch.ones(1297, dtype=torch.bool).index_fill(0, named, False)
        self.unlabelled = self.train[unnamed]
        # It alone sees all labels; nothing learns from it.
        self._judge = SVC(gamma=0.001).fit(self.train.numpy(), self.train_labels.numpy())

    def judge(self, images: Tensor) -> Tensor:
        """The digits [N] that it reads in images [N, 64]."""
        return torch.as_tensor(self._judge.predict(images.numpy()))


class CodedDigits(nn.Module):
    """Codes to images, and an encoder that infers codes of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, TOTAL))
        self.decoder = nn.Sequential(nn.Linear(TOTAL, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, PIXELS))

    def log_likelihood(self, code: Tensor, x: Tensor) -> Tensor:
        """log p(x|code) of one-hots [..., B, 22], binomial in each pixel -> [..., B]."""
        logits, trials = self.decoder(code), torch.tensor(DOTS + 1.0)
        log_choices = trials.lgamma() - (x + 1).lgamma() - (trials - x).lgamma()
        return (log_choices + x * logits - DOTS * softplus(logits)).sum(-1)

    @torch.no_grad()
    def images(self, categories: Tensor) -> Tensor:
        """Expected counts of dots [..., 64] for categories [..., 4]."""
        return DOTS * self.decoder(uniform(1).one_hot(categories)).sigmoid()


def uniform(n: int) -> FactoredCategorical:
    """The prior over codes, n rows."""
    return FactoredCategorical(torch.zeros(n, TOTAL), NVEC)


def train(digits: Digits, name: str, epochs: int, seed: int, show: Show = print) -> CodedDigits:
    """Train by the estimator of this name; `show` gets each epoch, from 1, and its loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    baseline = {"baseline": "running_mean"} if name == "reinforce" else {}
    estimator, model = make_estimator(name, **baseline), CodedDigits()
    adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    known = one_hot(digits.labels, 10).bool()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(digits.unlabelled), generator=generator)
        for rows in order.split(BATCH):
            x = torch.cat([digits.labelled, digits.unlabelled[rows]])
            logits = model.encoder(x / DOTS)
            mask = torch.ones(len(x), TOTAL, dtype=torch.bool)
            mask[: len(known), :10] = known  # q of a labelled image has its digit alone
            q = FactoredCategorical(logits, NVEC, mask)
            value = estimator(q, lambda code, x=x: model.log_likelihood(code, x), generator)
            naming = cross_entropy(logits[: len(known), :10], digits.labels)
            loss = (q.kl(uniform(len(x))) - value).mean() + LABEL_WEIGHT * naming
            adam.zero_grad()
            loss.backward()
            adam.step()
        show(epoch, loss.item())
    return model


@torch.no_grad()
def control(model: CodedDigits, digits: Digits, n: int = 1000) -> dict[str, float]:
    """How far the digit of a code is the digit of its image, whatever the style.

    Returns:
        agreement: share of n images, styles drawn from the prior, in which the judge reads the
            digit that was set; judge: its accuracy on real test images; encoder: that of
            q(digit|x); spread: of generated images of one digit around their mean, over that of
            real ones, because a generator of ten pictures would agree as well.
    """
    codes = uniform(n).sample(torch.Generator().manual_seed(0))
    codes[:, 0] = torch.arange(n) % 10
    images, real = model.images(codes), digits.train
    spread = [
        images[codes[:, 0] == d].std(0).mean() / real[digits.train_labels == d].std(0).mean()
        for d in range(10)
    ]
    right = {
        "agreement": digits.judge(images) == codes[:, 0],
        "judge": digits.judge(digits.test) == digits.test_labels,
        "encoder": model.encoder(digits.test / DOTS)[:, :10].argmax(-1) == digits.test_labels,
    }
    shares = {name: correct.double().mean().item() for name, correct in right.items()}
    return {**shares, "spread": torch.stack(spread).mean().item()}


def sweep() -> Tensor:
    """Codes [10, 12, 4]: a row for each digit, each style factor changed alone, the others 0."""
    codes = torch.zeros(10, 12, 4, dtype=torch.long)
    codes[:, :, 0] = torch.arange(10)[:, None]
    for m in (1, 2, 3):
        codes[:, 4 * m - 4 : 4 * m, m] = torch.arange(4)
    return codes


def all_with(fixed: dict[str, int]) -> Tensor:
    """Every code with these categories, [rows, columns, 4]; the first free factor is the row."""
    ranges = [torch.arange(k)[fixed.get(name, slice(None))].view(-1) for name, k in FACTORS.items()]
    free = [len(categories) for categories in ranges if len(categories) > 1]
    return torch.cartesian_prod(*ranges).view(free[0] if len(free) > 1 else 1, -1, 4)


def draw(model: CodedDigits, codes: Tensor, path: Path, swept: bool) -> None:
    """Images of codes [R, C, 4] as one picture; `swept` names the rows and columns of `sweep`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, columns, _ = codes.shape
    tiles = pad(model.images(codes).view(rows, columns, 8, 8), (1, 1, 1, 1))
    picture = tiles.transpose(1, 2).reshape(10 * rows, 10 * columns)
    size = (0.5 * columns + 0.6 * swept, 0.5 * rows + 0.5 * swept)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    axis.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=DOTS, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8)
    if swept:
        axis.set_yticks(range(5, 100, 10), [f"digit={d}" for d in range(10)])
        names = [f"{k}\nstyle{m}" if k == 0 else f"{k}\n" for m in (1, 2, 3) for k in range(4)]
        axis.set_xticks(range(5, 120, 10), names)
        axis.vlines([39.5, 79.5], 0, 99, color="0.6", linewidth=1)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def category(text: str) -> tuple[str, int]:
    """Read "digit=7" -> ("digit", 7)."""
    name, _, value = text.partition("=")
    if name not in FACTORS:
        raise argparse.ArgumentTypeError(unknown_name("factor", name, FACTORS))
    if not value.isdigit() or int(value) >= FACTORS[name]:
        raise argparse.ArgumentTypeError(f"{name} must be 0 to {FACTORS[name] - 1}, got {value!r}")
    return name, int(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure the control, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--set", action="append", default=[], type=category, metavar="FACTOR=K", help="digit=7, …")
    add("--estimator", default="st_gumbel", metavar="NAME", help="any of the library")
    add("--epochs", type=int, default=EPOCHS)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/image_synthesis"), help="folder of the picture")
    add("--wandb", default="disabled", choices=["auto", "online", "offline", "disabled"])
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be >= 1 and --seed >= 0")
    torch.set_num_threads(1)  # networks this small are quicker so
    try:
        make_estimator(options.estimator)
        options.out.mkdir(parents=True, exist_ok=True)
        run_example(options)
    except ModuleNotFoundError as error:
        parser.error(f'{error.name} is missing: pip install "gumbelrl[examples]"')
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write in {options.out}: {error.strerror}; give --out FOLDER")


def run_example(options: argparse.Namespace) -> None:
    """Train with a bar, measure the control, draw."""
    digits, choice, tracker = Digits(), resolve_mode(options.wandb), None
    config = {name: getattr(options, name) for name in ("estimator", "epochs", "seed")}
    if choice.mode != "disabled":
        tracker = WandbTracker(choice, TrackingSettings(options.wandb), options.out, config)
        print(choice.reason)
    with (
        closing(tracker) if tracker else nullcontext(),
        Progress(console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task("training", total=options.epochs)

        def show(epoch: int, loss: float) -> None:
            bar.update(task, completed=epoch, description=f"epoch {epoch}, loss {loss:.1f}")
            if tracker is not None:
                tracker.write({"train/loss": loss}, {}, epoch)

        model = train(digits, options.estimator, options.epochs, options.seed, show)
        numbers, fixed = control(model, digits), dict(options.set)
        if tracker is not None:
            tracker.summarise(numbers)
    print("judge: {agreement:.1%} of 1,000 images show the digit that was set".format(**numbers))
    print("real images read: judge {judge:.1%}, encoder {encoder:.1%}".format(**numbers))
    print("spread within a digit: {spread:.2f} of the real one".format(**numbers))
    title = "_".join(f"{name}={value}" for name, value in fixed.items()) or "grid"
    picture = options.out / f"image_synthesis_{title}.png"
    draw(model, all_with(fixed) if fixed else sweep(), picture, swept=not fixed)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
