"""One sentence for every wrong name: what was given, what is allowed, which one was meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """Build (not raise) the error for a name that is not among `allowed`."""
    names = sorted(allowed)
    close = get_close_matches(str(given).lower(), names, n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ValueError(f"unknown {kind} {given!r}{hint}; allowed: {', '.join(names)}")


def positive(name: str, value: float) -> float:
    """Return `value`, or raise when it is not a finite number > 0 (a bool is not a number here)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _INF:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def fraction(name: str, value: float, *, zero: bool = True) -> float:
    """Return `value`, or raise when it is outside [0, 1] (or (0, 1] where zero makes no sense)."""
    low = "[0" if zero else "(0"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name} must be in {low}, 1], got {value!r}")
    return float(value)


_INF = float("inf")
