"""A gradient step as a CUDA graph: hundreds of small operations, launched as one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # eager runs before the capture: optimisers, libraries and kernels set themselves up

T = TypeVar("T")  # what the work returns: tensors, however they are put together
U = TypeVar("U")
V = TypeVar("V")
C = TypeVar("C", bound="CapturedStep[Any] | CapturedPair[Any, Any]")

_log = logging.getLogger(__name__)


class CapturedStep(Generic[T]):
    """Runs `work` eagerly a few times, records it once, and replays the recording from then on.

    The work reads and writes tensors that stay where they are, waits for nothing, and draws from
    registered generators alone, whose streams go on as if it had run eagerly: both give the same
    result. What it returns lies in the recording's own memory until the next run.

    Args:
        generators: that the work draws from, on the CUDA device.

    Attributes:
        waits_at: file and line where the work was seen to wait for the device, which cannot be
            recorded; None where it was not, or was not looked at yet.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators
        self._key: Hashable = None
        self._eager_runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._returned: T | None = None
        self.waits_at: str | None = None

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do the work; `key` holds every value outside tensors that it depends on, and another key
        means another recording."""
        if key != self._key:
            self.forget()
            self._key = key
        if self._graph is None:
            self._eager_runs += 1
            if self._eager_runs < WARM_UP:
                return work()
            if self._eager_runs == WARM_UP:
                with _watched_for_waits() as places:
                    returned = work()
                self.waits_at = places[0] if places else None
                return returned
            self._capture(work)
        assert self._graph is not None
        self._graph.replay()
        assert self._returned is not None
        return self._returned

    def forget(self) -> None:
        """Drop the recording: tensors it knew have been replaced."""
        self._key, self._graph, self._returned, self._eager_runs = None, None, None, 0

    def _capture(self, work: Callable[[], T]) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Threads of trackers may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._returned = work()
        self._graph = graph


class CapturedPair(Generic[T, U]):
    """Two `CapturedStep`s in turns, between which the host may look at what the first one gave. The
    second differentiates through it, whose graph is at hand while both are recorded.

    Args:
        generators: as `CapturedStep` takes them.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._first: CapturedStep[T] = CapturedStep(generators)
        self._second: CapturedStep[U] = CapturedStep(generators)
        self._key: Hashable = None
        self._between = False

    @property
    def waits_at(self) -> str | None:
        """Where the first work waits for the device, see `CapturedStep`."""
        return self._first.waits_at

    def first(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do the first work; `key` as in `CapturedStep.run`, for both."""
        if self._between:  # the second was never called, so they are out of step
            self.forget()
        self._key, self._between = key, True
        return self._first.run(key, work)

    def second(self, work: Callable[[], U]) -> U:
        """Do the second work."""
        self._between = False
        return self._second.run(self._key, work)

    def forget(self) -> None:
        """Drop both recordings."""
        self._first.forget()
        self._second.forget()
        self._between = False


def unless_it_waits(captured: C, who: str, what: str) -> C | None:
    """`captured`; None, with a warning, where its work was seen to wait for the device.

    Args:
        who: waits for the device.
        what: goes on operation by operation, "windows run".
    """
    if captured.waits_at is None:
        return captured
    _log.warning(
        "%s waits for the GPU at %s, so %s operation by operation and not as a CUDA graph; the "
        "results are the same",
        who,
        captured.waits_at,
        what,
    )
    return None


class HeldInputs:
    """What a recording reads and others make anew each time: copied into tensors that stay.

    Attributes:
        version: another number after inputs of other shapes, with which a recording is void.
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[str, Tensor]] = {}
        self.version = 0

    def take(self, name: str, given: V) -> V:
        """The tensors of that name which stay, with the values given: a tensor, a dictionary of
        them, or None."""
        if given is None:
            return given
        parts: dict[str, Tensor] = given if isinstance(given, dict) else {"": given}  # type: ignore[dict-item]
        held = self._held.get(name)
        if held is not None and all(_alike(held[key], part) for key, part in parts.items()):
            torch._foreach_copy_(list(held.values()), [parts[key] for key in held])
        else:
            held = self._held[name] = {key: part.clone() for key, part in parts.items()}
            self.version += 1
        return held if isinstance(given, dict) else held[""]  # type: ignore[return-value]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


class HeldAttributes:
    """Attributes that work moves on by replacing them, such as a state, held in tensors that stay.

    Args:
        attributes: owner and name of each; tensors whose shapes stay alike.
    """

    def __init__(self, *attributes: tuple[Any, str]) -> None:
        self._attributes = attributes
        self._held: list[Tensor] = []

    def now(self) -> list[Tensor]:
        """The attributes' tensors, without their graphs."""
        return [getattr(owner, name).detach() for owner, name in self._attributes]

    def hold(self) -> None:
        """Go over to the tensors that stay, with the values of now."""
        if not self._held:
            self._held = [tensor.clone() for tensor in self.now()]
        for (owner, name), held in zip(self._attributes, self._held, strict=True):
            if getattr(owner, name) is not held:
                held.copy_(getattr(owner, name).detach())
        self._put(self._held)

    def move(self, work: Callable[[], T]) -> T:
        """Do the work from copies, and take what it leaves into the tensors that stay."""
        self._put([tensor.clone() for tensor in self._held])
        returned = work()
        for held, reached in zip(self._held, self.now(), strict=True):
            held.copy_(reached)
        self._put(self._held)
        return returned

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for (owner, name), tensor in zip(self._attributes, tensors, strict=True):
            setattr(owner, name, tensor)


@contextmanager
def _watched_for_waits() -> Iterator[list[str]]:
    """Fills the list with the places, file:line, where the host waits for the device inside."""
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in seen:
        if "synchronizing CUDA operation" in str(warning.message):
            places.append(f"{warning.filename}:{warning.lineno}")
        elif "ynchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
