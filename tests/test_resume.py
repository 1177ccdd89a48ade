"""Runs that were interrupted, damaged or stopped, and what goes on from them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from command_lines import FRAGILE, SAC, SMALL, rows_without_times, run, summary_of
from gumbelrl import evaluate, train
from gumbelrl.agents.storage import read_agent_file
from gumbelrl.configs.compose import ConfigError, check_trusted
from gumbelrl.tracking import RunFolder, read_heartbeat
from safetensors.numpy import load_file

pytestmark = pytest.mark.usefixtures("modules_of_the_user")


@pytest.mark.parametrize(
    ("agent", "n_envs"),
    [
        *product(["gumbel_sac", "gumbel_shac", "reinforce", "ppo", "dqn"], [1, 4]),
        ("a2c", 4),
        ("qr_dqn", 4),
        ("sac", 4),
    ],
)
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path, agent, n_envs):
    resumed_and_undisturbed_end_alike(
        tmp_path, f"agent={agent}", *SMALL[agent], f"env.n_envs={n_envs}"
    )


@pytest.mark.parametrize("agent", ["ppo", "dqn", "gumbel_sac"])
def test_a_resumed_run_goes_on_with_its_running_statistics(tmp_path, agent):
    normalize = ["env.normalize_obs=true", "env.normalize_reward=true", "env.n_envs=2"]
    ends = resumed_and_undisturbed_end_alike(tmp_path, f"agent={agent}", *SMALL[agent], *normalize)
    whole, cut = (load_file(end / "normalization.safetensors") for end in ends)
    assert set(whole) == {
        f"{of}/{what}" for of in ("obs", "return") for what in ("mean", "var", "count")
    }
    assert all((whole[name] == cut[name]).all() for name in whole)
    assert whole["obs/count"] > 600


def test_a_resumed_run_holds_the_random_actions_that_an_undisturbed_one_does(tmp_path):
    holds = ["agent.uniform_mix=0.5", "agent.uniform_hold=50", "env.n_envs=4"]
    resumed_and_undisturbed_end_alike(tmp_path, "agent=gumbel_sac", *SMALL["gumbel_sac"], *holds)


MEMORIES = """[
    gymnasium.wrappers.NormalizeObservation,
    {wrapper: gymnasium.wrappers.NormalizeReward, gamma: 0.9},
    {wrapper: gymnasium.wrappers.FrameStackObservation, stack_size: 3},
    gymnasium.wrappers.FlattenObservation]"""


@pytest.mark.parametrize("agent", ["gumbel_sac", "reinforce", "ppo", "dqn"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_environments_and_wrappers_that_remember_resume_exactly(tmp_path, agent, n_envs):
    remembering = ["env=known_envs:Remembering-v0", f"env.wrappers={' '.join(MEMORIES.split())}"]
    settings = [f"agent={agent}", *SMALL[agent], *remembering, f"env.n_envs={n_envs}"]
    resumed_and_undisturbed_end_alike(tmp_path, *settings, "env.normalize_obs=true")


def resumed_and_undisturbed_end_alike(tmp_path, *arguments):
    """Returns the last checkpoint of each."""
    # Schedules follow the progress to total_steps, which the shorter run reaches sooner.
    arguments += ("agent.learning_rate=0.003", "tuned=false")
    _, whole = run(tmp_path, *arguments, name="whole")
    code, cut = run(tmp_path, *arguments, "total_steps=450", name="cut")
    assert code == 0
    # The run was killed after its checkpoint at 400 steps: what came later never happened.
    *_, scheduled, last = sorted((cut / "checkpoints").glob("step-*"))
    assert last.name > "step-000000449" > scheduled.name
    shutil.rmtree(last)
    assert train.main([f"resume={cut}", "total_steps=600", "trust=[known_envs]"]) == 0
    ends = [sorted((folder / "checkpoints").glob("step-*"))[-1] for folder in (whole, cut)]
    assert ends[0].name == ends[1].name
    a, b = (read_agent_file(end / "agent.zip")[1] for end in ends)
    assert set(a) == set(b)
    assert all((a[k] == b[k]).all() for k in a)
    assert rows_as_text(cut) == rows_as_text(whole)
    return ends


def rows_as_text(folder):
    # As text NaN, an undefined variance, equals NaN.
    return json.dumps(rows_without_times(folder), sort_keys=True)


def test_resuming_keeps_the_configuration(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    assert train.main([f"resume={folder}"]) == 2
    assert "finished" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "agent.gamma=0.5"]) == 2
    assert "agent.gamma cannot change" in capsys.readouterr().err
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


def test_a_run_that_goes_on_is_evaluated_again_and_evaluate_repeats_it(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    first = summary_of(folder)["eval"]
    assert train.main([f"resume={folder}", "stop_at_return=null", "total_steps=500"]) == 0
    summary = summary_of(folder)
    result = summary["eval"]
    assert (first["env_steps"], result["env_steps"], result["episodes"]) == (200, 500, 5)
    assert first["seed"] != result["seed"]
    assert summary["steps_per_second"] == pytest.approx(500 / summary["train_seconds"], rel=0.01)
    for checkpoint in ("last", "step-000000500"):
        capsys.readouterr()
        assert evaluate.main([f"run={folder}", "episodes=5", f"checkpoint={checkpoint}"]) == 0
        out = capsys.readouterr().out
        assert f"{result['return_mean']:.2f} " in out
        assert f"{result['return_std']:.2f} " in out
        assert f"seed {result['seed']} " in out


def test_a_new_threshold_was_not_reached_by_the_old_one(tmp_path):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    assert train.main([f"resume={folder}", "stop_at_return=1000", "total_steps=500"]) == 0
    assert summary_of(folder)["reached"] is None


def test_an_interrupt_while_it_starts_is_one_line(tmp_path, capsys, monkeypatch):
    code, folder = run(tmp_path, *FRAGILE, "env.kwargs.signals=[SIGTERM]")
    assert code == 130
    assert capsys.readouterr().err == "train.py: interrupted before training began\n"
    assert not folder.exists()
    from gumbelrl.configs import compose

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compose, "compose", interrupted)
    assert train.main([]) == 130
    assert capsys.readouterr().err == "train.py: interrupted before training began\n"


@pytest.mark.parametrize("number", [1, 2], ids=["training", "final evaluation"])
@pytest.mark.parametrize("signals", ["[SIGINT]", "[SIGHUP]", "[SIGTERM,SIGINT]"])
def test_interrupts_leave_a_summary(tmp_path, capsys, exit_codes, number, signals):
    where = [f"env.kwargs.number={number}", "env.kwargs.at=7", f"env.kwargs.signals={signals}"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000", "checkpoint_every=1000")
    captured = capsys.readouterr()
    assert (code, exit_codes[0]) == (130, 130)
    assert "Traceback" not in captured.err
    assert "interrupted" in captured.out
    assert not summary_of(folder)["complete"]
    assert f"resume={folder}" in "".join(captured.out.split())
    assert read_heartbeat(folder / "heartbeat.json").phase == "interrupted"
    assert train.main([f"resume={folder}", "trust=[fragile_envs]"]) == 0  # environment 3, 4, ...
    assert summary_of(folder)["complete"]


@pytest.mark.parametrize("number", [1, 2], ids=["evaluation", "checkpoint"])
@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT", "SIGTERM"]], ids=["once", "twice"])
def test_a_signal_while_it_evaluates_or_saves(tmp_path, monkeypatch, capsys, number, signals):
    from gumbelrl.agents import GumbelSAC
    from gumbelrl.tracking import evaluation

    def interrupting(function):
        def interrupted(*arguments, **kwargs):
            result = function(*arguments, **kwargs)
            calls.append(1)
            if len(calls) == 2:  # at 400 steps
                for name in signals:
                    os.kill(os.getpid(), getattr(signal, name))
            return result

        return interrupted

    _, whole = run(tmp_path, *SAC, name="whole")
    calls = []
    with monkeypatch.context() as patch:
        if number == 1:
            patch.setattr(evaluation, "evaluate_policy", interrupting(evaluation.evaluate_policy))
        else:
            save = interrupting(GumbelSAC.save_replay_buffer)
            patch.setattr(GumbelSAC, "save_replay_buffer", save)
        code, cut = run(tmp_path, *SAC, name="cut")
    assert code == 130
    assert [path.name for path in (cut / "checkpoints").glob("step-*")] == ["step-000000200"]
    assert not list((cut / "checkpoints").glob(".*"))
    assert train.main([f"resume={cut}"]) == 0
    assert rows_as_text(cut) == rows_as_text(whole)


def test_a_signal_that_the_environment_swallows_ends_the_run_at_its_next_step(tmp_path):
    swallowing = ["env=known_envs:Swallowing-v0", "env.kwargs.at=150"]
    code, folder = run(tmp_path, *SAC, *swallowing)
    assert code == 130
    assert summary_of(folder)["env_steps"] == 150


def test_the_third_signal_ends_the_process(tmp_path):
    code = (
        "import os, signal\nfrom gumbelrl.tracking import StopSignals\n"
        "with StopSignals():\n"
        "    for n in (1, 2, 3):\n"
        "        try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "        except KeyboardInterrupt: pass\n"
        "        print(n, flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split() == ["1", "2"]
    assert ended.returncode == -signal.SIGTERM


def test_ctrl_c_in_a_terminal_reaches_workers_too(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gumbelrl.train", f"run_dir={folder}", "total_steps=1000000"]
    command += ["checkpoint_every=200", "eval_every=1000000", *SAC]
    command += ["env.vectorization=async", "env.n_envs=2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == ""
    assert "interrupted" in out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{}"),
        ("state.json", ""),
        ("state.json", None),
        ("agent.zip", None),
        ("agent.zip", "garbage"),
        ("replay/replay.json", "garbage"),
        ("replay/replay.json", None),
        ("checkpoint.json", None),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path, capsys, file, content):
    _, folder = run(tmp_path, *SAC)
    last, earlier = (folder / "checkpoints" / f"step-000000{n}00" for n in (6, 4))
    damage(last / file, content)
    metrics = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot go on from {last / file} (" in error
    assert error.endswith(f"to go on from {earlier.name}, remove {last}\n")
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    if file == "agent.zip" and content:
        assert evaluate.main([f"run={folder}"]) == 2
        assert f"take checkpoint={earlier.name}" in capsys.readouterr().err
    shutil.rmtree(last)
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


def damage(path, content):
    path.unlink()
    if content is not None:
        path.write_text(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", None),
        ("metrics.jsonl", '{"env_steps": 1}\nnonsense\n'),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("config.yaml", "seed: 0\nagent: [\n"),
        ("config.yaml", "seed: 0\n"),
    ],
)
def test_a_damaged_run_folder_is_one_line(tmp_path, capsys, file, content):
    _, folder = run(tmp_path, *SAC)
    damage(folder / file, content)
    capsys.readouterr()
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder / file) in error


def test_one_process_writes_a_run(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    with RunFolder.open(folder).locked():
        assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    assert "another process is writing the run" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


def test_a_run_goes_on_on_another_device(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:99"))
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    assert train.main([f"resume={folder}", "total_steps=700", "device=cpu", "threads=1"]) == 0


def test_resuming_changes_only_the_given_settings_of_tracking(tmp_path):
    _, folder = run(tmp_path, *SAC, "tracking.project=mine", "tracking.group=ours")
    assert train.main([f"resume={folder}", "tracking.mode=disabled", "total_steps=700"]) == 0
    tracking = RunFolder.open(folder).read_config()["tracking"]
    assert (tracking["mode"], tracking["project"], tracking["group"]) == (
        "disabled",
        "mine",
        "ours",
    )


def test_a_run_folder_does_not_open_the_working_folder(tmp_path, capsys):
    code, folder = run(tmp_path, *FRAGILE)
    assert code == 0  # the user's own command line does
    working = os.getcwd()
    assert sys.path.count(working) == 1
    sys.path.remove(working)
    for command in (train.main, evaluate.main):
        key = "resume" if command is train.main else "run"
        assert command([f"{key}={folder}"]) == 2
        assert "would import code" in capsys.readouterr().err
        assert working not in sys.path
    assert evaluate.main([f"run={folder}", "trust=[fragile_envs]", "episodes=1"]) == 0


def test_only_what_names_a_wrapper_counts_as_code():
    def config(wrappers):
        return {"env": {"wrappers": wrappers}}

    check_trusted(config([{"wrapper": "gymnasium.wrappers.X", "path": "a.b", "deep": ["c.d"]}]), [])
    for foreign in ("a.b", ["a.b"], {"wrapper": "a.b"}, [{"wrapper": "a.b"}]):
        with pytest.raises(ConfigError, match="would import code"):
            check_trusted(config(foreign), [])
        check_trusted(config(foreign), ["a"])


def test_successes_survive_a_checkpoint(tmp_path):
    _, folder = run(tmp_path, *FRAGILE)
    path = folder / "checkpoints" / "step-000000600" / "state.json"
    successes = json.loads(path.read_text())["successes"]
    assert len(successes) == 60
    _, whole = run(tmp_path, *FRAGILE, "total_steps=800", name="whole")
    assert train.main([f"resume={folder}", "total_steps=800", "trust=[fragile_envs]"]) == 0
    training = [r for r in rows_without_times(folder) if "rollout/success_rate" in r]
    assert training == [r for r in rows_without_times(whole) if "rollout/success_rate" in r]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_runs_killed_at_random_moments_end_as_undisturbed_ones_do():
    """Two kills of each agent; benchmarks/results/kills.txt holds 340."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.kills", "--kills=2", "--only=on-device        8"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total, _, _ = done.stdout.splitlines()
    what, kills, _, _, resumed, identical = total.split()
    assert (what, kills) == ("all", "6")
    assert resumed == identical
