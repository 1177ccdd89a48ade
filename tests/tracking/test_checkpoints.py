import os
from pathlib import Path
from typing import Any

import pytest
from gumbelrl.tracking import (
    CheckpointCallback,
    RunFolderError,
    best,
    latest,
    previous,
    reading,
)
from gumbelrl.tracking.checkpoints import checkpoint_steps, write_checkpoint
from stable_baselines3 import DQN, PPO

OFF = {"learning_starts": 8, "buffer_size": 1000, "train_freq": 1}
SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


def save(path: Path) -> None:
    (path / "weights").mkdir()
    (path / "weights" / "actor").write_text("weights")
    (path / "state.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(path: Path) -> None:
    (path / "half").write_text("half")
    raise OSError(28, "No space left on device")


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    assert latest(folder) is None
    assert best(folder) is None
    keeper = CheckpointCallback(10, folder, save, keep=2)
    keeper.save_best(500)
    for steps in (999, 20_000, 999_999_999, 1_000_000_000):  # one digit more
        keeper.save_now(steps)
    keeper.save_best(20_000)
    assert names(folder) == ["best-000020000", "step-1000000000", "step-999999999"]
    assert latest(folder) == folder / "step-1000000000"
    assert best(folder) == folder / "best-000020000"
    assert (folder / "step-999999999" / "weights" / "actor").read_text() == "weights"


def test_a_run_that_went_back_leaves_no_later_checkpoint(tmp_path):
    keeper = CheckpointCallback(10, tmp_path, save)
    for steps in (10, 20, 30):
        keeper.save_now(steps)
    keeper.save_now(25)
    assert names(tmp_path) == ["step-000000020", "step-000000025"]


def test_a_failed_write_leaves_the_last_good_one_and_warns_once(tmp_path, caplog):
    keeper = CheckpointCallback(10, tmp_path, save, keep=1)
    good = keeper.save_now(10)
    keeper.save = disk_full
    assert keeper.save_now(20) is None
    assert keeper.save_now(30) is None
    assert keeper.failures == 2
    assert latest(tmp_path) == good
    assert names(tmp_path) == ["step-000000010"]
    (record,) = caplog.records
    assert "at 20 env steps" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert str(good) in record.getMessage()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_replacement_leaves_the_old_one(tmp_path, monkeypatch, broken):
    old = write_checkpoint(tmp_path, "step-000000010", save)
    (old / "state.json").write_text("old")
    real = getattr(os, broken)
    calls = 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        # of `replace`, the second call gives the new one its name; the third puts the old one back
        if broken == "fsync" or calls == 2:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_checkpoint(tmp_path, "step-000000010", save)
    assert names(tmp_path) == ["step-000000010"]
    assert (old / "state.json").read_text() == "old"


def test_ctrl_c_leaves_no_half_checkpoint(tmp_path):
    def interrupted(path: Path) -> None:
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    keeper = CheckpointCallback(10, tmp_path, interrupted)
    with pytest.raises(KeyboardInterrupt):
        keeper.save_now(10)
    assert names(tmp_path) == []


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path):
    old = write_checkpoint(tmp_path, "best-000000010", save)
    (old / "state.json").write_text("old")
    assert write_checkpoint(tmp_path, "best-000000010", save) == old
    assert (old / "state.json").read_text() == "{}"
    assert names(tmp_path) == ["best-000000010"]


@pytest.mark.parametrize(("n_envs", "expected"), [(1, [100, 200, 250]), (8, [104, 200, 256])])
def test_cadence_off_policy(tmp_path, envs, n_envs, expected):
    agent = DQN("MlpPolicy", envs(n_envs, 0), **OFF, **SMALL)
    written: list[int] = []

    def watch(path: Path) -> None:
        written.append(agent.num_timesteps)
        save(path)

    keeper = CheckpointCallback(100, tmp_path, watch, keep=9)
    agent.learn(250, callback=keeper)
    assert written == expected
    assert [checkpoint_steps(tmp_path / name) for name in names(tmp_path)] == expected


def test_on_policy_checkpoints_stand_between_an_update_and_the_next_rollout(tmp_path, envs):
    agent = PPO("MlpPolicy", envs(1, 0), n_steps=64, batch_size=32, n_epochs=1, **SMALL)
    seen: list[tuple[int, int]] = []

    def watch(path: Path) -> None:
        seen.append((agent.num_timesteps, agent._n_updates))
        save(path)

    keeper = CheckpointCallback(100, tmp_path, watch)
    agent.learn(256, callback=keeper)
    # rollouts of 64: the first boundary at or after 100 is 128 with 2 updates done
    assert seen == [(128, 2), (256, 4)]


def test_going_on_writes_nothing_twice_and_clears_the_litter_of_a_killed_run(tmp_path, envs):
    agent = DQN("MlpPolicy", envs(1, 0), **OFF, **SMALL)
    agent.learn(150, callback=CheckpointCallback(100, tmp_path, save, keep=9))
    (tmp_path / ".unfinished-step-000000200-ab").mkdir()
    agent.learn(
        100, callback=CheckpointCallback(100, tmp_path, save, keep=9), reset_num_timesteps=False
    )
    steps = ["step-000000100", "step-000000150", "step-000000200", "step-000000250"]
    assert names(tmp_path) == steps


def test_wrong_settings_and_names_are_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every must be >= 1 env step, got 0"):
        CheckpointCallback(0, tmp_path, save)
    with pytest.raises(ValueError, match="keep must be >= 1 checkpoint, got 0"):
        CheckpointCallback(1, tmp_path, save, keep=0)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        checkpoint_steps("step-last")


@pytest.mark.parametrize("write", [save, disk_full])
def test_what_follows_a_scheduled_checkpoint_follows_a_failed_write_too(tmp_path, envs, write):
    agent = DQN("MlpPolicy", envs(1, 0), **OFF, **SMALL)
    at: list[int] = []

    def learn(steps: int) -> None:
        keeper = CheckpointCallback(
            100, tmp_path, write, after_scheduled=lambda: at.append(agent.num_timesteps)
        )
        agent.learn(steps, callback=keeper, reset_num_timesteps=False)

    learn(250)
    assert at == [100, 200]  # not after the last, which no schedule asked for
    learn(100)
    assert at == [100, 200, 300]


def test_the_checkpoint_before(tmp_path):
    for name in ("step-000000100", "step-000000200", "best-000000150"):
        write_checkpoint(tmp_path, name, save)
    assert previous(tmp_path / "step-000000200") == tmp_path / "step-000000100"
    assert previous(tmp_path / "best-000000150") == tmp_path / "step-000000100"
    assert previous(tmp_path / "step-000000100") is None
    assert previous(tmp_path / "elsewhere") is None


def test_whatever_reading_raises_is_one_line_with_a_remedy(tmp_path):
    with (
        pytest.raises(RunFolderError, match=r"from .*a\.json \(KeyError: 'x'\); try b$"),
        reading(tmp_path / "a.json", "try b"),
    ):
        raise KeyError("x")
