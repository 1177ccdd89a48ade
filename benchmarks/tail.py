"""The far tail of the noise: does an improbable action appear at its rate?

1. Maxima of 300 blocks of 2^20 draws, minus 20 log 2, are again Gumbel: KS test, and how many lie
   beyond 2.78, for our noise and for a source of 24-bit uniforms.
2. 262,144 categories, one of them 20.5 nats ahead of all others: how often it loses, against
   1 − 1/(1 + 262,143 e^−20.5).
3. 10^8 draws: no NaN, no inf.

    python -m benchmarks.tail [--rows 60000]
"""

import argparse
import math
import time

import torch
from gumbelrl.gumbel import gumbel_noise
from scipy import stats
from torch import Tensor

SIZE, GAP = 262_144, 20.5


def capped(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """−log(−log(1 − u)) of a 24-bit u, its zeros lifted out of the way."""
    u = torch.rand(shape, generator=generator).clamp_(min=2.0**-24)
    return -torch.log(-torch.log1p(-u))


SOURCES = {"gumbelrl": gumbel_noise, "24-bit uniforms": capped}


def losses(source: str, rows: int) -> int:
    """Rows in which the favourite loses; only the largest of the others matters."""
    generator = torch.Generator().manual_seed(0)
    lost = 0
    for _ in range(rows):
        noise = SOURCES[source]((SIZE,), generator)
        lost += int(noise[1:].max() > noise[0] + GAP)
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    args = parser.parse_args()
    torch.set_num_threads(1)

    print("maxima of 300 blocks of 2^20 draws")
    for name, source in SOURCES.items():
        generator = torch.Generator().manual_seed(0)
        maxima = torch.stack([source((2**20,), generator).max() for _ in range(300)])
        maxima -= 20 * math.log(2)
        p = stats.kstest(maxima.numpy(), "gumbel_r").pvalue
        beyond = int((maxima > 2.78).sum())
        print(f"  {name:16s} KS p = {p:.3g}, beyond 2.78: {beyond} (about 18 belong)")

    rate = 1 - 1 / (1 + (SIZE - 1) * math.exp(-GAP))
    mean = rate * args.rows
    print(f"{SIZE:,} categories, favourite ahead by {GAP} nats, {args.rows:,} rows")
    print(f"  expected losses {mean:.1f} ± {mean**0.5:.1f}")
    for name in SOURCES:
        print(f"  {name:16s} {losses(name, args.rows)}", flush=True)

    begin, bad, top = time.thread_time(), 0, -math.inf
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        noise = gumbel_noise((1_000_000,), generator)
        bad += int((~noise.isfinite()).sum())
        top = max(top, noise.max().item())
    seconds = time.thread_time() - begin
    print(f"10^8 draws: {bad} NaN or inf, largest {top:.2f}; {10 * seconds:.1f} ns each, checked")


if __name__ == "__main__":
    main()
