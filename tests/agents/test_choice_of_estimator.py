"""`estimator="auto"`, and what it refuses."""

import pytest
from gumbelrl.agents.estimators import (
    EXACT_LIMIT,
    LOCAL_LIMIT,
    build_estimator,
    choose_estimator,
)


@pytest.mark.parametrize(
    ("nvec", "name"),
    [
        ((2,), "exact"),
        ((EXACT_LIMIT,), "exact"),
        ((2,) * 5, "exact"),  # 32 joint actions
        ((2,) * 6, "local_expectation"),
        ((7,) * 6, "local_expectation"),  # HalfCheetah with 7 bins
        ((2, 3, 30), "local_expectation"),
        ((LOCAL_LIMIT - 2, 2), "local_expectation"),
        ((LOCAL_LIMIT - 1, 2), "st_gumbel"),
        ((5,) * 64, "st_gumbel"),
    ],
)
def test_auto_follows_the_size_of_the_action(nvec, name):
    assert choose_estimator(nvec) == name
    assert build_estimator("auto", None, nvec).name == name
    assert build_estimator({"name": "auto"}, None, nvec).name == name


def test_a_critic_of_all_values_lifts_the_limits():
    assert build_estimator("auto", None, (1000,), per_factor=True).name == "exact"
    assert build_estimator("auto", None, (5,) * 64, per_factor=True).name == "local_expectation"


def test_a_temperature_counts_where_the_choice_has_one():
    built = build_estimator("auto", 0.5, (5,) * 64)
    assert built.name == "st_gumbel"
    assert float(built.temperature) == 0.5
    with pytest.raises(ValueError, match=r"temperature=0\.5 .*chose 'exact'"):
        build_estimator("auto", 0.5, (2,))


def test_auto_is_refused_without_an_action_space_or_with_settings():
    with pytest.raises(ValueError, match="name an estimator"):
        build_estimator("auto", None)
    with pytest.raises(ValueError, match=r"takes no settings, got \['k'\]"):
        build_estimator({"name": "auto", "k": 4}, None, (2,))


def test_two_arguments_still_build():
    assert build_estimator("reinmax", 1.1).name == "reinmax"
    assert build_estimator({"name": "rloo", "k": 3}, None).settings.k == 3
