"""Estimators by name."""

from dataclasses import fields
from typing import Any

from gumbelrl.gumbel.choices import unknown_name
from gumbelrl.gumbel.control_variates import Rebar, Relax
from gumbelrl.gumbel.enumeration import Exact, LocalExpectation
from gumbelrl.gumbel.estimator import Estimator
from gumbelrl.gumbel.gumbel_rao import GumbelRao, ReinMaxRao
from gumbelrl.gumbel.mixed import Mixed
from gumbelrl.gumbel.muprop import MuProp
from gumbelrl.gumbel.pathwise import (
    DecoupledSTGumbel,
    GappedST,
    GumbelSoftmaxEstimator,
    STGumbel,
    StraightThrough,
)
from gumbelrl.gumbel.reinmax import ReinMax
from gumbelrl.gumbel.score import Reinforce, Rloo

ESTIMATORS: dict[str, Any] = {
    cls.name: cls
    for cls in (
        GumbelSoftmaxEstimator,
        STGumbel,
        StraightThrough,
        DecoupledSTGumbel,
        GappedST,
        GumbelRao,
        ReinMax,
        ReinMaxRao,
        Reinforce,
        Rloo,
        Rebar,
        Relax,
        MuProp,
        LocalExpectation,
        Exact,
        Mixed,
    )
}
"""Name -> class; each class has its frozen `Settings` and takes one as its only argument."""


def make_estimator(name: str | Estimator, **settings: Any) -> Estimator:
    """Build an estimator from its name and settings; an estimator passes through unchanged.

    Raises:
        ValueError: an unknown name or setting (the nearest is named), or a setting out of range.
    """
    if isinstance(name, Estimator):
        if settings:
            raise ValueError(
                f"settings {sorted(settings)} were given beside a ready-made {type(name).__name__};"
                " give them to its constructor, or pass the estimator's name"
            )
        return name
    if not isinstance(name, str) or name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    cls = ESTIMATORS[name]
    allowed = [field.name for field in fields(cls.Settings)]
    for key in settings:
        if key not in allowed:
            raise unknown_name(f"setting of estimator {name!r}:", key, allowed)
    estimator: Estimator = cls(cls.Settings(**settings))
    return estimator
