"""One sentence for every wrong name or number: what was given, what is allowed, which was meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


class DoesNotApply(ValueError):
    """What was asked for cannot be had with these actions, observations or this environment: no
    mistake in a value, and a comparison goes on without it."""


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """Build (not raise) the error for a name that is not among `allowed`."""
    names = sorted(allowed)
    close = get_close_matches(str(given).lower(), names, n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ValueError(f"unknown {kind} {given!r}{hint}; allowed: {', '.join(names)}")


def is_number(value: object) -> bool:
    """Is it a real number, Python's or NumPy's? A bool is not a number here."""
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)


def is_one(value: object) -> bool:
    """Is it the number 1? A tensor is not, whose value would have to be waited for."""
    return is_number(value) and value == 1.0


def finite(name: str, value: Any) -> float:
    """Return `value` as a float, or raise when it is not a finite number."""
    if not is_number(value) or not -_INF < value < _INF:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return `value` as a float, or raise when it is not a finite number > 0 (>= 0 with zero)."""
    if not is_number(value) or not 0 <= value < _INF or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0, got {value!r}")
    return float(value)


def fraction(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """Return `value` as a float, or raise when it is outside [0, 1], an end left out if so told."""
    inside = is_number(value) and 0 <= value <= 1
    if not inside or (value == 0 and not zero) or (value == 1 and not one):
        low, high = "[0" if zero else "(0", "1]" if one else "1)"
        raise ValueError(f"{name} must be in {low}, {high}, got {value!r}")
    return float(value)


def integer(name: str, value: Any, low: int) -> int:
    """Return `value` as an int, or raise when it is not an integer >= `low`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return int(value)


_INF = float("inf")
