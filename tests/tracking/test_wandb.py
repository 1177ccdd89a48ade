import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gumbelrl.tracking import (
    Evaluation,
    JsonlWriter,
    RunFolder,
    TrackingSettings,
    WandbTracker,
    log_evaluation,
    read_metrics,
    resolve_mode,
)
from gumbelrl.tracking.resend import main as resend
from stable_baselines3.common.logger import Logger
from wandb_files import inspect

KEY = "k" * 40


@pytest.mark.parametrize(
    ("mode", "environ", "expected", "because"),
    [
        ("auto", {}, "offline", "no API key"),
        ("auto", {"WANDB_API_KEY": KEY}, "online", "WANDB_API_KEY"),
        ("auto", {"WANDB_API_KEY": " "}, "offline", "no API key"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline", "WANDB_MODE=offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline", "WANDB_MODE=dryrun"),
        ("auto", {"WANDB_MODE": "online"}, "online", "WANDB_MODE=online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "disabled", "WANDB_MODE"),
        ("auto", {"WANDB_MODE": ""}, "offline", "no API key"),
        ("online", {"WANDB_MODE": "disabled"}, "online", "configuration"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline", "configuration"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled", "configuration"),
    ],
)
def test_the_mode_and_its_reason(mode, environ, expected, because, tmp_path):
    choice = resolve_mode(mode, environ=environ, netrc_path=tmp_path / "none")
    assert choice.mode == expected
    assert because in choice.reason
    assert KEY not in choice.reason


OWN = {"WANDB_BASE_URL": "https://wandb.example.org"}


@pytest.mark.parametrize(
    ("host", "environ", "expected"),
    [
        ("api.wandb.ai", {}, "online"),
        ("github.com", {}, "offline"),
        ("api.wandb.ai", OWN, "offline"),
        ("wandb.example.org", OWN, "online"),
        (None, {}, "offline"),
    ],
)
def test_keys_in_a_netrc_file(host, environ, expected, tmp_path):
    path = tmp_path / "netrc"
    path.write_text(f"machine {host} login user password {KEY}\n" if host else "not a netrc file")
    path.chmod(0o600)
    assert resolve_mode(environ=environ, netrc_path=path).mode == expected
    assert resolve_mode(environ={**environ, "NETRC": str(path)}).mode == expected


def test_wrong_modes_are_named():
    with pytest.raises(ValueError, match="auto, online, offline or disabled, got 'of'"):
        resolve_mode("of")
    with pytest.raises(ValueError, match=r"WANDB_MODE must be .* got 'of'"):
        resolve_mode(environ={"WANDB_MODE": "of"})
    with pytest.raises(ValueError, match="got 'of'"):
        TrackingSettings(mode="of")
    with pytest.raises(ValueError, match="finish_timeout must be > 0 seconds, got 0"):
        TrackingSettings(finish_timeout=0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user is told; W&B's own log goes to its files."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("gumbelrl")]


def tracker(folder: Path, config: Any = None, **settings: Any) -> WandbTracker:
    given = TrackingSettings(**{"mode": "offline", **settings})
    return WandbTracker(resolve_mode(given.mode), given, folder, config)


def test_an_offline_run_holds_configuration_and_evaluations_against_env_steps(
    tmp_path, monkeypatch, capfd, caplog
):
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the configuration goes first
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = {"seed": 3, "agent": {"name": "gumbel_sac", "layers": [64, 64], "x": None}}
    writer = tracker(tmp_path, config, tags=("t",), notes="a note")
    assert writer.mode == "offline"
    logger = Logger(None, [JsonlWriter(tmp_path / "metrics.jsonl"), writer])
    for n in range(1, 4):
        log_evaluation(logger, Evaluation((1.0 * n, 3.0 * n), (5, 7)), 1000 * n)
    writer.summarise({"eval": {"return_mean": 6.0}})
    logger.close()
    noise = capfd.readouterr()
    assert (noise.out, noise.err) == ("", "")
    assert not warnings_of(caplog)
    assert writer.sync_command is not None
    (run_dir,) = (tmp_path / "wandb").glob("offline-run-*")
    assert writer.sync_command.startswith("wandb sync ")
    assert Path(writer.sync_command.removeprefix("wandb sync ")).resolve() == run_dir

    records = inspect(run_dir)
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    written = run["config"]["update"]
    assert {key: written[key] for key in config} == config
    assert run["project"] == "gumbelrl"
    assert run["run_id"] == writer.run_id
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert {m.get("glob_name"): m.get("step_metric") for m in metrics}["*"] == "env_steps"
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in history]
    assert rows == read_metrics(tmp_path / "metrics.jsonl")  # W&B tells what the file tells
    assert [(row["env_steps"], row["eval/return_mean"]) for row in rows] == [
        (1000, 2.0),
        (2000, 4.0),
        (3000, 6.0),
    ]
    for path in tmp_path.rglob("*"):  # the key is in no file of the run folder
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_two_runs_in_one_process_are_two_runs(tmp_path):
    first, second = tracker(tmp_path / "a"), tracker(tmp_path / "b")
    assert first.run_id != second.run_id
    first.close()
    second.write({"a": 1.0}, {}, 1)
    second.close()
    import wandb

    assert wandb.run is None
    (run_dir,) = (tmp_path / "b" / "wandb").glob("offline-run-*")
    assert any(record["type"] == "history" for record in inspect(run_dir))


def test_what_w_and_b_missed_is_sent_from_the_run_folder(tmp_path, capsys):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({"seed": 3, "tracking": {"mode": "offline", "project": "mine"}})
    metrics = JsonlWriter(folder.metrics_path)
    for step in (10, 20, 20):
        metrics.write({"a": step / 3}, {}, step)
    metrics.close()
    assert resend(["wandb", str(folder.path)]) == 0
    (segment,) = (folder.path / "wandb").glob("offline-run-*")
    command = capsys.readouterr().out.rpartition("wandb sync ")[2].strip()
    assert Path(command).resolve() == segment.resolve()
    history = [r["history"]["item"] for r in inspect(segment) if r["type"] == "history"]
    assert [(row["env_steps"], row["a"]) for row in history] == [(s, s / 3) for s in (10, 20, 20)]


@pytest.mark.parametrize("trouble", ["no key", "refused", "hangs"])
def test_online_falls_back_to_offline_with_one_warning(trouble, tmp_path, monkeypatch, caplog):
    server = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    if trouble == "refused":
        server.close()
    if trouble != "no key":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    writer = tracker(tmp_path, mode="online", start_timeout=1.0)
    writer.write({"a": 1.0}, {}, 10)
    writer.close()
    server.close()
    assert writer.mode == "offline"
    assert "could not start online" in writer.reason
    assert len(warnings_of(caplog)) == 1
    (run_dir,) = (tmp_path / "wandb").glob("*run-*")  # no litter of the failed start
    assert run_dir.name.startswith("offline-run-")
    assert [r["history"]["item"]["a"] for r in inspect(run_dir) if r["type"] == "history"] == [1]


def test_without_wandb_installed_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    writer = tracker(tmp_path)
    writer.write({"a": 1.0}, {}, 1)
    writer.close()
    assert writer.unsent_rows == 1
    (warning,) = warnings_of(caplog)
    assert "metrics.jsonl has everything" in warning


def test_importing_tracking_loads_neither_wandb_nor_torch():
    code = (
        "import sys, gumbelrl.tracking as t; assert 'evaluate' in dir(t); "
        "t.RunFolder, t.end_table, t.derive_seed; "
        "print([m for m in ('wandb', 'torch', 'stable_baselines3') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
    lazy = "import sys, gumbelrl.tracking as t; t.Trackers; print('wandb' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


STUCK = """
import os, pathlib, signal, subprocess, sys, time
from gumbelrl.tracking import TrackingSettings, WandbTracker, resolve_mode
settings = TrackingSettings(mode="offline", finish_timeout=0.5)
writer = WandbTracker(resolve_mode("offline"), settings, sys.argv[1])
while writer.run is None:
    time.sleep(0.01)
ask = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
service = int(subprocess.run(ask, capture_output=True, text=True).stdout.split()[0])
pathlib.Path(sys.argv[1], "service").write_text(str(service))
os.kill(service, signal.SIGSTOP)
for step in range(100):
    writer.write({"a": 1.0}, {}, step)
writer.close()
pathlib.Path(sys.argv[1], "closed").touch()
"""


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")
def test_a_stuck_wandb_service_keeps_no_process_from_ending(tmp_path):
    # A child of a process that uses W&B shares its service; this one shall have its own.
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    # Its output goes to a file: the stuck service inherits it, and would hold a pipe open.
    with open(tmp_path / "output", "w+") as output:
        try:
            ended = subprocess.run(
                [sys.executable, "-c", STUCK, str(tmp_path)],
                stdout=output,
                stderr=output,
                env=environ,
                timeout=60,  # without a limit of ours it would wait for ever
            )
        finally:
            if (tmp_path / "service").exists():
                os.kill(int((tmp_path / "service").read_text()), signal.SIGKILL)
        output.seek(0)
        said = output.read()
    assert ended.returncode == 0, said
    assert (tmp_path / "closed").exists()
    assert said.count("\n") == 1
    assert "did not finish within 0.5 s" in said
