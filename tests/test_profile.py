"""`profile_training.py`: the run is train.py's, the table says what its time went into."""

import re

import pytest
import torch
from command_lines import FRAGILE, QUICK, SMALL, rows_without_times
from gumbelrl import profile_training, train
from gumbelrl.agents import phases
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

pytestmark = pytest.mark.usefixtures("modules_of_the_user")
SHORT = ["steps=120", "warm_up=100", "device=cpu"]


@pytest.fixture
def windows(monkeypatch):
    """What was measured, instead of its speeds in a line."""
    kept = []
    monkeypatch.setattr(profile_training, "speed_lines", lambda measured: kept.extend(measured))
    return kept


def profile(*arguments):
    return profile_training.main([*QUICK, *SHORT, *arguments])


EVERYWHERE = {"environment", "acting", "logging", "checkpoints", "training", "rest", "evaluation"}
UPDATES = {"targets", "critic", "actor"}
REPLAY = {"replay: add", "replay: sample"}
PARTS = {
    "gumbel_sac": EVERYWHERE | UPDATES | REPLAY | {"optimiser"},
    "gumbel_shac": EVERYWHERE | UPDATES,
    "reinforce": EVERYWHERE | {"critic", "actor", "rollout"},
    "ppo": EVERYWHERE | {"rollout"},
    "a2c": EVERYWHERE | {"rollout"},
    "dqn": EVERYWHERE | REPLAY | {"targets"},
    "sac": EVERYWHERE | REPLAY,
}


@pytest.mark.parametrize("agent", PARTS)
def test_every_agent_has_its_phases_and_their_calls(windows, capsys, agent):
    step, on_step = DummyVecEnv.step, BaseCallback.on_step
    assert profile(f"agent={agent}", "env.n_envs=1", *SMALL[agent]) == 0
    with_clock, without = windows
    times = with_clock.times
    assert set(times.seconds) - {"trust meter"} == PARTS[agent]
    n_envs = 2 if agent == "gumbel_shac" else 1
    assert with_clock.env_steps >= 120
    assert times.calls["environment"] * n_envs in range(
        with_clock.env_steps,
        with_clock.env_steps + 20,  # and the resets of a REINFORCE rollout
    )
    if agent in ("gumbel_sac", "gumbel_shac", "reinforce"):
        assert times.calls["critic"] == with_clock.updates > 0
    assert without.env_steps >= 120
    assert set(without.times.seconds) <= {"evaluation", "checkpoints", "rest"}
    table = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"([\d.]+)%", table)]
    assert shares[-1] == 100.0
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05 * len(shares))
    # Nothing stays behind.
    assert (DummyVecEnv.step, BaseCallback.on_step) == (step, on_step)
    assert phases._listener is None


@pytest.mark.parametrize("agent", ["gumbel_sac", "gumbel_shac", "reinforce"])
def test_the_clock_changes_nothing_that_is_learned(tmp_path, windows, agent):
    arguments = [*QUICK, f"agent={agent}", *SMALL[agent], "tracking=disabled", "device=cpu"]
    assert train.main([*arguments, f"run_dir={tmp_path / 'train'}"]) == 0
    profiled = tmp_path / "profile"
    assert profile_training.main([*arguments, *SHORT, f"run_dir={profiled}"]) == 0
    rows = rows_without_times(profiled)
    assert len(rows) >= 3
    assert rows == rows_without_times(tmp_path / "train")[: len(rows)]


def test_environments_on_the_device_count_too(windows):
    assert profile("env=device_cartpole", "env.n_envs=4", *SMALL["gumbel_sac"]) == 0
    calls = windows[0].times.calls
    steps = windows[0].env_steps // 4
    assert calls["acting"] == calls["replay: add"] == steps
    assert calls["environment"] >= steps


def test_without_a_folder_named_nothing_is_left(tmp_path, capsys):
    assert profile(*SMALL["gumbel_sac"]) == 0
    assert not (tmp_path / "working" / "runs").exists()
    out = capsys.readouterr().out
    assert "gumbel_sac on CartPole-v1, cpu, 1 CPU thread, torch" in out
    assert re.search(r"with the clock: [\d,]+ steps/s, [\d,]+ updates/s over 1\d\d steps\n", out)
    assert "without it: " in out


def test_ctrl_c_shows_what_was_measured_until_then(windows, capsys):
    at = ["env.kwargs.signals=[SIGINT]", "env.kwargs.number=1", "env.kwargs.at=7"]
    assert profile(*FRAGILE, "warm_up=0", *at) == 130
    assert [window.env_steps for window in windows] in ([6], [7])
    assert windows[0].times.calls["environment"] == 7
    assert "environment" in capsys.readouterr().out


def test_ctrl_c_in_the_warm_up_says_that_there_is_nothing(capsys):
    at = ["env.kwargs.signals=[SIGINT]", "env.kwargs.number=1", "env.kwargs.at=7"]
    assert profile(*FRAGILE, *at) == 130
    assert "stopped in the warm-up: nothing was measured" in capsys.readouterr().err


def test_training_that_ends_early_is_shown_too(windows):
    assert profile(*SMALL["gumbel_sac"], "stop_at_return=1", "warm_up=150") == 0
    assert [window.env_steps for window in windows] == [50]


def test_an_error_of_the_environment_is_told_below_the_table(capsys):
    at = ["env.kwargs.error=RuntimeError", "env.kwargs.number=1", "env.kwargs.at=7"]
    assert profile(*FRAGILE, "warm_up=0", *at) == 1
    captured = capsys.readouterr()
    assert "environment" in captured.out
    assert "RuntimeError: x" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=0"], "steps must be greater than or equal to 1, got 0"),
        (["steps=abc"], "steps must be a valid integer"),
        (["warm_up=-1"], "warm_up must be greater than or equal to 0, got -1"),
        (["steps=300"], "are 700 in all, because they are measured twice"),
        (["resume=runs/x"], "a profile makes one of its own"),
        (["agent=gumbel_sca"], "did you mean 'gumbel_sac'?"),
        (["device=mps"], "device=mps is unknown"),
        (["env=CartPol-v1"], "nearest registered ids are CartPole-v1"),
        (["nonsense"], "arguments are key=value"),
    ],
)
def test_a_mistake_ends_in_one_message(capsys, arguments, message):
    assert profile(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("profile_training.py: ")
    assert error.count("\n") == 1


def test_marks_cost_a_compiled_update_nothing():
    """A compiler goes through them without leaving its graph."""

    def update(x):
        phases.phase("critic")
        return x * 2

    assert torch.equal(
        torch.compile(update, fullgraph=True, backend="eager")(torch.ones(2)),
        torch.full((2,), 2.0),
    )
