"""Schedules: the curve, the survival of a resume, and the words of every refusal."""

import math

import pytest
import torch
from gumbelrl.gumbel import (
    Constant,
    Cosine,
    Exponential,
    GumbelSoftmax,
    Linear,
    make_estimator,
    make_schedule,
)


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        (Constant(0.7), {0.0: 0.7, 1.0: 0.7}),
        (Linear(2.0, 0.5), {0.0: 2.0, 0.5: 1.25, 1.0: 0.5}),
        (Linear(2.0, 0.5, 0.5), {0.25: 1.25, 0.5: 0.5, 0.9: 0.5}),
        (Exponential(2.0, 0.5, 0.8), {0.0: 2.0, 0.4: 1.0, 0.8: 0.5, 1.0: 0.5}),
        (Cosine(2.0, 0.0 + 1.0), {0.0: 2.0, 0.5: 1.5, 1.0: 1.0}),
        (Cosine(3.0, 1.0), {0.25: 1.0 + (1 + math.cos(math.pi / 4))}),
    ],
)
def test_curves(schedule, at):
    for p, value in at.items():
        assert schedule(p) == pytest.approx(value, rel=1e-12)
    assert schedule(1.7) == schedule(1.0)  # training may run past its end


def test_every_way_to_write_one():
    assert make_schedule(0.5) == Constant(0.5)
    assert make_schedule(2) == Constant(2)
    given = Linear(2.0, 1.0)
    assert make_schedule(given) is given
    spec = {"schedule": "linear", "start": 2, "end": 0.5, "fraction": 0.8}
    assert make_schedule(spec) == Linear(2, 0.5, 0.8)
    assert make_schedule({"value": 3.0}) == Constant(3.0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (0.0, ["> 0", "0.0"]),
        (-1, ["> 0", "-1"]),
        (math.nan, ["nan"]),
        (math.inf, ["inf"]),
        (True, ["True"]),
        ("hot", ["'hot'", "number"]),
        (None, ["None"]),
        ({"schedule": "linaer", "start": 1, "end": 2}, ["linaer", "'linear'", "cosine"]),
        ({"schedule": "linear", "strat": 1, "end": 2}, ["strat", "'start'"]),
        ({"schedule": "linear", "start": 1}, ["needs end"]),
        ({"schedule": "linear", "start": 0, "end": 2}, ["start of temperature", "0"]),
        ({"schedule": "cosine", "start": 1, "end": math.nan}, ["end of temperature", "nan"]),
        ({"schedule": "exponential", "start": 1, "end": 0}, ["end", "0"]),
        ({"schedule": "linear", "start": 1, "end": 2, "fraction": 0}, ["fraction", "(0, 1]"]),
        ({"start": 1, "end": 0.5}, ["lacks the key 'schedule'", "linear", "temperature"]),
        ({"schedule": ["linear"]}, ["['linear']", "exponential"]),
        (Linear(1.0, -1.0), ["end of temperature", "-1.0"]),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(spec, words):
    with pytest.raises(ValueError, match=r".") as error:
        make_schedule(spec)
    for word in words:
        assert word in str(error.value)


def test_a_mixing_weight_may_be_zero_but_not_above_one():
    assert make_schedule({"schedule": "linear", "start": 1, "end": 0}, "rho", unit=True)(1.0) == 0
    with pytest.raises(ValueError, match="rho"):
        make_schedule(1.5, "rho", unit=True)


@pytest.mark.parametrize(
    "make", [lambda s: make_estimator("st_gumbel", temperature=s), GumbelSoftmax]
)
def test_progress_survives_a_resume(make):
    spec = {"schedule": "cosine", "start": 2, "end": 0.5}
    first, resumed = make(spec), make(spec)
    assert first.temperature == 2.0
    first.set_progress(0.3)
    state = {key: value.clone() for key, value in first.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())  # no pickle needed
    resumed.load_state_dict(state)
    assert resumed.temperature == first.temperature != 2.0
    with pytest.raises(ValueError, match="progress"):
        first.set_progress(1.1)
