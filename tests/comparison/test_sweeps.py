"""Swept settings: what is read of them, and the figure of scores against them."""

import json

import pytest
from gumbelrl.comparison import sweeps
from gumbelrl.comparison.records import read_runs
from gumbelrl.comparison.report import write_report
from simulated_runs import write_comparison, write_grid


@pytest.fixture
def swept(tmp_path):
    """`warm` at three temperatures and `exact` without one, on two environments, three seeds."""
    out = tmp_path / "swept"
    agents = {f"warm{t}": {"settings": {"temperature": t}} for t in (0.1, 1.0, 5.0)}
    write_comparison(out, {**agents, "exact": {}}, envs=("a", "b"), seeds=3)
    points = json.loads((out / "grid.json").read_text())["points"]
    for point in points:
        if point["agent"].startswith("warm"):
            point["settings"] = {"agent.temperature": float(point["agent"][4:])}
            point["agent"] = "warm"
    write_grid(out, points)
    return out, points


def test_scores_are_gathered_by_value_and_the_unswept_agent_stands_apart(swept):
    comparison = read_runs(swept[0])
    assert sweeps.numbers(comparison) == ["agent.temperature"]
    found = sweeps.read(comparison, "a", "agent.temperature")
    assert found is not None
    assert found.lines == ("warm", "exact")
    assert sorted(found.swept["warm"]) == [0.1, 1.0, 5.0]
    here = comparison.of("warm (temperature=0.1)", "a")
    assert sorted(found.swept["warm"][0.1]) == sorted(run.score for run in here)
    assert len(found.level["exact"]) == 3


def test_one_figure_for_each_environment_and_one_for_all(swept):
    out, _ = swept
    write_report(out)
    figures = {path.stem for path in (out / "figures").glob("*sweep*.svg")}
    assert figures == {"all-sweep-temperature", "01-a-sweep-temperature", "02-b-sweep-temperature"}
    drawn = (out / "figures" / "01-a-sweep-temperature.svg").read_text()
    for word in ("warm", "exact", "0.1", "temperature"):
        assert f">{word}<" in drawn
    assert "warm (" not in drawn
    assert "level lines: agents that are not swept" in (out / "report.html").read_text()


@pytest.mark.parametrize("values", [("a", "b", "c"), (0.1, 1.0, "auto"), (0.1, 1.0, 1.0)])
def test_no_figure_where_values_are_no_numbers_or_too_few(swept, values):
    out, points = swept
    for point in points:
        if point["settings"]:
            at = [0.1, 1.0, 5.0].index(point["settings"]["agent.temperature"])
            point["settings"] = {"agent.temperature": values[at]}
    write_grid(out, points)
    assert sweeps.numbers(read_runs(out)) == []


def test_a_second_swept_setting_stands_in_the_name_of_the_line(swept):
    out, points = swept
    for point in points:
        if point["settings"]:
            point["settings"]["agent.estimator"] = "gapped" if point["seed"] else "plain"
    write_grid(out, points)
    found = sweeps.read(read_runs(out), "b", "agent.temperature")
    assert found is not None
    assert set(found.swept) == {"warm (estimator=plain)", "warm (estimator=gapped)"}
