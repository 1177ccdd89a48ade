"""A gradient step as a CUDA graph: hundreds of small operations, launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # eager runs before the capture: optimisers, libraries and kernels set themselves up

Work = Callable[[], dict[str, Tensor]]


class CapturedStep:
    """Runs `work` eagerly a few times, records it once, and replays the recording from then on.

    The work reads and writes tensors that stay where they are, waits for nothing, and draws from
    registered generators alone, whose streams go on as if it had run eagerly: both give the same
    result. What it returns lies in the recording's own memory until the next run.

    Args:
        generators: that the work draws from, on the CUDA device.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators
        self._key: Hashable = None
        self._eager_runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._returned: dict[str, Tensor] = {}

    def run(self, key: Hashable, work: Work) -> dict[str, Tensor]:
        """Do the work; `key` holds every value outside tensors that it depends on, and another key
        means another recording."""
        if key != self._key:
            self.forget()
            self._key = key
        if self._graph is None:
            self._eager_runs += 1
            if self._eager_runs <= WARM_UP:
                return work()
            self._capture(work)
        assert self._graph is not None
        self._graph.replay()
        return self._returned

    def forget(self) -> None:
        """Drop the recording: tensors it knew have been replaced."""
        self._key, self._graph, self._returned, self._eager_runs = None, None, {}, 0

    def _capture(self, work: Work) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Threads of trackers may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._returned = work()
        self._graph = graph
