"""Text by discrete tokens: the two examples, estimator beside estimator, five seeds.

    python -m benchmarks.text_generation                   run what is missing, tables and pictures
    python -m benchmarks.text_generation --tables          tables and pictures from what is kept
    python -m benchmarks.text_generation --task tuning --seeds 1

`grammar` trains examples/grammar_text.py for equally many updates of one network. `tuning` tunes
the same pretrained model of examples/reward_tuning.py by each estimator; `small` does it with
batches of 4 reviews, `hacking` with a reward model of few reviews and a long leash. `gradients`
takes 50 gradients by each estimator at the same parameters, at three moments of a tuning by rloo,
so that the path is no pathwise estimator's. All else are the examples' defaults. Finished runs are
kept in results/text_generation.json and are not run again.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gumbelrl.examples import grammar_text, reward_tuning
from gumbelrl.examples.text_runs import draw, step
from gumbelrl.gumbel import make_estimator
from torch import Tensor

from benchmarks import kept_runs

RESULTS = Path(__file__).parent / "results"
KEPT, TABLE = RESULTS / "text_generation.json", RESULTS / "text_generation.txt"
DOCS = Path(__file__).parents[1] / "docs"

GRAMMAR = ("st_gumbel", "reinforce", "rloo", "likelihood", "gumbel_rao", "reinmax")
TUNING = ("st_gumbel", "reinforce", "rloo", "gumbel_rao", "reinmax")
PLAIN = "reinforce, no baseline"
GRADIENTS = ("reinforce", PLAIN, "rloo", "st_gumbel", "gumbel_rao", "reinmax")
SMALL = {"batch_size": 4}
HACKING = {"kl": 0.002, "labelled": 30}
MOMENTS, DRAWS = (0, 20, 200), 50
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's 97.5 % quantile, by number of runs

Run = dict[str, Any]


def grammar(name: str, seed: int) -> Run:
    """One GAN; its curve."""
    settings = grammar_text.Settings(name, seed=seed)
    return {"curve": grammar_text.train(settings, settings.steps // 15)[1]}


def tuning(name: str, seed: int, **changed: Any) -> Run:
    """One tuning; its curve, and the largest value there is."""
    settings = reward_tuning.Settings(name, seed=seed, **changed)
    tuner, curve = reward_tuning.train(settings, settings.steps // 20)
    return {"curve": curve, "optimum": tuner.optimum()}


def small(name: str, seed: int) -> Run:
    """The same where each update sees 4 reviews."""
    return tuning(name, seed, **SMALL)


def hacking(name: str, seed: int) -> Run:
    """The same where the reward model is easily misled."""
    return tuning(name, seed, **HACKING)


def gradients(path: str, seed: int) -> Run:
    """Moments of each estimator's gradient, along a tuning by `path`."""
    tuner = reward_tuning.Tuner(reward_tuning.Settings(path, seed=seed))
    moments: list[Run] = []
    for done in range(max(MOMENTS) + 1):
        if done in MOMENTS:
            drawn = {name: gradient_draws(tuner, name) for name in GRADIENTS}
            truth = torch.stack([drawn["rloo"], drawn["reinforce"]]).mean((0, 1))
            for name, rows in drawn.items():
                moments.append({"step": done, "name": name, **spread(rows, truth)})
        step(tuner.adam, -tuner.climbed(tuner.estimator))
    return {"moments": moments}


def gradient_draws(tuner: reward_tuning.Tuner, name: str) -> Tensor:
    """[draws, parameters]: gradients of one batch each at the present parameters."""
    if name == PLAIN:
        estimator = make_estimator("reinforce")
    else:
        estimator = reward_tuning.Settings(name).build_estimator()
    for _ in range(20 if name == "reinforce" else 0):
        tuner.climbed(estimator)  # its running mean settles
    rows = []
    for _ in range(DRAWS):
        slopes = torch.autograd.grad(tuner.climbed(estimator), [*tuner.model.parameters()])
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(rows).double()


def spread(rows: Tensor, truth: Tensor) -> Run:
    """Total variance tr cov of a draw, the norm of the mean (its noise taken off), and the cosine
    of the mean with `truth`, which is the mean of unbiased draws."""
    mean, variance = rows.mean(0), rows.var(0).sum().item()
    norm2 = mean.square().sum().item() - variance / len(rows)
    cosine = torch.nn.functional.cosine_similarity(mean, truth, dim=0).item()
    return {"variance": variance, "norm": max(norm2, 0.0) ** 0.5, "cosine": cosine}


TASKS: dict[str, tuple[tuple[str, ...], Callable[[str, int], Run]]] = {
    "grammar": (GRAMMAR, grammar),
    "tuning": (TUNING, tuning),
    "gradients": (("rloo",), gradients),
    "small": (TUNING[:3], small),
    "hacking": (TUNING[:3], hacking),
}


def interval(values: list[float], digits: int = 3) -> str:
    """Mean ± half of its 95 % interval (Student's t)."""
    mean, n = statistics.mean(values), len(values)
    if n not in T_95:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {T_95[n] * statistics.stdev(values) / n**0.5:.{digits}f}"


def curve_table(kept: list[Run], task: str, columns: dict[str, tuple[str, int]]) -> list[str]:
    """A line for each estimator: columns of the last row, and where "@" names one, of that step."""
    lines = [f"{'estimator':18s}{'seeds':>6s}" + "".join(f"{title:>20s}" for title in columns)]
    for name in TASKS[task][0]:
        runs = [run for run in kept if (run["task"], run["name"]) == (task, name)]
        if not runs:
            continue
        line = f"{name:18s}{len(runs):6d}"
        for key, digits in columns.values():
            quantity, _, at = key.partition("@")
            wanted = int(at) if at else runs[0]["curve"][-1]["step"]
            rows = [next(r for r in run["curve"] if r["step"] == wanted) for run in runs]
            line += f"{interval([row[quantity] for row in rows], digits):>20s}"
        lines.append(line)
    return lines


def gradient_table(kept: list[Run]) -> list[str]:
    """Per moment and estimator, over seeds: the variance ratio (geometric mean, range), the same
    with each gradient scaled to one length along the true one, norm and cosine (medians, mean)."""
    lines = [
        f"{'estimator':24s}{'update':>7s}{'REINFORCE / its variance':>27s}{'at equal signal':>18s}"
        f"{'norm / true norm':>18s}{'cosine':>8s}"
    ]
    runs = [run["moments"] for run in kept if run["task"] == "gradients"]
    for done in MOMENTS if runs else ():
        at = [{m["name"]: m for m in moments if m["step"] == done} for moments in runs]
        for name in GRADIENTS:
            ratios = [m["reinforce"]["variance"] / m[name]["variance"] for m in at]
            # Norms of the two unbiased ones together: each is noisy where the gradient is small.
            true = [statistics.mean([m["rloo"]["norm"], m["reinforce"]["norm"]]) for m in at]
            shrunk = [m[name]["norm"] / max(t, 1e-12) for m, t in zip(at, true, strict=True)]
            signal = [s * m[name]["cosine"] for m, s in zip(at, shrunk, strict=True)]
            fair = [r * s**2 for r, s in zip(ratios, signal, strict=True)]
            span = (
                f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
            )
            cosine = statistics.mean(m[name]["cosine"] for m in at)
            lines.append(
                f"{name:24s}{done:7d}{span:>27s}{statistics.median(fair):18.2f}"
                f"{statistics.median(shrunk):18.2f}{cosine:8.2f}"
            )
    return lines


def tables(kept: list[Run]) -> str:
    """All tables as text."""
    optimum = [run["optimum"] for run in kept if run["task"] == "tuning"]
    p = torch.tensor([*grammar_text.language().values()]).double()
    distinct = (1 - (1 - p) ** grammar_text.N_SAMPLES).sum().item()
    blocks = [
        "Grammar, after 1,500 updates: means over seeds ± 95 % (t). Data: "
        f"{distinct:.0f} distinct, entropy {-torch.xlogy(p, p).sum().item():.2f}",
        *curve_table(
            kept,
            "grammar",
            {
                "parse, update 400": ("valid@400", 3),
                "parse": ("valid", 3),
                "distinct of 5,000": ("distinct", 0),
                "entropy, nats": ("entropy", 2),
                "distance": ("distance", 3),
                "seconds": ("seconds", 1),
            },
        ),
        "",
        "Tuning, β = 0.05, 300 labelled reviews, after 200 updates. No model's value is above "
        + (f"{statistics.mean(optimum):.3f} (mean over seeds)" if optimum else "?"),
        *curve_table(kept, "tuning", REWARD_COLUMNS),
        "",
        "Tuning, β = 0.05, batches of 4, after 200 updates",
        *curve_table(kept, "small", REWARD_COLUMNS),
        "",
        "Tuning, β = 0.002, 30 labelled reviews, after 200 updates",
        *curve_table(kept, "hacking", REWARD_COLUMNS),
        "",
        f"Gradients of batches of 64 at the same parameters, {DRAWS} draws by each estimator",
        *gradient_table(kept),
    ]
    return "\n".join(blocks)


REWARD_COLUMNS = {
    "value, update 20": ("value@20", 3),
    "value": ("value", 3),
    "reward": ("reward", 3),
    "reward by rule": ("rule", 3),
    "KL, nats": ("kl", 2),
    "reviews": ("reviews", 3),
    "distinct": ("distinct", 3),
}


def pictures(kept: list[Run]) -> None:
    """The curves of both examples, for the docs."""
    for task, example in (("grammar", grammar_text.EXAMPLE), ("tuning", reward_tuning.EXAMPLE)):
        curves = {
            name: [run["curve"] for run in kept if (run["task"], run["name"]) == (task, name)]
            for name in TASKS[task][0]
        }
        if curves := {name: runs for name, runs in curves.items() if runs}:
            draw(example.panels, curves, DOCS / f"{example.name}.png")


def rounded(value: Any) -> Any:
    """The same with six significant digits, which is what the file keeps."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    """Run what is missing, print and store the tables, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", action="append", choices=list(TASKS), help="these tasks alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: list[Run] = kept_runs.read(KEPT)
    have = {(run["task"], run["name"], run["seed"]) for run in kept}
    wanted = [
        (task, name, seed)
        for task in options.task or TASKS
        for seed in range(options.seeds)
        for name in TASKS[task][0]
        if (task, name, seed) not in have
    ]
    for task, name, seed in [] if options.tables else wanted:
        began = time.process_time()
        run = {"task": task, "name": name, "seed": seed, **TASKS[task][1](name, seed)}
        kept.append(rounded({**run, "seconds": time.process_time() - began}))
        kept_runs.write(KEPT, kept)
        print(task, name, seed, f"{kept[-1]['seconds']:.1f} s", flush=True)
    if not kept:
        return
    note = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread; processor seconds"
    text = f"$ python -m benchmarks.text_generation\n{tables(kept)}\n\n{note}\n"
    TABLE.write_text(text)
    pictures(kept)
    print(text)


if __name__ == "__main__":
    main()
