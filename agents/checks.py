"""Argument checks that say what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches

from gumbelrl.gumbel import Schedule, make_schedule


def check_int(name: str, value: object, *, minimum: int) -> int:
    """`value` if it is an integer >= minimum, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return value


def check_float(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a float inside the interval, else ValueError naming the interval."""
    inside = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (low < value if open_low else low <= value)
        and (value < high if open_high else value <= high)
    )
    if not inside:
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(
            f"{name} must be a number in {left}{low:g}, {high:g}{right}, got {value!r}"
        )
    return float(value)  # type: ignore[arg-type]


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """`value` if allowed, else ValueError naming the allowed values and the nearest one."""
    allowed = list(allowed)
    if value in allowed:
        return value
    near = get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def check_schedule(name: str, spec: object) -> Schedule:
    """A positive number or a schedule's settings as a schedule, else ValueError naming it."""
    if isinstance(spec, int | float):
        check_float(name, spec, low=0, open_low=True)
    try:
        return make_schedule(spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
