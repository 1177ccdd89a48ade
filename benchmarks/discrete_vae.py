"""Every estimator on the discrete VAE of examples/discrete_vae.py: test −ELBO over five seeds.

    python -m benchmarks.discrete_vae                    run what is missing, print the table
    python -m benchmarks.discrete_vae --latents 8x4 --estimator reinmax --estimator st_gumbel
    python -m benchmarks.discrete_vae --tables           print it from the runs that are kept

Equal budget: 60 epochs of batches of 100. Equal tuning: four settings each (two learning rates by
two temperatures where there are any, else four learning rates) on each size, one run of 60 epochs
each with a seed of its own; the best −ELBO on the 300 validation images decides.
All are evaluated alike: sampled codes, one-hots into the decoder, 32 samples an image.
Not in it: `exact` (4,096 codes an image and more), and `decoupled_st_gumbel`, which is st_gumbel
where it samples from the q whose KL is taken.
Finished runs are kept in results/discrete_vae.json and are not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import kept_runs

RESULTS = Path(__file__).parent / "results"
KEPT, TABLE = RESULTS / "discrete_vae.json", RESULTS / "discrete_vae.txt"
EPOCHS, SEEDS, TUNING_SEED = 60, 5, 100

LATENTS = ("8x4", "4x8", "16x12")
RATES = (0.002, 0.005, 0.01, 0.02)
RATES_BESIDE_TEMPERATURES = (0.005, 0.01)
TEMPERATURES: dict[str, tuple[float, ...]] = {
    "straight_through": (1.0, 1.5),
    "gapped_st": (0.5, 1.0),
    "st_gumbel": (0.5, 1.0),
    "gumbel_rao": (0.5, 1.0),
    "reinmax": (1.0, 1.5),
    "reinmax_rao": (0.7, 1.0),
    "gumbel_softmax": (0.5, 1.0),
    "rebar": (0.5, 1.0),
    "relax": (0.5, 1.0),
}
ESTIMATORS = (
    *("softmax", "reinforce", "muprop", "gumbel_softmax", "straight_through", "gapped_st"),
    *("st_gumbel", "gumbel_rao", "reinmax", "reinmax_rao", "rloo", "rebar", "relax", "mixed"),
    "local_expectation",
)
LEFT_OUT = {
    ("local_expectation", "16x12"): "192 decodings of every image",
}


def candidates(estimator: str) -> list[dict[str, Any]]:
    """The four settings that are tried."""
    if estimator not in TEMPERATURES:
        return [{"learning_rate": rate, "temperature": None} for rate in RATES]
    pairs = product(RATES_BESIDE_TEMPERATURES, TEMPERATURES[estimator])
    return [{"learning_rate": rate, "temperature": tau} for rate, tau in pairs]


def run(latents: str, estimator: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once; the row that is kept."""
    import torch
    from gumbelrl.examples.discrete_vae import Settings, evaluate, load_images, train

    torch.set_num_threads(1)
    factors, categories = map(int, latents.split("x"))
    tau = setting["temperature"]
    images = load_images()
    settings = Settings(
        estimator,
        {} if tau is None else {"temperature": tau},
        factors,
        categories,
        EPOCHS,
        setting["learning_rate"],
        seed=seed,
    )
    model, seconds = train(settings, images["train"], lambda *_: None)
    row = {
        "latents": latents,
        "estimator": estimator,
        **setting,
        "seed": seed,
        **{part: round(evaluate(model, x)["negative_elbo"], 3) for part, x in images.items()},
        "kl": round(evaluate(model, images["test"])["kl"], 3),
        "epoch_milliseconds": round(1e3 * seconds, 2),
    }
    if estimator == "softmax":  # and as training saw it: the decoder reads π
        with torch.no_grad():
            q = model.posterior(images["test"])
            loss = model.kl(q) - model.log_likelihood(q.probs, images["test"])
        row["as_trained"] = round(loss.mean().item(), 3)
    return row


def independent_pixels() -> float:
    """−log p of the test images where each pixel has its mean over the training images."""
    from gumbelrl.examples.discrete_vae import DOTS, load_images
    from torch.distributions import Binomial

    images = load_images()
    dark = (images["train"].mean(0) / DOTS).clamp(1e-3, 1 - 1e-3)  # some corners are never dark
    return -Binomial(DOTS, dark).log_prob(images["test"]).sum(-1).mean().item()


def load() -> list[dict[str, Any]]:
    """All rows that are kept."""
    return kept_runs.read(KEPT)


def keep(row: dict[str, Any]) -> None:
    """Add a row; others may have been added by a process beside this one."""
    kept_runs.write(KEPT, [*load(), row])


def pick(kept: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows that fit."""
    return [row for row in kept if all(row[key] == value for key, value in wanted.items())]


def chosen(kept: list[dict[str, Any]], latents: str, estimator: str) -> dict[str, Any] | None:
    """The setting that was best on the validation images; None until all four were tried."""
    tried = pick(kept, latents=latents, estimator=estimator, seed=TUNING_SEED)
    if len(tried) < len(candidates(estimator)):
        return None
    best = min(tried, key=lambda row: row["validation"])
    return {"learning_rate": best["learning_rate"], "temperature": best["temperature"]}


def wanted(latents: list[str], estimators: list[str]) -> list[tuple[str, str, int, int]]:
    """(latents, estimator, candidate or −1 for the chosen one, seed), tuning before its use."""
    jobs = []
    for size in latents:
        names = [name for name in estimators if (name, size) not in LEFT_OUT]
        for name in names:
            jobs += [(size, name, i, TUNING_SEED) for i in range(len(candidates(name)))]
        # Seeds outside, so that the clock of one hour does not favour an estimator.
        jobs += [(size, name, -1, seed) for seed in range(SEEDS) for name in names]
    return jobs


def interval(values: list[float], digits: int = 1) -> str:
    """Mean, and half the width of its 95 % Student interval from two seeds on, as text."""
    from scipy.stats import t

    n, mean = len(values), f"{statistics.mean(values):.{digits}f}"
    if n == 1:
        return mean
    return f"{mean} ± {t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5:.{digits}f}"


def table(kept: list[dict[str, Any]]) -> str:
    """One block for each size of the latents."""
    blocks = []
    for latents in LATENTS:
        lines = [
            f"{latents:18s} {'seeds':>5s} {'test −ELBO':>17s} {'train −ELBO':>17s} {'KL':>6s} "
            f"{'ms/epoch':>9s} {'rate':>6s} {'τ':>4s}"
        ]
        for name in ESTIMATORS:
            if (name, latents) in LEFT_OUT:
                lines.append(f"{name:18s} left out: {LEFT_OUT[name, latents]}")
                continue
            setting = chosen(kept, latents, name)
            if setting is None:
                continue
            runs = pick(kept, latents=latents, estimator=name, **setting)
            runs = [row for row in runs if row["seed"] != TUNING_SEED]
            if not runs:
                continue
            cells = ""
            for part in ("test", "train"):
                cells += f" {interval([row[part] for row in runs]):>17s}"
            kl = statistics.mean(row["kl"] for row in runs)
            clock = statistics.median(row["epoch_milliseconds"] for row in runs)
            tau = "" if setting["temperature"] is None else f"{setting['temperature']:g}"
            lines.append(
                f"{name:18s} {len(runs):5d}{cells} {kl:6.2f} {clock:9.0f} "
                f"{setting['learning_rate']:6g} {tau:>4s}"
            )
            if name == "softmax":
                seen = interval([row["as_trained"] for row in runs])
                lines.append(f"{'  decoding π':18s} {len(runs):5d} {seen:>17s}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def main() -> None:
    """Run what is missing, store and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latents", action="append", choices=LATENTS, help="these alone")
    parser.add_argument("--estimator", action="append", choices=ESTIMATORS, help="these alone")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    began = time.monotonic()
    jobs = wanted(options.latents or list(LATENTS), options.estimator or list(ESTIMATORS))
    for latents, name, index, seed in [] if options.tables else jobs:
        if time.monotonic() - began > 60 * options.minutes:
            break
        kept = load()
        setting = candidates(name)[index] if index >= 0 else chosen(kept, latents, name)
        assert setting is not None, "its candidates stand before it among the jobs"
        if pick(kept, latents=latents, estimator=name, seed=seed, **setting):
            continue
        row = run(latents, name, setting, seed)
        keep(row)
        print(latents, name, setting, "seed", seed, row["test"], flush=True)
    pixels = f"independent pixels, test: {independent_pixels():.1f}"
    note = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread; processor time"
    text = f"$ python -m benchmarks.discrete_vae\n{table(load())}\n\n{pixels}\n{note}\n"
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
