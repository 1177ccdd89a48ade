"""Time of one sample with its gradient, beside the peers, in one run on one core.

Forward: logits to one-hot. Backward: the gradient of ⟨one_hot, g⟩ to the logits. Each call is timed
in an interleaved loop (ours, then each peer, then ours again …) and the median of the rounds is
printed, so that a slow moment of the machine falls on all of them; the clock is the thread's
processor time, which other work on the machine does not add to. Input checks are on, as by default
on the CPU.

    python -m benchmarks.sampler_speed [--rounds 15]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gumbelrl.gumbel import FactoredCategorical, gumbel_softmax, make_estimator
from torch import Tensor
from torch.distributions import OneHotCategoricalStraightThrough

SIZES = ((256, 2), (256, 18), (4096, 18), (65536, 64))

st_gumbel = make_estimator("st_gumbel")
straight_through = make_estimator("straight_through")


def peers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> logits [B, K] to one-hot [B, K] with a gradient."""
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "gumbel_softmax": lambda x: gumbel_softmax(x),
        "st_gumbel.rsample": lambda x: st_gumbel.rsample(FactoredCategorical(x)),
        "straight_through.rsample": lambda x: straight_through.rsample(FactoredCategorical(x)),
        "F.gumbel_softmax": lambda x: F.gumbel_softmax(x, hard=True),
        "torch.distributions ST": lambda x: OneHotCategoricalStraightThrough(logits=x).rsample(),
    }
    try:
        from pyro.distributions import RelaxedOneHotCategoricalStraightThrough
    except ImportError:
        return calls
    tau = torch.tensor(1.0)
    calls["Pyro ST-GS"] = lambda x: RelaxedOneHotCategoricalStraightThrough(tau, logits=x).rsample()
    return calls


def measure(size: tuple[int, int], rounds: int) -> dict[str, tuple[float, float]]:
    """Median microseconds (forward, forward and backward) of every call."""
    torch.manual_seed(0)
    x = torch.randn(size, requires_grad=True)
    g = torch.randn(size)
    calls = peers()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    repeats = max(1, 200_000 // (size[0] * size[1]))
    repeats = min(repeats, 200)
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.thread_time()
            for _ in range(repeats):
                y = call(x)
            middle = time.thread_time()
            for _ in range(repeats):
                y = call(x)
                torch.autograd.grad(y, x, g)
            end = time.thread_time()
            times[name].append(((middle - begin) / repeats, (end - middle) / repeats))
    return {
        name: tuple(1e6 * statistics.median(column) for column in zip(*rows, strict=True))  # type: ignore[misc]
        for name, rows in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("microseconds of processor time; `gain`: F.gumbel_softmax(hard=True) over the row")
    head = f"{'size':>12s}  {'call':26s}{'forward':>10s}{'fwd+bwd':>10s}"
    print(head + f"{'gain fwd':>10s}{'gain both':>11s}")
    for size in SIZES:
        rows = measure(size, args.rounds)
        peer = rows["F.gumbel_softmax"]
        for name, (forward, both) in rows.items():
            print(
                f"{size[0]:>7d}×{size[1]:<4d}  {name:26s}{forward:10.1f}{both:10.1f}"
                f"{peer[0] / forward:10.2f}{peer[1] / both:11.2f}"
            )


if __name__ == "__main__":
    main()
