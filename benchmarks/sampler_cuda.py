"""The fused sampler on a GPU beside `F.gumbel_softmax` and the memory floor, in one run.

    python -m benchmarks.sampler_cuda [--milliseconds 40] [--out FILE]

Forward: logits to one-hot. Backward: ∂⟨one_hot, g⟩/∂logits. Each is a captured CUDA graph over as
many input sets as exceed the cache, replayed until `--milliseconds` are full, three rounds in turn
with the others; the median counts. The floor is 8 and 12 bytes per float32 logit (4 and 6 in
bfloat16) at the bandwidth of the faster of two device copies in the same run. The profiler counts
launches; time on the host is that of eager calls, which do not wait.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gumbelrl.gumbel import FactoredCategorical, gumbel_softmax, make_estimator
from torch import Tensor

SIZES = ((4096, 18), (65536, 64), (4096, 32768), (2**20, 8))
KINDS = ("straight_through", "gumbel_rao", "gapped_st", "reinmax")
CACHE = 128 * 2**20  # bytes that no Hopper cache holds
Sampler = Callable[[Tensor], Tensor]


def samplers() -> dict[str, Sampler]:
    """Name -> logits [R, K] to one-hot [R, K] with a gradient."""
    compiled = torch.compile(lambda x: F.gumbel_softmax(x, hard=True), dynamic=False)
    calls: dict[str, Sampler] = {
        "F.gumbel_softmax": lambda x: F.gumbel_softmax(x, hard=True),
        "F.gumbel_softmax compiled": compiled,
        "gumbel_softmax": lambda x: gumbel_softmax(x),
    }
    for kind in KINDS:
        estimator = make_estimator(kind)
        calls[kind] = lambda x, e=estimator: e.rsample(FactoredCategorical(x, validate=False))  # type: ignore[misc]
    return calls


def inputs(size: tuple[int, int], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(logits, g) sets that together exceed the cache, at most 16."""
    bytes_each = size[0] * size[1] * dtype.itemsize
    count = min(max(1, -(-CACHE // bytes_each)), 16)
    return [
        (
            torch.randn(size, device="cuda", dtype=dtype).requires_grad_(),
            torch.randn(size, device="cuda", dtype=dtype),
        )
        for _ in range(count)
    ]


def capture(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """The work as a graph, after it has run twice on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph, budget: float) -> float:
    """Mean time of a replay."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    repeats = max(3, int(budget / max(begin.elapsed_time(end), 1e-3)))
    begin.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def bandwidth() -> float:
    """Bytes read and written per second, 1 GiB each: the best of the copy engine's and a kernel's
    time, medians of five."""
    x = torch.randn(2**28, device="cuda")
    y = torch.empty_like(x)
    ways = (capture(lambda: y.copy_(x)), capture(lambda: torch.neg(x, out=y)))
    times = [statistics.median(milliseconds(graph, 50) for _ in range(5)) for graph in ways]
    return 2 * x.nbytes / min(times) * 1e3


def launches(work: Callable[[], Any]) -> int:
    """Kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as result:
        work()
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == device for event in result.events())


def host_microseconds(work: Callable[[], Any], repeats: int = 200) -> float:
    """What a call costs the caller, which does not wait."""
    work()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / repeats * 1e6


def measure(
    size: tuple[int, int], dtype: torch.dtype, budget: float
) -> dict[str, tuple[float, float]]:
    """Median microseconds of one call, (forward, backward) by sampler."""
    sets = inputs(size, dtype)
    graphs: dict[str, tuple[Any, Any]] = {}
    for name, sampler in samplers().items():

        def forward(sampler: Sampler = sampler) -> None:
            for x, _ in sets:
                sampler(x)

        def both(sampler: Sampler = sampler) -> None:
            for x, g in sets:
                torch.autograd.grad(sampler(x), x, g)

        graphs[name] = capture(forward), capture(both)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in graphs}
    for _ in range(3):
        for name, pair in graphs.items():
            first, second = (milliseconds(graph, budget) * 1e3 / len(sets) for graph in pair)
            times[name].append((first, second - first))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))  # type: ignore[misc]
        for name, rows in times.items()
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--milliseconds", type=float, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "sampler_cuda needs a CUDA device; on the CPU: benchmarks.sampler_speed\n")
    torch.manual_seed(0)
    rate = bandwidth()
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
        f"copy bandwidth {rate / 1e12:.2f} TB/s",
        "microseconds; `floor` is the row over the memory floor, `gain` eager F.gumbel_softmax "
        "over the row",
        f"{'size':>12s} {'dtype':8s} {'call':26s}{'forward':>9s}{'floor':>7s}{'gain':>7s}"
        f"{'backward':>10s}{'floor':>7s}{'gain':>7s}{'both gain':>11s}",
    ]
    print("\n".join(lines), flush=True)
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            torch._dynamo.reset()
            floor = size[0] * size[1] * dtype.itemsize / rate * 1e6  # of one pass over the logits
            rows = measure(size, dtype, args.milliseconds)
            eager = rows["F.gumbel_softmax"]
            for name, (forward, backward) in rows.items():
                line = (
                    f"{size[0]:>7d}×{size[1]:<5d}{str(dtype).removeprefix('torch.'):8s} {name:26s}"
                    f"{forward:9.1f}{forward / (2 * floor):7.2f}{eager[0] / forward:7.2f}"
                    f"{backward:10.1f}{backward / (3 * floor):7.2f}{eager[1] / backward:7.2f}"
                    f"{sum(eager) / (forward + backward):11.2f}"
                )
                print(line, flush=True)
                lines.append(line)
            torch.cuda.empty_cache()
    lines.append("\none call at 4096×18 float32: launches and microseconds on the host")
    x = torch.randn(4096, 18, device="cuda", requires_grad=True)
    g = torch.randn_like(x)
    for name, sampler in samplers().items():

        def both(sampler: Sampler = sampler) -> None:
            torch.autograd.grad(sampler(x), x, g)

        def forward(sampler: Sampler = sampler) -> None:
            sampler(x)

        one, two = launches(forward), launches(both)
        lines.append(
            f"{name:26s} forward {one:3d} launches {host_microseconds(forward):7.1f} µs   "
            f"forward and backward {two:3d} launches {host_microseconds(both):7.1f} µs"
        )
    print("\n".join(lines[-len(samplers()) - 1 :]))
    if args.out is not None:
        args.out.write_text("$ python -m benchmarks.sampler_cuda\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
