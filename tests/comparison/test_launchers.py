"""Real grids of short runs: whatever is killed or stopped, they end as an undisturbed one does."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_lines import rows_without_times, summary_of
from gumbelrl import compare
from gumbelrl.comparison.grid import Grid
from gumbelrl.comparison.grid_display import GridDisplay, Progress, read_progress
from gumbelrl.comparison.run_job import Job, Outcome, is_locked, run_job
from gumbelrl.tracking import RunFolder
from rich.console import Console

GRID = {
    "question": "Does it end alike?",
    "agents": {"reinforce": ["agent=reinforce"]},
    "envs": {"cart": {"overrides": ["env=cartpole"], "total_steps": 6000, "threshold": 100}},
    "seeds": 2,
    "overrides": [
        "device=cpu",
        "eval_every=1000",
        "eval_episodes=3",
        "log_every=500",
        "checkpoint_every=400",
    ],
}
RUNS = ["cart-reinforce-seed0", "cart-reinforce-seed1"]


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(compare, "report_on", lambda folder: 0)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "alike.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "report_on", lambda folder: 0)
        patch.setenv("WANDB_MODE", "disabled")
        assert compare.main([f"experiment={experiment}", f"out={out}", "workers=2"]) == 0
    return out


def ends_of(out):
    """All that a report could count, but for clocks."""
    statuses = [(point.name, point.status, point.reason) for point in Grid.read(out).points]
    folders = sorted(path.name for path in (out / "runs").iterdir())
    runs = [out / "runs" / name for name in folders]
    rows = json.dumps([rows_without_times(run) for run in runs], sort_keys=True)
    summaries = [summary_of(run) for run in runs]
    ends = [(each["complete"], each["env_steps"], each["eval"]) for each in summaries]
    return statuses, folders, rows, ends


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "gumbelrl.compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log_of(out, name):
    return (out / "logs" / f"{name}.log").read_text()


def begun(out, name):
    return lambda: list(out.glob(f"runs/{name}/checkpoints/step-*"))


def writer_of(run):
    """The process that holds the run's lock, by Linux's table of open files."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if run / ".lock" in (file.readlink() for file in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue  # it has ended, or belongs to another user
    raise AssertionError(f"nothing writes {run}")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds processes as Linux does")
def test_killed_children_and_a_killed_launcher_lose_nothing(experiment, undisturbed, tmp_path):
    out = tmp_path / "grid"
    launcher = start(f"experiment={experiment}", f"out={out}", "workers=2")
    try:
        wait_for(begun(out, RUNS[0]))
        os.kill(writer_of(out / "runs" / RUNS[0]), signal.SIGKILL)
        wait_for(begun(out, RUNS[1]))
    finally:
        launcher.kill()
        launcher.communicate()
    # The other child is still at work, or has just ended: its run is waited for, not run again.
    assert compare.main([f"experiment={experiment}", f"out={out}", "workers=2"]) == 0
    assert ends_of(out) == ends_of(undisturbed)
    commands = [line for line in log_of(out, RUNS[0]).splitlines() if line.startswith("$ ")]
    assert all("resume=" in command for command in commands[1:])
    assert len(commands) > 1


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(experiment, undisturbed, tmp_path):
    out = tmp_path / "grid"
    launcher = start(f"experiment={experiment}", f"out={out}", "workers=1", "seeds=1")
    wait_for(begun(out, RUNS[0]))
    os.killpg(launcher.pid, signal.SIGINT)  # as the terminal does
    said, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 130, said
    assert "Traceback" not in said
    assert f"stopped {RUNS[0]}\n" in said
    assert f"to go on: python compare.py experiment={experiment} out={out} workers=1" in said
    assert not is_locked(out / "runs" / RUNS[0])
    assert summary_of(out / "runs" / RUNS[0])["complete"] is False
    assert [point.status for point in Grid.read(out).points] == ["pending"]
    assert compare.main([f"experiment={experiment}", f"out={out}", "seeds=2"]) == 0
    assert ends_of(out) == ends_of(undisturbed)


@pytest.mark.usefixtures("modules_of_the_user")
def test_failures_and_what_does_not_apply_are_told_apart(tmp_path, capsys):
    fragile = {"overrides": ["env=fragile_envs:Fragile-v0"], "total_steps": 300}
    agents = {
        "fine": ["agent=reinforce"],
        "broken": ["agent=reinforce", "env.kwargs.error=RuntimeError", "env.kwargs.at=7"],
        "shac": ["agent=gumbel_shac"],
        "mistyped": ["agent=reinforce", "agent.baseline=learned"],
        "nowhere": ["agent=reinforce", "env.kwargs.error=KeyError"],
    }
    grid = {**GRID, "agents": agents, "envs": {"fragile": fragile}, "seeds": 1}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    out = tmp_path / "grid"
    assert compare.main([f"experiment={tmp_path / 'mixed.yaml'}", f"out={out}", "workers=2"]) == 1
    printed = capsys.readouterr().out
    points = {point.agent: point for point in Grid.read(out).points}
    assert {name: point.status for name, point in points.items()} == {
        "fine": "finished", "broken": "failed", "shac": "n/a", "mistyped": "failed",
        "nowhere": "failed",
    }  # fmt: skip
    assert points["broken"].reason == "RuntimeError: x"
    assert "learned" in points["mistyped"].reason
    assert "backpropagates through the environment" in points["shac"].reason
    assert "could not be made: KeyError" in points["nowhere"].reason
    assert "failed: broken on fragile, seed 0: RuntimeError: x\n" in printed
    log = out / "logs" / "fragile-broken-seed0.log"
    assert f"log: {log}\n" in printed
    assert "Traceback" in log.read_text()


def job_for(run):
    overrides = ("agent=reinforce", "env=cartpole", *GRID["overrides"], "total_steps=6000")
    return Job("x", (*overrides, "seed=0"), run, run.parent / "x.log", total_steps=6000)


def test_a_run_killed_before_its_summary_ends_alike(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "runs" / RUNS[0], run)
    whole = summary_of(run)
    (run / "summary.json").unlink()  # its last checkpoint has no step left to make
    assert run_job(job_for(run)) == Outcome("finished")
    assert summary_of(run)["eval"] == whole["eval"]
    rows = [rows_without_times(each) for each in (run, undisturbed / "runs" / RUNS[0])]
    assert json.dumps(rows[0], sort_keys=True) == json.dumps(rows[1], sort_keys=True)
    assert "resume=" in (tmp_path / "x.log").read_text()


def test_a_run_stopped_before_its_first_checkpoint_is_begun_again(tmp_path):
    run = tmp_path / "run"
    job = job_for(run)
    slow = replace(job, overrides=(*job.overrides, "checkpoint_every=6000"))
    assert run_job(slow, lambda: (run / "heartbeat.json").exists()) == Outcome("pending")
    assert not list(run.glob("checkpoints/step-*"))
    assert run_job(job) == Outcome("finished")
    commands = [line for line in (tmp_path / "x.log").read_text().splitlines() if line[:1] == "$"]
    assert len(commands) == 2
    assert not any("resume=" in command for command in commands)


def test_a_finished_run_is_left_alone(undisturbed, tmp_path):
    run = undisturbed / "runs" / RUNS[0]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert run_job(job_for(run)) == Outcome("finished")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_files_of_others_are_not_removed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    outcome = run_job(job_for(tmp_path / "run"))
    assert outcome.status == "failed"
    assert "holds thesis.tex, which no run writes" in outcome.reason
    assert (tmp_path / "run" / "thesis.tex").exists()


@pytest.fixture
def train_is(monkeypatch):
    """Puts a line of Python in the place of train.py."""
    from gumbelrl.comparison import run_job as module

    def put(code):
        monkeypatch.setattr(module, "next_command", lambda job: [sys.executable, "-c", code])

    return put


def test_a_run_that_is_killed_again_and_again_is_given_up(train_is, tmp_path):
    train_is("import os; print('here'); os.kill(os.getpid(), 9)")
    outcome = run_job(job_for(tmp_path / "run"))
    assert outcome == Outcome("failed", "its process was killed 3 times by SIGKILL", deaths=2)
    assert (tmp_path / "x.log").read_text().splitlines().count("here") == 3


def test_a_run_that_says_nothing_is_told_by_its_exit_code(train_is, tmp_path):
    train_is("raise SystemExit(7)")
    assert run_job(job_for(tmp_path / "run")).reason == "ended with exit code 7"


def test_a_stopped_launcher_begins_nothing(train_is, tmp_path):
    train_is("import time; time.sleep(60)")
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    assert run_job(job_for(tmp_path / "run"), stop.is_set) == Outcome("pending")
    assert time.monotonic() - began < 20


def test_a_run_that_another_process_writes_is_waited_for(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "runs" / RUNS[0], run)
    summary = (run / "summary.json").rename(tmp_path / "summary.json")
    with RunFolder(run).locked():
        assert run_job(job_for(run), lambda: True) == Outcome("pending")
        threading.Timer(0.3, lambda: summary.rename(run / "summary.json")).start()
        lock = threading.Timer(0.6, lambda: None)
        lock.start()
        lock.join()
    assert run_job(job_for(run)) == Outcome("finished")
    assert not (tmp_path / "x.log").exists()


def test_the_table_reads_what_the_runs_have_written(undisturbed, tmp_path):
    grid = Grid.read(undisturbed)
    rows = rows_without_times(undisturbed / "runs" / RUNS[0])
    progress = read_progress(undisturbed / "runs" / RUNS[0])
    assert progress.env_steps == rows[-1]["env_steps"]
    assert progress.last_return == rows[-1]["eval/return_mean"]
    assert progress.time_left(progress.env_steps).total_seconds() == 0
    assert read_progress(tmp_path) == Progress()
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 5, "time/fps": 2}\n{"env_st')
    assert read_progress(tmp_path) == Progress(5, None, 2)
    assert read_progress(tmp_path).time_left(25).total_seconds() == 10
    console = Console(width=100, record=True, file=io.StringIO())
    grid.points[1].status = "running"
    console.print(GridDisplay(grid, undisturbed, console).table(height=10))
    text = console.export_text()
    assert "alike: 1 running, 1 finished" in text
    assert f"{rows[-1]['env_steps']:,}/6,000" in text
    assert "silent" not in text
    beat = json.loads((undisturbed / "runs" / RUNS[1] / "heartbeat.json").read_text())
    (tmp_path / "runs" / RUNS[1]).mkdir(parents=True)
    silent = {**beat, "phase": "training", "time": time.time() - 95}
    (tmp_path / "runs" / RUNS[1] / "heartbeat.json").write_text(json.dumps(silent))
    console.print(GridDisplay(grid, tmp_path, console).table(height=10))
    assert "silent for 0:01:35" in console.export_text()


def test_two_ray_nodes_share_a_grid_and_one_is_killed(
    experiment, undisturbed, tmp_path, monkeypatch, capsys
):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    out = tmp_path / "grid"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        killer = threading.Thread(
            target=lambda: (
                wait_for(begun(out, RUNS[0])),
                cluster.remove_node(nodes[0], allow_graceful=False),
            )
        )
        killer.start()
        assert compare.main([f"experiment={experiment}", f"out={out}", "launcher=ray"]) == 0
        killer.join()
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert ends_of(out) == ends_of(undisturbed)


def test_no_ray_cluster_at_the_address(experiment, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    for address, why in (("127.0.0.1:1", "refused"), ("nonsense", "an address is like")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert compare.main([f"experiment={experiment}", f"out={tmp_path}", "launcher=ray"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"there is no Ray cluster at RAY_ADDRESS={address}" in error
        assert why in error
