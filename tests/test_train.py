"""The command lines, as a user types them: what a run writes, and what a mistake is told."""

import json
import os
import subprocess
import sys

import pytest
from command_lines import FRAGILE, SAC, SMALL, rows_without_times, run, summary_of
from gumbelrl import evaluate, train
from gumbelrl.agents.storage import read_agent_file

pytestmark = pytest.mark.usefixtures("modules_of_the_user")


@pytest.mark.parametrize("agent", ["gumbel_sac", "gumbel_shac", "reinforce", "ppo", "dqn"])
def test_a_run_writes_everything_it_knows(tmp_path, capsys, agent):
    code, folder = run(tmp_path, f"agent={agent}", *SMALL[agent])
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    env = "gumbelrl/CartPole-v1" if agent == "gumbel_shac" else "CartPole-v1"
    assert (summary["agent"], summary["env"], summary["seed"]) == (agent, env, 0)
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


def test_a_run_without_a_best_checkpoint_says_what_it_has(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC, "eval_every=5000")
    assert evaluate.main([f"run={folder}", "checkpoint=best"]) == 2
    error = capsys.readouterr().err
    assert f"no checkpoint 'best' in {folder}, which has step-000000600;" in error


@pytest.mark.parametrize("agent", ["gumbel_sac", "gumbel_shac", "reinforce", "ppo", "dqn"])
def test_the_same_command_gives_the_same_metrics(tmp_path, agent):
    extra = SMALL[agent]
    _, first = run(tmp_path, f"agent={agent}", *extra, name="first")
    _, second = run(tmp_path, f"agent={agent}", *extra, name="second")
    _, other = run(tmp_path, f"agent={agent}", *extra, "seed=1", name="other")
    assert rows_without_times(first) == rows_without_times(second)
    assert rows_without_times(first) != rows_without_times(other)


def test_stops_at_a_confirmed_threshold(tmp_path):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == 200
    assert summary["reached"]["env_steps"] == 200
    assert summary["eval"]["episodes"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=true"], "seed must be a number, got true"),
        (["agent.batch_size=true"], "agent.batch_size must be a number, got true"),
        (["total_steps=1e300"], "total_steps must be"),
        (["total_steps=9007199254740993"], "less than or equal to 9007199254740992"),
        (["stop_at_return=nan"], "stop_at_return must be a finite number"),
        (["run_dir="], "run_dir is empty"),
        (["hydra.run.dir=x"], "no key 'hydra.run.dir'"),
        (["env.max_episode_steps=-1"], "max_episode_steps must be >= 1 or null, got -1"),
        (["env.render_mode=foo"], "no render_mode 'foo'; the environment has: human, rgb_array"),
        (["env=it's-v0"], "needs quotes of its own"),
        (["env=ünïcode-v0"], "needs quotes of its own"),
        (['env="it\'s-v0"'], 'no environment "it\'s-v0"'),
        (["env='ünïcode-v0'"], "no environment 'ünïcode-v0'"),
        (["agent._target_=nope.nope"], "No module named 'nope'"),
        (["agent._target_=stable_baselines3.PPO"], "train.py runs gumbelrl's agents (gumbel_sac"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=RuntimeError"], "made: RuntimeError: x"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=KeyError"], "made: KeyError: 'x'"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=Mute"], "could not be made: Mute"),
        (["env=broken_module:X-v0"], "could not be made: RuntimeError: not today"),
        (["device=mps"], "device=mps is unknown"),
        (["device=meta"], "device=meta is unknown"),
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
        (["agent=ppo", "agent.batch_size=1"], "`batch_size` must be greater than 1"),
        (["agent=ppo", "agent.gamma=2"], "gamma must be a number in [0, 1], got 2"),
        (["agent=ppo", "agent.policy_kwargs.activation_fn=rellu"], "'elu', 'gelu', 'relu'"),
        (["tuned=flase"], "tuned must be a valid boolean"),
        (["env=gym"], "env.id has no value"),
        (["seed=1,2"], "a sweep of values"),
        (["nonsense"], "arguments are key=value"),
        (["device=cuda:99"], "device=cuda:99, but this torch sees"),
        (["device=gpu"], "device=gpu is unknown"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, capsys, caplog, arguments, message):
    code, folder = run(tmp_path, *arguments)
    assert code == 2
    only_says(message, folder, capsys, caplog)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["agent=gumbel_shac", "env=known_envs:Identity-v0"],
            "backpropagates through the environment",
        ),
        (["env=Pendulum-v1"], "Stable-Baselines3's SAC"),
        (["agent=dqn", "env=Pendulum-v1"], "DQN serves Discrete actions, got Box"),
        (
            ["agent=dqn", "env=coupled_control"],
            "got MultiDiscrete([5 5 5 5",
        ),
        (["agent=sac"], "SAC serves Box actions, got Discrete(2): use GumbelSAC, DQN"),
        (["agent=maskable_ppo"], "needs an environment with action masks"),
        (["agent=gumbel_shac", "env.normalize_obs=true"], "VecNormalize"),
    ],
)
def test_what_an_agent_does_not_serve_has_an_exit_code_of_its_own(
    tmp_path, capsys, caplog, arguments, message
):
    code, folder = run(tmp_path, *arguments)
    assert code == train.DOES_NOT_APPLY == 3
    only_says(message, folder, capsys, caplog)


def only_says(message, folder, capsys, caplog):
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()
    assert not caplog.records


def test_unwritable_run_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _ = run(tmp_path / "file")
    assert code == 2
    assert "run_dir=" in capsys.readouterr().err


@pytest.mark.parametrize("agent", ["gumbel_sac", "reinforce"])
def test_nan_from_the_environment_ends_the_run_and_keeps_it(tmp_path, capsys, agent):
    extra = SMALL[agent]
    broken = ["env=known_envs:Broken-v0", "env.kwargs.at=133", "eval_every=100"]
    code, folder = run(tmp_path, f"agent={agent}", *extra, *broken)
    captured = capsys.readouterr()
    assert code == 2
    assert "nan in its reward (environment 0, env step 133 since" in captured.err
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    (best,) = (folder / "checkpoints").iterdir()
    tensors = read_agent_file(best / "agent.zip")[1]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_wrapper_may_end_episodes(tmp_path):
    wrapper = "{wrapper: gymnasium.wrappers.TimeLimit, max_episode_steps: 5}"
    code, folder = run(tmp_path, *SAC, f"env.wrappers=[{wrapper}]")
    assert code == 0
    assert summary_of(folder)["eval"]["return_mean"] == 5


def test_a_single_wrapper_needs_no_list(tmp_path):
    code, folder = run(tmp_path, *SAC, "env.wrappers=gymnasium.wrappers.RecordEpisodeStatistics")
    assert code == 0
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


@pytest.mark.parametrize("number", [1, 2], ids=["training", "final evaluation"])
def test_a_failure_of_the_environment_is_shown_after_the_table(
    tmp_path, capsys, exit_codes, number
):
    where = [f"env.kwargs.number={number}", "env.kwargs.at=7", "env.kwargs.error=RuntimeError"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000", "checkpoint_every=1000")
    captured = capsys.readouterr()
    assert (code, exit_codes[0]) == (1, 1)
    assert captured.err.endswith("RuntimeError: x\n")
    assert "in happen" in captured.err
    assert "failed" in captured.out
    assert "last checkpoint │" in captured.out
    summary = summary_of(folder)
    assert (summary["complete"], summary["failure"]) == (False, "RuntimeError: x")


def test_environments_that_cannot_be_made_again_are_one_line(tmp_path, capsys):
    again = ["env.kwargs.number=2", "env.kwargs.at=0", "env.kwargs.error=RuntimeError"]
    code, folder = run(tmp_path, *FRAGILE, *again, "eval_every=1000")
    error = capsys.readouterr().err
    last = folder / "checkpoints" / "step-000000200"
    assert code == 2
    assert (
        "cannot be made anew after the checkpoint at 200 steps (fragile_envs:Fragile-v0 could"
        in error
    )
    assert error.endswith(f"{last} is complete: repair the environment, then resume\n")
    assert "Traceback" not in error
    assert train.main([f"resume={folder}", "trust=[fragile_envs]"]) == 0  # environment 3, 4, ...


def test_nan_in_an_evaluation_is_one_line(tmp_path, capsys, exit_codes):
    where = ["env.kwargs.number=2", "env.kwargs.at=7", "env.kwargs.error=not_a_number"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000", "checkpoint_every=1000")
    error = capsys.readouterr().err
    assert (code, exit_codes[0]) == (2, 1)
    assert "nan in its reward" in error
    assert "Traceback" not in error
    assert "nan in its reward" in summary_of(folder)["failure"]


def test_without_a_home_folder_the_tracker_is_quiet(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "gumbelrl.train", "total_steps=100", "eval_episodes=1"]
    ended = subprocess.run(
        [*command, f"run_dir={tmp_path / 'run'}"],
        env={**environment, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert summary_of(tmp_path / "run")["command"].startswith("python train.py total_steps=100 ")


def test_a_wrong_tracking_mode_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    code, folder = run(tmp_path, *SAC)
    assert code == 2
    assert "WANDB_MODE must be" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("script", "prefix"),
    [("train.py", "python train.py"), ("bin/gumbelrl-train", "gumbelrl-train")],
)
def test_commands_are_named_as_the_user_starts_them(monkeypatch, script, prefix):
    monkeypatch.setattr(sys, "argv", [script])
    assert train.programs() == (prefix, prefix.replace("train", "evaluate"))


def test_help_is_quick_and_complete(capsys):
    assert train.main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("total_steps", "gumbel_sac", "cartpole", "resume"):
        assert word in out
