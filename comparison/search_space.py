"""What a search may vary: ranges and choices of settings, read from plain data and checked.

agent.learning_rate: {low: 1e-4, high: 1e-2, log: true}   # fractions
agent.n_steps: {low: 16, high: 256, step: 16}             # whole numbers
agent.batch_size: [64, 128, 256]                          # one of these
agent: {policy_kwargs: {net_arch: [[64, 64], [256]]}}     # agent.policy_kwargs.net_arch
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from gumbelrl.configs.compose import ConfigError, check_config, nearest
from gumbelrl.configs.tuned_settings import in_hydra

_OF_A_RANGE = ("low", "high", "log", "step")
_FORM = "a list of values, or {low: ..., high: ...} with log: true or step: ..."
_VARIED = ("agent", "env")
# What a search is for, so not what it can vary.
_FIXED = {
    "agent._target_": "compare agents with compare.py",
    "env._target_": "search each kind of environment by itself",
    "env.id": "search each environment by itself",
}


class Suggests(Protocol):
    """Of an Optuna trial what a parameter needs: what it suggested once stays."""

    def suggest_float(self, name: str, low: float, high: float, **rest: Any) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, **rest: Any) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if these and the step are.

    Args:
        key: of train.py, such as `agent.learning_rate`.
        low: the least.
        high: the greatest.
        log: every factor alike, instead of every difference.
        step: between neighbouring values; None is any number between, or every whole one.
    """

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def suggest(self, trial: Suggests) -> Any:
        """The value of a trial."""
        if isinstance(self.low, int) and isinstance(self.high, int) and self.is_whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, self.low, self.high, step=step, log=self.log)
        return self.value_of(
            trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        )

    def value_of(self, stored: Any) -> Any:
        """The value, from what the study holds: a fraction to a thousandth, for people to read."""
        if self.is_whole or self.step is not None:
            return stored
        scale = self.high - self.low
        scale = min(scale, stored) if self.log else scale
        rounded = round(stored, 3 - math.floor(math.log10(scale)))
        return min(max(rounded, float(self.low)), float(self.high))

    def samples(self) -> list[Any]:
        """Values that train.py must take, if it takes all."""
        if self.is_whole:
            return [self.low, self.high]
        between = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [self.low, self.high, between if self.step is None else self.low + self.step]

    def size(self) -> float:
        """How many values there are."""
        step = self.step or (1 if self.is_whole else 0)
        return math.floor((self.high - self.low) / step + 1e-9) + 1 if step else math.inf

    def __str__(self) -> str:
        rest = " log" if self.log else "" if self.step is None else f" step {self.step:g}"
        return f"{self.key}: {self.low:g} to {self.high:g}{rest}"


@dataclass(frozen=True)
class Choice:
    """One of several values, without an order.

    Args:
        key: of train.py, such as `agent.estimator`.
        values: plain data, lists and mappings too.
    """

    key: str
    values: tuple[Any, ...]

    def suggest(self, trial: Suggests) -> Any:
        """The value of a trial."""
        texts = [as_text(value) for value in self.values]
        return self.value_of(trial.suggest_categorical(self.key, texts))

    def value_of(self, stored: Any) -> Any:
        """The value, from what the study holds: JSON's scalars are not enough."""
        return next(deepcopy(value) for value in self.values if as_text(value) == stored)

    def samples(self) -> list[Any]:
        """Values that train.py must take."""
        return list(self.values)

    def size(self) -> float:
        """How many values there are."""
        return len(self.values)

    def __str__(self) -> str:
        return f"{self.key}: {' | '.join(map(as_text, self.values))}"


Parameter = Range | Choice


def as_text(value: Any) -> str:
    """A choice as the study and the table of trials name it."""
    return value if isinstance(value, str) else in_hydra(value)


def as_data(space: Sequence[Parameter]) -> list[dict[str, Any]]:
    """Plain data that is the same for the same space."""
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
        for data in map(asdict, space)
    ]


def read_space(content: Any) -> tuple[Parameter, ...]:
    """The parameters of a space, in its order.

    Raises:
        ConfigError: not of the form above; names the key.
    """
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            "space is empty: give what to vary, such as "
            "agent.learning_rate: {low: 1e-4, high: 1e-2, log: true}"
        )
    space = tuple(_parameters(content))
    keys = [parameter.key for parameter in space]
    for key in keys:
        _check_key(key)
        if keys.count(key) > 1:
            raise ConfigError(f"space: {key} stands there twice")
        inside = next((other for other in keys if other.startswith(f"{key}.")), None)
        if inside is not None:
            raise ConfigError(f"space: {inside} lies in {key}, which is varied as a whole")
    return space


def _check_key(key: str) -> None:
    group, _, rest = key.partition(".")
    if key in _FIXED:
        raise ConfigError(f"space: {key} cannot be varied; {_FIXED[key]}")
    if group not in _VARIED or not all(rest.split(".")):
        raise ConfigError(
            f"space: {key} cannot be varied; a search is over settings of the agent and the "
            "environment, such as agent.learning_rate or env.n_envs"
        )


def _parameters(node: Mapping[Any, Any], above: str = "") -> Iterator[Parameter]:
    for name, given in node.items():
        key = f"{above}{name}"
        if isinstance(given, list):
            yield _choice(key, given)
        elif not isinstance(given, Mapping):
            raise ConfigError(f"space: {key} must be {_FORM}, got {given!r}")
        elif _is_range(given):
            yield _range(key, given)
        else:
            yield from _parameters(given, f"{key}.")


def _is_range(node: Mapping[Any, Any]) -> bool:
    """Rather than further keys: those hold lists and mappings."""
    scalars = not any(isinstance(value, list | Mapping) for value in node.values())
    return scalars or bool(set(node) & set(_OF_A_RANGE))


def _choice(key: str, given: list[Any]) -> Choice:
    values = tuple(map(_number_or_itself, given))
    texts = [as_text(value) for value in values]
    if len(values) < 2:
        raise ConfigError(
            f"space: {key} has {len(values) or 'no'} value{'s' * (not values)}, so there is "
            "nothing to search; give two or more, or set one in overrides"
        )
    for text in texts:
        if texts.count(text) > 1:
            raise ConfigError(f"space: {key} has the value {text} twice")
    return Choice(key, values)


def _range(key: str, given: Mapping[Any, Any]) -> Range:
    for name in given:
        if name not in _OF_A_RANGE:
            raise ConfigError(
                f"space: {key} has no key {name!r}{nearest(str(name), _OF_A_RANGE)} "
                f"Allowed: {', '.join(_OF_A_RANGE)}"
            )
    numbers: dict[str, Any] = {}
    for name in ("low", "high", "step"):
        number = _number_or_itself(given.get(name))
        if number is None and name == "step":
            continue
        if number is None:
            raise ConfigError(f"space: {key} has no {name}; it must be {_FORM}")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"space: {key}: {name} must be a number, got {number!r}")
        if not math.isfinite(number):
            raise ConfigError(f"space: {key}: {name} must be finite, got {number}")
        numbers[name] = number
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"space: {key}: log must be true or false, got {log!r}")
    found = Range(key, log=log, **numbers)
    if found.low >= found.high:
        raise ConfigError(
            f"space: {key}: low must be less than high, got low: {found.low}, high: {found.high}"
        )
    if log and found.low <= 0:
        raise ConfigError(f"space: {key}: low must be > 0 with log: true, got {found.low}")
    if found.step is not None and log:
        raise ConfigError(f"space: {key} has both step and log: true; give one of them")
    if found.step is not None and not 0 < found.step <= found.high - found.low:
        raise ConfigError(
            f"space: {key}: step must be > 0 and at most high - low, got {found.step}"
        )
    return found


def _number_or_itself(value: Any) -> Any:
    """YAML takes 1e-4 for text: its numbers with an exponent have a point."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def check_space(space: Sequence[Parameter], config: Mapping[str, Any]) -> None:
    """Refuse a key or a type that the agent and the environment do not take.

    Args:
        space: what is varied.
        config: a checked configuration of the search, with any values.

    Raises:
        ConfigError: names the key, and the value or the nearest key.
    """
    for parameter in space:
        for value in parameter.samples():
            try:
                check_config(_with(config, parameter.key, value))
            except ConfigError as error:
                raise ConfigError(f"space: {error}") from error
        if isinstance(parameter, Range) and parameter.is_whole and parameter.step is None:
            _refuse_doubt(parameter, config)


def _refuse_doubt(parameter: Range, config: Mapping[str, Any]) -> None:
    """`{low: 0, high: 1}` of a setting that takes fractions would try 0 and 1 alone."""
    try:
        check_config(_with(config, parameter.key, parameter.low + 0.5))
    except ConfigError:
        return  # it takes whole numbers only
    raise ConfigError(
        f"space: {parameter.key} takes fractions, and low: {parameter.low}, high: "
        f"{parameter.high} are whole numbers: give low: {float(parameter.low)} for all between, "
        "or step: 1 for whole numbers alone"
    )


def _with(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with another value there."""
    changed = deepcopy(dict(config))
    node: Any = changed
    *path, last = key.split(".")
    for name in path:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    node[last] = value
    return changed
