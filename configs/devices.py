"""Where a run computes: what `device=` stands for, and whether the CPU would be faster."""

from __future__ import annotations

import re
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

AUTO = "auto"
WARM_UP, UPDATES = 3, 15  # of a throw-away perceptron
MOST_SECONDS = 0.2  # that measuring one device may take beyond its warm-up
MARGIN = 0.9  # of the GPU's time: what the CPU must stay below to be called faster
ROLLOUT_ROWS = 512  # where an update takes whole episodes, whose length is not known yet


def select_device(name: str, resumed: str | None = None) -> str:
    """`auto` is CUDA where there is one; ConfigError for a device that torch does not have.

    Args:
        name: auto, cpu, cuda or cuda:N.
        resumed: the run folder that goes on there, for the message.
    """
    import torch
    from gumbelrl.configs.compose import ConfigError

    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if kind is None:
        raise ConfigError(f"device={name} is unknown: use auto, cpu, cuda or cuda:N")
    n_devices = torch.cuda.device_count()
    if name != "cpu" and int(kind[1] or 0) >= n_devices:
        seen = f"this torch sees {n_devices} CUDA devices"
        if resumed is not None:
            raise ConfigError(
                f"the run in {resumed} would go on with device={name}, but {seen}; to go on on the "
                f"CPU, type {shlex.quote(f'resume={resumed}')} device=cpu"
            )
        raise ConfigError(
            f"device={name}, but {seen}: use device=auto or device=cpu, or install a CUDA build of "
            "torch"
        )
    return name


def update_size(agent: BaseAlgorithm) -> tuple[list[int], int] | None:
    """Widths of the agent's first perceptron, inputs and outputs included, and rows of an update.

    None where convolutions would decide.
    """
    from gumbelrl.agents.networks import EnsembleLinear
    from torch import nn

    widths: list[int] = []
    for layer in agent.policy.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return None
        if isinstance(layer, nn.Linear):
            n_in, n_out = layer.in_features, layer.out_features
        elif isinstance(layer, EnsembleLinear):
            n_in, n_out = layer.weight.shape[-2:]
        else:
            continue
        if widths and n_in != widths[-1]:
            break  # the next network begins
        widths = [*(widths or [n_in]), n_out]
    if not widths:
        return None
    batch_size: int | None = getattr(agent, "batch_size", None)
    if batch_size is None:
        steps = getattr(agent, "horizon", getattr(agent, "n_steps", ROLLOUT_ROWS))
        batch_size = min(steps, ROLLOUT_ROWS) * agent.n_envs
    return widths, batch_size


def update_seconds(widths: Sequence[int], rows: int, device: str) -> float:
    """Median seconds of one update of a throw-away perceptron: forward, backward, Adam.

    Random streams are left as they were.

    Args:
        widths: inputs, hidden layers, outputs; at least two.
        rows: of the batch.
        device: where; its work is waited for.
    """
    import torch
    from gumbelrl.agents.optimization import Adam

    on = torch.device(device)
    wait = torch.cuda.synchronize if on.type == "cuda" else (lambda _: None)
    with torch.random.fork_rng([on] if on.type == "cuda" else []):
        layers: list[torch.nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        net = torch.nn.Sequential(*layers[:-1]).to(on)
        adam = Adam(net.parameters(), lr=1e-3)
        batch = torch.rand(rows, widths[0], device=on)
        seconds: list[float] = []
        for number in range(WARM_UP + UPDATES):
            wait(on)
            began = time.perf_counter()
            adam.zero_grad()
            net(batch).square().mean().backward()
            adam.step()
            wait(on)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - began)
            if sum(seconds) > MOST_SECONDS:
                break
    return statistics.median(seconds)


def faster_on_cpu(
    agent: BaseAlgorithm,
    device: str,
    measure: Callable[[Sequence[int], int, str], float] | None = None,
) -> str | None:
    """A line for the user where the CPU is faster than the device that `auto` took.

    Args:
        agent: already on it; its sizes are what is measured.
        device: cpu (nothing is said), cuda or cuda:N.
        measure: `update_seconds`.
    """
    if getattr(agent, "_captured", None) is not None:
        return None  # an eager perceptron says nothing about an update that is one CUDA graph
    size = update_size(agent) if device != "cpu" else None
    if size is None:
        return None
    there, here = ((measure or update_seconds)(*size, name) for name in (device, "cpu"))
    if here > MARGIN * there:
        return None
    net = "-".join(str(width) for width in size[0])
    return (
        f"device=auto took {device}, and this machine's CPU is faster at this size: "
        f"{1e3 * here:.2f} ms against {1e3 * there:.2f} ms for an update of a {net} perceptron on "
        f"{size[1]} rows. To train there: device=cpu"
    )
