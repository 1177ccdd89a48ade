"""Dead is told from slow."""

import json
import time

import pytest
from gumbelrl.tracking import Beat, Heartbeat, read_heartbeat


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_it_beats_while_nothing_else_moves_and_says_how_it_ended(tmp_path):
    path = tmp_path / "heartbeat.json"
    steps = [100]
    heart = Heartbeat(path, lambda: steps[0], seconds=0.01)
    heart.start()
    first = read_heartbeat(path)
    assert (first.phase, first.env_steps, first.state()) == ("starting", 100, "alive")
    with heart.during("evaluating"):
        wait_for(lambda: read_heartbeat(path).phase == "evaluating")
        stuck = read_heartbeat(path)
        wait_for(lambda: read_heartbeat(path).time > stuck.time + 0.05)
        assert read_heartbeat(path).progress_time == stuck.progress_time  # alive, and no step made
    steps[0] = 200
    wait_for(lambda: read_heartbeat(path).env_steps == 200)
    heart.stop("finished")
    last = read_heartbeat(path)
    assert (last.phase, last.state(now=last.time + 1e6)) == ("finished", "ended")
    time.sleep(0.05)
    assert read_heartbeat(path) == last
    assert [file.name for file in tmp_path.iterdir()] == ["heartbeat.json"]


def test_an_old_beat_is_of_a_dead_process():
    beat = Beat(1, "host", time=1000.0, env_steps=5, progress_time=10.0, phase="training")
    assert beat.state(now=1029.0) == "alive"
    assert beat.state(now=1031.0) == "dead"


def test_a_folder_that_is_gone_disturbs_nobody(tmp_path):
    heart = Heartbeat(tmp_path / "gone" / "heartbeat.json", lambda: 0, seconds=0.01)
    heart.start()
    heart.stop("failed")


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', "\x00"])
def test_what_is_no_heartbeat_is_none(tmp_path, content):
    path = tmp_path / "heartbeat.json"
    path.write_text(content)
    assert read_heartbeat(path) is None
    assert read_heartbeat(tmp_path / "nowhere") is None


def test_the_file_is_plain(tmp_path):
    path = tmp_path / "heartbeat.json"
    Heartbeat(path, lambda: 3).stop("interrupted")
    assert set(json.loads(path.read_text())) == {
        "pid",
        "host",
        "time",
        "env_steps",
        "progress_time",
        "phase",
    }
