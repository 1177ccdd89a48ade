"""An agent's estimator from what its user gave."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from gumbelrl.gumbel import Estimator, make_estimator

# Updates by `auto` stay below twice those of st_gumbel at 64 hidden units: the second table of
# `python -m benchmarks.trust_meter`, critic action_in.
EXACT_LIMIT = 32
"""Most joint actions ∏K that `auto` enumerates: no noise and no bias, for ∏K evaluations."""
LOCAL_LIMIT = 48
"""Most categories ΣK for which `auto` takes local expectations: no bias, the noise of the other
factors alone, for ΣK evaluations."""
PATHWISE = "st_gumbel"
"""What `auto` takes beyond both: one evaluation whatever the number of factors."""


def choose_estimator(nvec: Sequence[int], per_factor: bool = False) -> str:
    """The estimator that `auto` stands for: the least noise and bias at a fair price.

    Args:
        nvec: sizes of the action's factors.
        per_factor: the critic gives all values of a factor in one forward (heads, multilinear), so
            that all of a Discrete space, or local expectations, cost about what st_gumbel does at
            any size.
    """
    if prod(nvec) <= EXACT_LIMIT or (per_factor and len(nvec) == 1):
        return "exact"
    return "local_expectation" if per_factor or sum(nvec) <= LOCAL_LIMIT else PATHWISE


def build_estimator(
    estimator: str | dict[str, Any] | Estimator,
    temperature: float | dict[str, Any] | None,
    nvec: Sequence[int] | None = None,
    per_factor: bool = False,
) -> Estimator:
    """An estimator from its name, "auto", `{"name": ..., **settings}` or itself.

    Args:
        temperature: overrides the estimator's own; None leaves it.
        nvec: sizes of the action's factors, for "auto".
        per_factor: as `choose_estimator` takes it.

    Raises:
        ValueError: an unknown name or setting, a temperature for one that has none, or "auto"
            without `nvec`.
    """
    if isinstance(estimator, Estimator):
        if temperature is not None:
            raise ValueError("give the temperature to the estimator itself, or name the estimator")
        return estimator
    settings: dict[str, Any]
    settings = {"name": estimator} if isinstance(estimator, str) else dict(estimator)
    if "name" not in settings:
        raise ValueError(f"estimator needs a name, got {estimator!r}")
    if settings["name"] == "auto":
        settings["name"] = _chosen(settings, temperature, nvec, per_factor)
    if temperature is not None:
        settings["temperature"] = temperature
    return make_estimator(**settings)


def _chosen(
    settings: dict[str, Any], temperature: Any, nvec: Sequence[int] | None, per_factor: bool
) -> str:
    """The name that "auto" stands for, or what keeps it from standing for any."""
    if nvec is None:
        raise ValueError(
            "estimator='auto' chooses by the action space among exact, local_expectation and "
            f"{PATHWISE}, which this agent does not offer; name an estimator"
        )
    if len(settings) > 1:
        raise ValueError(
            f"estimator='auto' takes no settings, got {sorted(settings.keys() - {'name'})}: which "
            "apply depends on its choice; name the estimator that they are for"
        )
    name = choose_estimator(nvec, per_factor)
    if temperature is not None and name != PATHWISE:
        # Ignored in silence, a sweep over τ would show that τ does not matter.
        raise ValueError(
            f"temperature={temperature!r} is for pathwise estimators, and estimator='auto' chose "
            f"{name!r} for actions of {list(nvec)}, which has none; leave temperature out, or "
            f"name a pathwise estimator such as {PATHWISE!r}"
        )
    return name
