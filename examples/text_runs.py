"""What the text examples share: their options, command line, bar, tracker and curves."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from gumbelrl.tracking import TrackingSettings, WandbTracker, resolve_mode
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

Row = dict[str, float]
Report = Callable[[Row], None]
MODES = ["auto", "online", "offline", "disabled"]


def option(default: Any, meaning: str) -> Any:
    """A field of settings that is an option of the command line too."""
    return field(default=default, metadata={"help": meaning})


def check_numbers(settings: Any, *positive: str) -> None:
    """Raise ValueError unless these settings are positive and finite, and the seed is one."""
    for name in positive:
        if not 0 < getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} must be > 0 and finite, got {getattr(settings, name)}")
    if not 0 <= settings.seed < 2**31:  # as in train.py
        raise ValueError(f"seed must be from 0 to {2**31 - 1}, got {settings.seed}")


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One descent of the loss."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@dataclass(frozen=True)
class Example:
    """What `command` needs to know.

    Attributes:
        name: of the folder and the picture.
        description: one line for --help.
        settings: frozen dataclass whose fields are `option`s, `estimator` and `steps` among them;
            raises ValueError for what cannot be.
        train: (settings, every, report) -> (what was trained, rows); a row, with its `step`, for
            the start, each `every` updates and the end, each reported too.
        panels: quantity of a row -> title of its panel.
        end: format of the last row in one line.
        samples: what was trained -> lines of its text.
    """

    name: str
    description: str
    settings: type[Any]
    train: Callable[[Any, int, Report], tuple[Any, list[Row]]]
    panels: dict[str, str]
    end: str
    samples: Callable[[Any], list[str]]


def draw(panels: dict[str, str], curves: dict[str, list[list[Row]]], path: Path) -> None:
    """A panel for each quantity over updates as PNG: mean and range over the runs of a name."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (key, title) in zip(page.subplots(1, len(panels)), panels.items(), strict=True):
        for name, runs in curves.items():
            x = [row["step"] for row in runs[0]]
            y = torch.tensor([[row[key] for row in run] for run in runs])  # [runs, rows]
            (line,) = axes.plot(x, y.mean(0), label=name)
            axes.fill_between(x, y.amin(0), y.amax(0), color=line.get_color(), alpha=0.15, lw=0)
        axes.set(title=title, xlabel="updates")
    axes.legend(fontsize=8)
    page.savefig(path, dpi=110)


def run(example: Example, settings: Any, out: Path, mode: str) -> list[Row]:
    """One run with a bar and, unless disabled, a W&B run; prints its end, returns its rows."""
    name = settings.estimator
    choice, chosen, tracker = resolve_mode(mode), TrackingSettings(mode, name=name), None
    if choice.mode != "disabled":
        tracker = WandbTracker(choice, chosen, out, asdict(settings))
        print(choice.reason)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    closes = closing(tracker) if tracker else nullcontext()
    with closes, Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=settings.steps)

        def report(row: Row) -> None:
            bar.update(task, completed=row["step"])
            if tracker is not None:
                tracker.write(row, {}, int(row["step"]))

        trained, rows = example.train(settings, max(1, settings.steps // 15), report)
    print(f"{name}: {example.end.format(**rows[-1])}")
    for line in example.samples(trained):
        print(f"   {line}")
    return rows


def command(example: Example, argv: Sequence[str] | None = None) -> None:
    """Train with each estimator that is named; print, track and draw how it went. Bad input ends
    in one message and exit code 2, Ctrl-C in one and 130."""
    parser = argparse.ArgumentParser(description=example.description)
    add = parser.add_argument
    for setting in fields(example.settings):
        meaning, default = setting.metadata["help"], setting.default
        if setting.name == "estimator":
            add("--estimator", nargs="+", default=[default], metavar="NAME", help=meaning)
            continue
        kind = float if default is None else type(default)
        shown = meaning if default is None else f"{meaning} ({default:g})"
        add(f"--{setting.name.replace('_', '-')}", type=kind, default=default, help=shown)
    add("--out", type=Path, default=Path("runs") / example.name, help="folder of the picture")
    add("--wandb", default="disabled", choices=MODES, help="track each run (disabled)")
    options = vars(parser.parse_args(argv))
    out, mode, names = options.pop("out"), options.pop("wandb"), options.pop("estimator")
    picture = out / f"{example.name}.png"
    torch.set_num_threads(1)  # networks this small are quicker so
    try:
        import matplotlib  # noqa: F401 (what is missing shows before a minute of training)

        chosen = [example.settings(estimator=name, **options) for name in dict.fromkeys(names)]
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()  # as does a folder that cannot be written
        curves = {each.estimator: [run(example, each, out, mode)] for each in chosen}
        draw(example.panels, curves, picture)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted, no picture is drawn\n")
    except ModuleNotFoundError as error:
        parser.error(f'{error.name} is missing: pip install "gumbelrl[examples]"')
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write in {out}: {error.strerror}; give --out FOLDER")
    print(f"picture: {picture}")
