"""Python, NumPy and torch values as JSON that every parser accepts."""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers that JSON lacks are spelled, as strings."""


def as_json(value: Any) -> Any:
    """Turn a value into plain JSON data.

    Scalars of NumPy and torch become Python's, arrays become lists, NaN and infinities the
    strings of `NON_FINITE`, paths become text, and the keys of mappings become text.

    Raises:
        TypeError: JSON has no place for such a value.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # NumPy and torch, without either
        return as_json(value.tolist())
    raise TypeError(f"JSON has no place for a {type(value).__name__}")


def from_json(value: Any) -> Any:
    """Turn the strings of `NON_FINITE` back into numbers, at any depth."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value
