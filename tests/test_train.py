"""The command lines, as a user types them: runs, mistakes, interruptions, resuming."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from gumbelrl import evaluate, train
from gumbelrl.agents import AGENTS
from gumbelrl.tracking import read_metrics

QUICK = [
    "total_steps=600",
    "eval_every=200",
    "eval_episodes=5",
    "checkpoint_every=200",
    "log_every=100",
]
SAC = ["agent.learning_starts=50", "agent.batch_size=16", "agent.policy_kwargs.net_arch=[16]"]


def run(tmp_path, *arguments, name="run"):
    code = train.main([*QUICK, f"run_dir={tmp_path / name}", *arguments])
    return code, tmp_path / name


def rows_without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def tensors(folder, step=600):
    from gumbelrl.agents.storage import read_agent_file

    return read_agent_file(folder / "checkpoints" / f"step-{step:09d}" / "agent.zip")[1]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_writes_everything_it_knows(tmp_path, capsys, agent):
    extra = SAC if agent == "gumbel_sac" else []
    code, folder = run(tmp_path, f"agent={agent}", *extra)
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["agent"], summary["env"], summary["seed"]) == (agent, "CartPole-v1", 0)
    assert summary["env_steps"] >= 600
    assert summary["eval"]["episodes"] == 5
    assert 8 <= summary["eval"]["return_mean"] <= 500
    assert summary["versions"]["torch"]
    evaluations = [r for r in rows_without_times(folder) if "eval/return_mean" in r]
    assert len(evaluations) == 4  # at 200, 400, 600, and the final one
    out = capsys.readouterr().out
    assert (
        str(folder) in out.replace("\n", "").replace("│", "").replace(" ", "") or folder.name in out
    )
    assert evaluate.main([f"run={folder}", "episodes=3", "checkpoint=best"]) == 0
    assert "95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_command_gives_the_same_metrics(tmp_path, agent):
    extra = SAC if agent == "gumbel_sac" else []
    _, first = run(tmp_path, f"agent={agent}", *extra, name="first")
    _, second = run(tmp_path, f"agent={agent}", *extra, name="second")
    _, other = run(tmp_path, f"agent={agent}", *extra, "seed=1", name="other")
    assert rows_without_times(first) == rows_without_times(second)
    assert rows_without_times(first) != rows_without_times(other)


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path):
    _, whole = run(tmp_path, *SAC, name="whole")
    code, cut = run(tmp_path, *SAC, "total_steps=450", name="cut")
    assert code == 0
    # The run was killed after its checkpoint at 400 steps: what came later never happened.
    for later in (cut / "checkpoints").glob("step-*450"):
        import shutil

        shutil.rmtree(later)
    assert train.main([f"resume={cut}", "total_steps=600"]) == 0
    a, b = tensors(whole), tensors(cut)
    assert all((a[k] == b[k]).all() for k in a if k.startswith(("policy/", "optimizer/")))
    whole_rows, cut_rows = rows_without_times(whole), rows_without_times(cut)
    steps = [r["env_steps"] for r in whole_rows]
    assert [r["env_steps"] for r in cut_rows] == steps
    assert cut_rows == whole_rows


def test_resuming_keeps_the_configuration(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    assert train.main([f"resume={folder}"]) == 2
    assert "finished" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "agent.gamma=0.5"]) == 2
    assert "agent cannot change" in capsys.readouterr().err
    assert train.main([f"resume={tmp_path / 'nothing'}"]) == 2


def test_a_run_folder_cannot_import_code(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    config = folder / "config.yaml"
    planted = config.read_text().replace("gumbelrl.agents.GumbelSAC", "os.system")
    config.write_text(planted)
    for command in (train.main, evaluate.main):
        key = "resume" if command is train.main else "run"
        assert command([f"{key}={folder}"]) == 2
        assert "would import code" in capsys.readouterr().err


def test_stops_at_a_confirmed_threshold(tmp_path):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == 200
    assert summary["reached"]["env_steps"] == 200
    assert summary["eval"]["episodes"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent.gama=0.9"], "did you mean 'gamma'?"),
        (["agnt=reinforce"], "did you mean 'agent'?"),
        (["agent=gumbel_sca"], "did you mean 'gumbel_sac'?"),
        (["env=cartpol"], "did you mean 'cartpole'?"),
        (["env=CartPol-v1"], "nearest registered ids are CartPole-v1"),
        (["agent.gamma=abc"], "agent.gamma must be a valid number"),
        (["agent.batch_size=1.5"], "agent.batch_size must be a valid integer"),
        (["agent.temperature=0"], "temperature must be a finite number > 0, got 0"),
        (["agent.polyak=2"], "polyak must be a number in (0, 1], got 2"),
        (["agent.policy_kwargs.net_arch=[]"], "net_arch must list at least one hidden width"),
        (["agent.policy_kwargs.critc=heads"], "did you mean 'critic'?"),
        (["agent.estimator=reinmx"], "'reinmax'"),
        (["agent.policy=CnnPolic"], "Allowed: MlpPolicy"),
        (["total_steps=-5"], "total_steps must be greater than or equal to 1, got -5"),
        (["tracking.mode=onlin"], "auto, online, offline or disabled, got 'onlin'"),
        (["env=Pendulum-v1"], "Stable-Baselines3's SAC"),
        (["env=gym"], "env.id has no value"),
        (["seed=1,2"], "a sweep of values"),
        (["nonsense"], "arguments are key=value"),
        (["device=cuda:99"], "device=cuda:99, but this torch sees"),
        (["device=gpu"], "device=gpu is unknown"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, capsys, arguments, message):
    code, folder = run(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("train.py: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()


def test_unwritable_run_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _ = run(tmp_path / "file")
    assert code == 2
    assert "run_dir=" in capsys.readouterr().err


@pytest.mark.parametrize("agent", AGENTS)
def test_nan_from_the_environment_ends_the_run_and_keeps_it(tmp_path, capsys, agent):
    extra = SAC if agent == "gumbel_sac" else []
    code, folder = run(
        tmp_path, f"agent={agent}", *extra, "env=known_envs:Broken-v0", "env.kwargs.at=333"
    )
    captured = capsys.readouterr()
    assert code == 2
    assert "nan in its reward (environment 0, env step 333)" in captured.err
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    assert all(tensor.isfinite().all() for tensor in tensors(folder, 200).values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cleanly_and_goes_on(tmp_path, signum):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gumbelrl.train", f"run_dir={folder}", "total_steps=1000000"]
    command += ["checkpoint_every=200", "eval_every=1000000", "log_every=100", *SAC]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "interrupted" in out
    assert "resume" in out
    steps = json.loads((folder / "summary.json").read_text())["env_steps"]
    assert train.main([f"resume={folder}", f"total_steps={steps + 300}"]) == 0


def test_help_is_quick_and_complete(capsys):
    assert train.main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("total_steps", "gumbel_sac", "cartpole", "resume"):
        assert word in out
