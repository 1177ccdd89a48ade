"""One command that begins a run or goes on with it, and runs that ended at awkward moments."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from command_lines import QUICK, SAC, rows_without_times, run, summary_of
from gumbelrl import train
from gumbelrl.configs.resume import differences
from gumbelrl.tracking import RunFolder

pytestmark = pytest.mark.usefixtures("modules_of_the_user")
REINFORCE = ["agent=reinforce", "agent.rollout=steps", "agent.n_steps=20"]
AUTO = [*QUICK, *REINFORCE, "resume=auto"]


def killed_after(folder, *names):
    """Make the folder what it was when `names` had not been written yet."""
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", ["resume", "auto"])
def test_killed_between_the_last_checkpoint_and_the_end(tmp_path, name, capsys):
    arguments = [*SAC, "checkpoint_every=250"]
    _, folder = run(tmp_path, *arguments)
    rows, summary = rows_without_times(folder), summary_of(folder)
    killed_after(folder, "summary.json")
    command = [f"resume={folder}"]
    if name == "auto":
        command = [*QUICK, *arguments, f"run_dir={folder}", "resume=auto"]
    capsys.readouterr()
    assert train.main(command) == 0
    assert rows_without_times(folder) == rows
    assert summary_of(folder)["eval"] == summary["eval"]
    assert summary_of(folder)["complete"]
    assert train.main([f"resume={folder}"]) == 2
    assert "finished: it has made 600 of 600 steps" in capsys.readouterr().err


def test_killed_before_the_first_checkpoint(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC, "checkpoint_every=250")
    rows = rows_without_times(folder)
    killed_after(folder, "summary.json", "checkpoints")
    (folder / ".summary.json.12ab.tmp").write_text("{")
    capsys.readouterr()
    assert train.main([f"resume={folder}"]) == 0
    assert f"no checkpoint was written in {folder}: the run begins anew" in capsys.readouterr().out
    assert rows_without_times(folder) == rows
    killed_after(folder, "checkpoints")  # by somebody who needed room: the run is finished
    assert train.main([f"resume={folder}", "total_steps=900"]) == 2
    assert "finished run without checkpoints" in capsys.readouterr().err
    assert rows_without_times(folder) == rows


def test_reaching_the_threshold_is_an_end_too(tmp_path, capsys):
    threshold = ["stop_at_return=1", "total_steps=100000"]
    _, folder = run(tmp_path, *SAC, *threshold)
    rows = rows_without_times(folder)
    killed_after(folder, "summary.json")
    assert train.main([f"resume={folder}"]) == 0
    assert rows_without_times(folder) == rows
    assert summary_of(folder)["reached"]["env_steps"] == 200
    capsys.readouterr()
    assert train.main([f"resume={folder}"]) == 2
    error = capsys.readouterr().err
    assert "finished: it reached 1 at 200 steps" in error
    assert "another stop_at_return=" in error


def test_auto_begins_goes_on_and_says_when_it_is_done(tmp_path, capsys):
    folder = tmp_path / "run"
    here = [*AUTO, f"run_dir={folder}"]
    folder.mkdir()
    (folder / ".lock").touch()  # killed before it wrote anything
    (folder / ".probe-12ab").touch()
    assert train.main(here) == 0
    assert f"a new run begins in {folder}" in capsys.readouterr().out
    rows = rows_without_times(folder)
    assert train.main(here) == 0
    said = capsys.readouterr().out
    assert "this run is finished" in said
    assert f"larger total_steps= to resume={folder}" in said
    assert rows_without_times(folder) == rows
    assert train.main([*here, "total_steps=800", "checkpoint_every=200"]) == 0  # extends it
    assert f"going on with {folder}" in capsys.readouterr().out
    assert summary_of(folder)["env_steps"] == 800
    assert RunFolder.open(folder).read_config()["total_steps"] == 800


def test_auto_without_a_folder_finds_the_run_of_this_configuration(tmp_path, capsys):
    assert train.main([*AUTO, "seed=1"]) == 0
    assert "a new run begins; runs/ holds none" in capsys.readouterr().out
    assert train.main([*AUTO, "seed=2"]) == 0
    assert "a new run begins; runs/ holds none" in capsys.readouterr().out
    (first,) = (tmp_path / "working" / "runs").glob("*-seed1-*")
    rows = rows_without_times(first)
    killed_after(first, "summary.json", "checkpoints/step-000000600")
    assert train.main([*AUTO, "seed=1"]) == 0
    assert f"going on with runs/{first.name}" in capsys.readouterr().out
    assert rows_without_times(first) == rows
    assert train.main([*AUTO, "seed=1"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert train.main([*AUTO, "seed=1", "agent.gamma=0.9"]) == 0  # another configuration
    assert len(list((tmp_path / "working" / "runs").iterdir())) == 3


def test_auto_names_what_may_not_change(tmp_path, capsys):
    here = [*AUTO, f"run_dir={tmp_path / 'run'}"]
    assert train.main(here) == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main([*here, "agent.gamma=0.5", "seed=3", "total_steps=700"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "agent.gamma was 0.99, is 0.5" in error
    assert "seed was 0, is 3" in error
    assert "total_steps was" not in error
    assert "Only total_steps, stop_at_return" in error
    assert train.main([*here, "agent=gumbel_sac", "agent.rollout=steps"]) == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_auto_trusts_the_command_line_and_not_the_folder(tmp_path, capsys):
    working, folder = tmp_path / "working", tmp_path / "run"
    (working / "planted.py").write_text("open('executed', 'w')\nNothing = None\n")
    here = [*AUTO, "env=fragile_envs:Fragile-v0", f"run_dir={folder}"]
    assert train.main([*here, "total_steps=300"]) == 0  # without trust=
    assert train.main([*here, "total_steps=400"]) == 0
    whole = folder.joinpath("config.yaml").read_text()
    for group, code in (("agent", 2), ("env", 2), ("tracking", 0)):  # 0: it is not the folder's
        stored = RunFolder.open(folder).read_config()
        stored[group]["_target_"] = "planted.Nothing"
        RunFolder.open(folder).write_config(stored)
        assert train.main([*here, "total_steps=500"]) == code
        assert not (working / "executed").exists()
        folder.joinpath("config.yaml").write_text(whole)
    assert "agent._target_ was planted.Nothing" in capsys.readouterr().err


def test_differences_are_told_by_key_with_both_values():
    was = {"seed": 0, "env": {"id": "A", "wrappers": []}, "gone": 1, "run_dir": "x"}
    now = {"seed": 0, "env": {"id": "B", "wrappers": []}, "come": [1], "run_dir": "y"}
    found = differences(was, now, besides=["run_dir"])
    assert found == ["env.id was A, is B", "come was nothing, is [1]", "gone was 1, is nothing"]


def test_two_processes_on_one_folder(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gumbelrl.train", *AUTO, f"run_dir={folder}"]
    command += ["total_steps=100000000", "eval_every=1000000", "checkpoint_every=2000"]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **quiet)
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        for second in (command, [*command[:3], f"resume={folder}"]):
            ended = subprocess.run(second, capture_output=True, text=True)
            assert ended.returncode == 2
            assert ended.stderr.count("\n") == 1
            assert "another process is writing the run" in ended.stderr
        assert first.poll() is None
        first.kill()  # nothing of the lock stays behind
        first.wait()
        with open(folder / ".lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beat = json.loads((folder / "heartbeat.json").read_text())
        assert beat["pid"] == first.pid
    finally:
        first.kill()
        first.communicate()
    assert os.path.exists(folder / "config.yaml")
