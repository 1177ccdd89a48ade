"""Where the time of training goes: a clock of phases, and what belongs to which.

An agent's update says `phase("critic")` where its next part begins, which costs a look at one
variable while nobody listens. Everything else is told apart from outside: `timed_methods` names the
methods, and a `PhaseClock` is put around them for as long as it is in use.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gumbelrl.agents.episode_counter import EpisodeCounter
from gumbelrl.agents.episodes import StepStore
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

PHASES = (
    "environment",
    "acting",
    "replay: add",
    "replay: sample",
    "rollout",
    "targets",
    "critic",
    "actor",
    "optimiser",
    "training",
    "trust meter",
    "logging",
    "evaluation",
    "checkpoints",
    "rest",
)
"""In the order in which they are shown. `training` is what of an update no other phase holds."""

REST = "rest"
_listener: Callable[[str], None] | None = None


def phase(name: str) -> None:
    """Say that a part of an update begins: "targets", "critic", "actor", "optimiser"."""
    if _listener is not None:
        _listener(name)


class TimedMethod(NamedTuple):
    """A method whose calls belong to a phase; `whole`: with all that happens inside."""

    owner: Any
    name: str
    phase: str
    whole: bool = False


@dataclass(frozen=True)
class Times:
    """Seconds and calls by phase; the seconds add up to the whole, `rest` among them."""

    seconds: Mapping[str, float]
    calls: Mapping[str, int]

    @property
    def total(self) -> float:
        """Seconds from the beginning to the end."""
        return sum(self.seconds.values())


class PhaseClock:
    """Gives every moment to exactly one phase: the innermost that is open.

    Phases open when a method of theirs is called and close when it returns. A call of a phase from
    inside itself is no further call, and what happens inside a `whole` one belongs to that. So
    nothing is counted twice, and the phases add up to the whole.

    Args:
        now: seconds, of a clock that does not go back.
        settle: called before each look at it, such as to wait for a GPU.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self._now, self._settle = now, settle
        self._open = [REST]
        self._whole = False
        self.restart()

    def restart(self) -> None:
        """Forget what was counted; what is open stays open."""
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._since = self._look()

    def read(self) -> Times:
        """What was counted until now."""
        self._charge()
        return Times(dict(self._seconds), dict(self._calls))

    @contextmanager
    def around(self, methods: Sequence[TimedMethod]) -> Iterator[None]:
        """Let calls of these methods, and the marks of `phase`, count; puts all back at the end."""
        global _listener
        with ExitStack() as undo:
            for method in methods:
                undo.callback(self._wrap(method))
            before, _listener = _listener, self.mark
            try:
                yield
            finally:
                _listener = before

    def mark(self, name: str) -> None:
        """Go over to another phase inside the method that is open."""
        if len(self._open) > 1 and not self._whole:
            self._charge()
            self._open[-1] = name
            self._calls[name] = self._calls.get(name, 0) + 1

    def _wrap(self, method: TimedMethod) -> Callable[[], None]:
        owner, name, belongs_to, whole = method
        called: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(called)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._whole:
                return called(*args, **kwargs)
            inside = self._open[-1] == belongs_to
            if not inside:
                self._charge()
                self._calls[belongs_to] = self._calls.get(belongs_to, 0) + 1
            self._open.append(belongs_to)
            self._whole = whole
            try:
                return called(*args, **kwargs)
            finally:
                if not inside or self._open[-1] != belongs_to:
                    self._charge()
                self._open.pop()  # whatever was marked inside ends with it
                self._whole = False  # a whole one is never inside another

        own = name in vars(owner)
        setattr(owner, name, timed)
        return lambda: setattr(owner, name, called) if own else delattr(owner, name)

    def _look(self) -> float:
        if self._settle is not None:
            self._settle()
        return self._now()

    def _charge(self) -> None:
        now, open_now = self._look(), self._open[-1]
        self._seconds[open_now] = self._seconds.get(open_now, 0.0) + now - self._since
        self._since = now


def timed_methods(agent: BaseAlgorithm) -> list[TimedMethod]:
    """Whose calls make the phases of an agent's training; of the shelf's too.

    Those of environments and callbacks are wrapped in their classes, because both may be made anew
    while training goes on.
    """
    env = agent.get_env()
    drivers = (getattr(agent, "driver", None), None if env is None else _attribute(env, "driver"))
    methods = [
        *_of(type(env), "environment", "step", "reset"),
        *(
            method
            for driver in drivers
            if driver is not None
            for method in _of(type(driver), "environment", "step", "reset", "observe")
        ),
        *_of(BaseCallback, "logging", "on_step", "on_rollout_start", "on_rollout_end"),
        *_of(BaseCallback, "logging", "update_locals"),
        *_of(EpisodeCounter, "logging", "add", "count", "keep", "report"),
        *_of(agent, "training", "train", "_update"),
        *_of(_attribute(agent, "metrics"), "logging", "add"),
        *_of(agent, "logging", "dump_logs"),
    ]
    trust = _attribute(agent, "trust")
    if trust is not None:
        methods.append(TimedMethod(trust, "measure", "trust meter", whole=True))
    if isinstance(agent, OffPolicyAlgorithm):
        replay = agent.replay_buffer
        methods += [
            *_of(agent, "acting", "_sample_action", "_explore"),
            *_of(agent, "replay: add", "_store_transition"),
            *_of(replay, "replay: add", "add_step"),
            *_of(replay, "replay: sample", "sample"),
        ]
        if hasattr(agent, "q_net_target"):  # DQN and its like move it there
            methods.append(TimedMethod(agent, "_on_step", "targets"))
    elif isinstance(agent, OnPolicyAlgorithm):
        methods += [
            *_of(agent, "acting", "collect_rollouts"),
            *_of(agent, "rollout", "_finish"),
            *_of(StepStore, "rollout", "add"),
            *_of(agent.rollout_buffer, "rollout", "add", "compute_returns_and_advantage"),
        ]
    else:
        methods += [
            *_of(agent, "acting", "_unroll"),
            *_of(_attribute(agent.policy, "_modules").get("value_target"), "targets", "forward"),
        ]
    return methods


def _attribute(owner: Any, name: str) -> Any:
    """Its own attribute, not what a wrapper would look up further inside."""
    return getattr(owner, "__dict__", {}).get(name)


def _of(owner: Any, belongs_to: str, *names: str) -> list[TimedMethod]:
    """Those of the methods that the owner has."""
    return [TimedMethod(owner, name, belongs_to) for name in names if hasattr(owner, name)]
