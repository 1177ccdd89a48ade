"""The report: what it says in words, what it escapes, and that it stands alone."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gumbelrl.comparison.figures import normalised_scores
from gumbelrl.comparison.records import read_runs
from gumbelrl.comparison.report import write_report
from simulated_runs import write_comparison, write_grid

ALIEN = '<script>alert("x")</script>$\\frac'
VOID = {"meta", "link", "br", "img", "hr"}


class _Page(HTMLParser):
    """Tags, ids and addresses of a page; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), key  # no handlers
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href"):
                self.addresses.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _page(out: Path) -> _Page:
    return _Page((out / "report.html").read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, str]:
    """Three agents, one with a hostile name; two environments, in one of which it does not run."""
    out = tmp_path_factory.mktemp("reported")
    agents = {
        "GumbelSAC (st_gumbel)": {"half_way": 6000, "diagnostics": True},
        "REINFORCE": {"half_way": 9000},
        ALIEN: {"half_way": 12_000, "scale": 300, "settings": {"note": ALIEN}},
    }
    write_comparison(out, agents, ["CartPole-v1", "Acrobot-v1"], seeds=6)
    points = json.loads((out / "grid.json").read_text())["points"]
    for point in points:
        if point["agent"] == ALIEN and point["env"] == "Acrobot-v1":
            point |= {"status": "n/a", "reason": f"it takes no {ALIEN}"}
            shutil.rmtree(out / point["run"])
    failed = next(point for point in points if point["agent"] == "REINFORCE")
    summary = out / failed["run"] / "summary.json"
    summary.write_text(
        json.dumps(json.loads(summary.read_text()) | {"failure": "RuntimeError: <boom>"})
    )
    (out / points[0]["run"] / "metrics.jsonl").write_text("")
    write_grid(out, points, question=f"Is it better? {ALIEN}")
    return out, write_report(out)


def test_the_headline_says_it_in_numbers(reported):
    out, headline = reported
    pattern = (
        r"CartPole-v1: GumbelSAC \(st_gumbel\) reaches 475 in a median of [\d,]+ steps, "
        r"[\d.]+ times REINFORCE's, the quickest of the other 2; probability that a run of it "
        r"scores higher than one of REINFORCE: 0\.\d\d \(0\.\d\d–[01]\.\d\d\)\."
    )
    assert re.match(pattern, headline)
    assert headline in (out / "table.txt").read_text()
    assert headline.split(". ")[0] in _page(out).text


def test_names_are_escaped_everywhere(reported):
    out, _ = reported
    page = _page(out)
    assert "script" not in page.tags
    assert ALIEN in page.text  # seen as it was written
    for path in (out / "figures").glob("*.svg"):
        assert "script" not in {element.tag for element in ElementTree.parse(path).iter()}


def test_the_page_stands_alone(reported):
    page = _page(reported[0])
    assert page.tags.count("svg") == page.tags.count("figure") > 10
    assert not {"img", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    fragments = {address[1:] for address in page.addresses if address.startswith("#")}
    assert fragments <= set(page.ids)
    raw = (reported[0] / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)", raw)


def test_every_figure_is_kept_as_svg_and_png(reported):
    folder = reported[0] / "figures"
    vectors = {path.stem for path in folder.glob("*.svg")}
    assert vectors == {path.stem for path in folder.glob("*.png")}
    kinds = {name.partition("-v1-")[2] for name in vectors if name.startswith("01-")}
    assert kinds == {
        "curves-steps",
        "curves-seconds",
        "scores",
        "profile",
        "improvement",
        "threshold-steps",
        "threshold-seconds",
        "alignment",
        "entropy",
    }


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    out = write_comparison(tmp_path / "grid", {"a": {}, "b": {}}, ["CartPole-v1"], seeds=2)
    write_report(out)
    figures = out / "figures"
    drawn = {path.name for path in figures.iterdir()}
    for name in ("02-Acrobot-v1-scores.png", "all-profile.svg", "02-notes.txt", "my-own.png"):
        (figures / name).touch()
    write_report(out)
    assert {path.name for path in figures.iterdir()} == {*drawn, "02-notes.txt", "my-own.png"}


def test_what_is_missing_is_told(reported):
    text = _page(reported[0]).text
    assert "RuntimeError: <boom>" in text
    assert f"it takes no {ALIEN}" in text
    assert "runs/run-0000: metrics.jsonl is empty" in text
    assert "not all agents have finished runs of the same seeds" in text
    assert "scores are not averaged over environments" in text
    assert "agent.note" in text  # a setting in which the agents differ
    assert "python compare.py experiment=simulated" in text
    assert "2.13.0" in text


def test_tables_hold_what_the_runs_say(reported):
    out, _ = reported
    runs = _rows(out / "runs.csv")
    assert len(runs) == 36
    lines = {(line["env"], line["agent"]): line for line in _rows(out / "scores.csv")}
    mine = [
        float(run["score"])
        for run in runs
        if (run["env"], run["agent"], run["status"]) == ("Acrobot-v1", "REINFORCE", "finished")
    ]
    line = lines["Acrobot-v1", "REINFORCE"]
    assert float(line["mean"]) == pytest.approx(sum(mine) / len(mine))
    assert float(line["iqm_low"]) <= float(line["iqm"]) <= float(line["iqm_high"])
    assert lines["Acrobot-v1", ALIEN]["note"].startswith("n/a: ")
    failed = lines["CartPole-v1", "REINFORCE"]
    assert (failed["finished"], failed["asked"]) == ("5", "6")
    pairs = _rows(out / "pairs.csv")
    assert {pair["env"] for pair in pairs} == {"CartPole-v1", "Acrobot-v1"}


def test_one_seed_and_three_seeds_get_no_interval(tmp_path):
    out = write_comparison(tmp_path / "three", {"a": {}, "REINFORCE": {}}, seeds=3)
    headline = write_report(out)
    assert "(3 seeds: no interval)" in headline
    assert "3 seeds: no interval" in _page(out).text
    assert {line["iqm_low"] for line in _rows(out / "scores.csv")} == {""}
    out = write_comparison(tmp_path / "one", {"a": {}}, seeds=1)
    assert "one seed says nothing of the next" in write_report(out)
    assert "one seed; nothing is known of its spread" in _page(out).text


def test_a_missing_metric_and_threshold_are_told(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, seeds=5, threshold=None)
    headline = write_report(out)
    assert re.search(r"a ends at an interquartile mean of [\d.]+ \([\d.]+ to [\d.]+\)", headline)
    text = _page(out).text
    assert "no threshold was given" in text
    assert "no finished run logged estimator/cosine" in text
    for path in out.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({"env_steps": row["env_steps"]}) + "\n" for row in rows))
    assert "no run has finished" in write_report(out)
    assert "hold no evaluation (eval/return_mean)" in _page(out).text


def test_nobody_reaches_the_threshold(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, seeds=5, threshold=1e6)
    assert "reaches 1e+06 in 0 of 5 runs, too few for a median" in write_report(out)
    assert "0/5" in _page(out).text


def test_environments_are_averaged_where_references_are_given(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, ["A-v0", "B-v0"], seeds=5)
    points = json.loads((out / "grid.json").read_text())["points"]
    references = {env: {"random": 0, "reference": 500} for env in ("A-v0", "B-v0")}
    references["B-v0"]["random"] = 499
    write_grid(out, points, references=references)
    write_report(out)
    assert "interquartile mean of normalised scores" in _page(out).text
    below = [line["below_random"] for line in _rows(out / "scores.csv")]
    table = (out / "table.txt").read_text()
    assert below[:2] == ["0", "0"]
    assert all(int(count) > 0 for count in below[2:])
    assert "below random" in table
    assert f" {below[2]}  " in table.split("B-v0\n")[1].splitlines()[1]
    line = _rows(out / "scores.csv")[0]
    assert float(line["normalised"]) == pytest.approx(float(line["iqm"]) / 500)


def test_over_all_environments_each_counts_alike(tmp_path):
    out = write_comparison(tmp_path, {"a": {}}, ["A-v0", "B-v0"], seeds=5)
    points = json.loads((out / "grid.json").read_text())["points"]
    references = {env: {"random": 0, "reference": 500} for env in ("A-v0", "B-v0")}
    dropped = [p for p in points if p["env"] == "B-v0" and p["seed"] > 2]
    write_grid(out, [p for p in points if p not in dropped], references=references)
    comparison = read_runs(out)
    assert [len(stratum) for stratum in normalised_scores(comparison, "a")] == [3, 3]
    write_report(out)
    assert "Over all environments a counts with 3 seeds" in _page(out).text


def test_folders_without_a_grid_are_reported_too(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, seeds=5, stop_at_return=400.0)
    (out / "grid.json").unlink()
    assert "a reaches 400 in a median of" in write_report(out)
    text = _page(out).text
    assert "when further episodes confirmed it" in text
    assert "python train.py agent=a" in text


def test_the_same_runs_make_the_same_report(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, seeds=5)
    write_report(out)
    first = (out / "report.html").read_text()
    write_report(out)
    assert (out / "report.html").read_text() == first
