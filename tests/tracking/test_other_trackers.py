"""CSV and TensorBoard say what `metrics.jsonl` says."""

import csv
import math

import pytest
import torch
from gumbelrl.tracking import (
    CsvWriter,
    JsonlWriter,
    RunFolder,
    TensorBoardWriter,
    TrackingSettings,
    cut_metrics,
    read_metrics,
)
from gumbelrl.tracking.resend import main as resend
from stable_baselines3.common.logger import Logger

ROWS = [
    (10, {"b": 1.5, 'odd, "name"': 2}),
    (20, {"b": math.nan, "text": 'a,b\n"c"'}),
    (20, {"later": True, "b": -math.inf}),
    (30, {"list": [1, 2], "figure": object()}),
]


def write(writer, rows=ROWS):
    for step, row in rows:
        writer.write(row, dict.fromkeys(row, ("",)), step)


def test_csv_is_well_formed_when_columns_appear_later(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = CsvWriter(path)
    for number, row in enumerate(ROWS, start=1):
        write(writer, [row])
        with open(path, newline="") as file:  # at any moment
            lines = list(csv.reader(file))
        assert len(lines) == number + 1
        assert len({len(line) for line in lines}) == 1
    writer.close()
    writer.close()
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["env_steps", "b", 'odd, "name"', "text", "later", "list"]
    assert [row["env_steps"] for row in table] == ["10", "20", "20", "30"]
    assert [row["b"] for row in table] == ["1.5", "NaN", "-Infinity", ""]
    assert table[1]["text"] == 'a,b\n"c"'


def test_csv_leaves_out_what_is_excluded(tmp_path):
    writer = CsvWriter(tmp_path / "m")
    writer.write({"a": 1, "b": 2}, {"a": ("csv",), "b": ("json",)}, 1)
    writer.close()
    assert (tmp_path / "m").read_bytes() == b"env_steps,b\r\n1,2\r\n"


def scalars(folder, tag):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)], events.Tags()


def test_no_row_twice_when_a_run_goes_on(tmp_path):
    metrics, rows = tmp_path / "metrics.jsonl", [(s, {"a": float(s)}) for s in range(10, 60, 10)]
    first = [JsonlWriter(metrics), CsvWriter(tmp_path / "m.csv"), TensorBoardWriter(tmp_path / "t")]
    for writer in first:
        write(writer, rows)
    # Killed: nobody closes them. The last checkpoint is of step 30.
    cut_metrics(metrics, 30)
    earlier = read_metrics(metrics)
    second = [
        JsonlWriter(metrics, append=True),
        CsvWriter(tmp_path / "m.csv", earlier),
        TensorBoardWriter(tmp_path / "t", first_step=31),
    ]
    for writer in second:
        write(writer, [(s, {"a": -float(s)}) for s in (40, 50, 60)])
        writer.close()
    expected = [(10, 10.0), (20, 20.0), (30, 30.0), (40, -40.0), (50, -50.0), (60, -60.0)]
    assert [(row["env_steps"], row["a"]) for row in read_metrics(metrics)] == expected
    with open(tmp_path / "m.csv", newline="") as file:
        assert [(int(r["env_steps"]), float(r["a"])) for r in csv.DictReader(file)] == expected
    assert scalars(tmp_path / "t", "a")[0] == expected
    for writer in first:
        writer.close()


def test_tensorboard_of_a_run_that_begins_anew_shows_nothing_of_before(tmp_path):
    for sign in (1.0, -1.0):  # killed before its first checkpoint, then begun again
        writer = TensorBoardWriter(tmp_path / "t")
        write(writer, [(step, {"a": sign * step}) for step in (0, 10, 20)])
        writer.close()
    assert scalars(tmp_path / "t", "a")[0] == [(0, 0.0), (10, -10.0), (20, -20.0)]


def test_tensorboard_shows_scalars_and_histograms_against_env_steps(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    logger = Logger(None, [writer])
    logger.record("a", 1.5)
    logger.record("h", torch.arange(4.0))
    logger.dump(100)
    logger.close()
    values, tags = scalars(tmp_path, "a")
    assert values == [(100, 1.5)]
    assert tags["histograms"] == ["h"]


def test_tensorboard_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "gumbelrl\[tensorboard\]"'):
        TrackingSettings(tensorboard=True)
    with pytest.raises(ValueError, match=r'pip install "gumbelrl\[video\]"'):
        TrackingSettings(videos_every=1)


def test_writers_that_cannot_be():
    for writer, said in (
        ({"name": "x"}, r"tracking.writers\[0\] needs a _target_"),
        ({"_target_": "no_such_module.Writer"}, "no_such_module.Writer cannot be imported"),
    ):
        with pytest.raises(ValueError, match=said):
            TrackingSettings(writers=(writer,))
    with pytest.raises(ValueError, match="histograms_every must be >= 0, got -1"):
        TrackingSettings(histograms_every=-1)


def test_what_a_tracker_missed_is_sent_again(tmp_path, capsys):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({"tracking": {"mode": "disabled", "writers": [{"_target_": "evil.Evil"}]}})
    metrics = JsonlWriter(folder.metrics_path)
    write(metrics)
    metrics.close()
    assert resend(["csv", str(folder.path)]) == 0
    with open(folder.path / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert resend(["tensorboard", str(folder.path)]) == 0
    values, _ = scalars(folder.path / "tensorboard" / "from-metrics", "b")
    assert [step for step, _ in values] == [10, 20, 20]
    assert resend(["wandb", str(folder.path)]) == 1  # it is disabled
    assert resend(["csv", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
