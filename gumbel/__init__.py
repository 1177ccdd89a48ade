"""Sampling discrete actions with a gradient: the distribution, the sampler, the estimators."""

from gumbelrl.gumbel.diagnostics import GradientReport, gradient_report
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Pathwise
from gumbelrl.gumbel.learned_temperature import LearnedTemperature
from gumbelrl.gumbel.noise import conditional_gumbels, gumbel_noise
from gumbelrl.gumbel.registry import ESTIMATORS, make_estimator
from gumbelrl.gumbel.sampler import GumbelSoftmax, gumbel_softmax
from gumbelrl.gumbel.temperature import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Schedule,
    make_schedule,
)

__all__ = [
    "ESTIMATORS",
    "Constant",
    "Cosine",
    "Estimator",
    "Exponential",
    "FactoredCategorical",
    "GradientReport",
    "GumbelSoftmax",
    "LearnedTemperature",
    "Linear",
    "Pathwise",
    "Schedule",
    "conditional_gumbels",
    "gradient_report",
    "gumbel_noise",
    "gumbel_softmax",
    "make_estimator",
    "make_schedule",
]
