"""An agent's estimator from what its user gave."""

from __future__ import annotations

from typing import Any

from gumbelrl.gumbel import Estimator, make_estimator


def build_estimator(
    estimator: str | dict[str, Any] | Estimator, temperature: float | dict[str, Any] | None
) -> Estimator:
    """An estimator from its name, `{"name": ..., **settings}` or itself.

    Args:
        temperature: overrides the estimator's own; None leaves it.

    Raises:
        ValueError: an unknown name or setting, or a temperature for one that has none.
    """
    if isinstance(estimator, Estimator):
        if temperature is not None:
            raise ValueError("give the temperature to the estimator itself, or name the estimator")
        return estimator
    settings: dict[str, Any]
    settings = {"name": estimator} if isinstance(estimator, str) else dict(estimator)
    if "name" not in settings:
        raise ValueError(f"estimator needs a name, got {estimator!r}")
    if temperature is not None:
        settings["temperature"] = temperature
    return make_estimator(**settings)
