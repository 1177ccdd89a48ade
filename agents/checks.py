"""Argument checks that say what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from gumbelrl.gumbel import Schedule, make_schedule
from gumbelrl.gumbel.choices import DoesNotApply, unknown_name
from gymnasium import spaces


def check_int(name: str, value: object, *, minimum: int) -> int:
    """`value` if it is an integer >= minimum, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def check_float(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a float inside the interval, else ValueError naming the interval."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    inside = (
        math.isfinite(number)
        and (low < number if open_low else low <= number)
        and (number < high if open_high else number <= high)
    )
    if not inside:
        left, right = "(" if open_low else "[", ")" if open_high or high == math.inf else "]"
        raise ValueError(
            f"{name} must be a number in {left}{low:g}, {high:g}{right}, got {value!r}"
        )
    return number


def check_choice(name: str, value: str, allowed: Collection[str]) -> str:
    """`value` if allowed, else ValueError naming the allowed values and the nearest one."""
    if value not in allowed:
        raise unknown_name(name, value, allowed)
    return value


def check_schedule(name: str, spec: object) -> Callable[[float], float]:
    """A positive number, a schedule, its settings (rates in [0, 1], so that it may end at 0), or
    Stable-Baselines3's function of the remaining progress, as a function of progress; else
    ValueError naming it."""
    if callable(spec) and not isinstance(spec, Schedule):
        return lambda progress: spec(1.0 - progress)
    return make_schedule(spec, name, unit=isinstance(spec, Mapping))


def check_observation_space(space: spaces.Space) -> None:
    """Raise DoesNotApply, naming the remedy, for observations that the networks cannot read."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    for part in parts:
        if isinstance(part, spaces.Dict | spaces.Tuple):
            raise DoesNotApply(
                f"observations must be an array or a dictionary of arrays, got {space}; wrap the "
                "environment in gymnasium.wrappers.FlattenObservation"
            )
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and np.any(part.start):
            raise DoesNotApply(
                f"discrete observations must count from 0, got {part}; subtract its start in a "
                "wrapper such as gymnasium.wrappers.TransformObservation"
            )
        if isinstance(part, spaces.Box) and not part.shape:
            raise DoesNotApply(
                f"observations must have an axis, got the scalar {part}; wrap the environment in "
                "gymnasium.wrappers.ReshapeObservation with shape (1,)"
            )
