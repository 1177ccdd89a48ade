"""Running statistics of observations and rewards: followed in training, frozen in evaluation."""

import json

import known_envs  # noqa: F401 (registers Identity-v0)
import numpy as np
import pytest
from command_lines import QUICK, SMALL
from gumbelrl import evaluate, train
from gumbelrl.agents import GumbelSAC
from gumbelrl.configs.build import evaluating
from gumbelrl.envs import (
    MakeEnvError,
    freeze_statistics,
    make_vec_env,
    read_statistics,
    write_statistics,
)
from stable_baselines3.common.vec_env import VecNormalize

IDS = ["CartPole-v1", "gumbelrl/CartPole-v1"]


def play(env, steps):
    observations, rewards = [env.reset()], []
    for _ in range(steps):
        obs, reward, _, _ = env.step(
            np.array([env.action_space.sample() for _ in range(env.num_envs)])
        )
        observations.append(obs)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


@pytest.mark.parametrize("id", IDS)
def test_the_statistics_are_those_of_what_was_seen(id):
    env = make_vec_env(id, 4, seed=0, normalize_obs=True, normalize_reward=True)
    env.action_space.seed(0)
    raw, step_wait, reset = [], env.venv.step_wait, env.venv.reset
    env.venv.reset = lambda: raw.append(reset()) or raw[-1].copy()
    env.venv.step_wait = lambda: (lambda out: raw.append(out[0].copy()) or out)(step_wait())
    play(env, 200)
    statistics = read_statistics(env)
    seen = np.concatenate(raw)
    assert statistics["obs/mean"] == pytest.approx(seen.mean(0), abs=1e-3)
    assert statistics["obs/var"] == pytest.approx(seen.var(0), rel=1e-2)
    assert statistics["obs/count"] == pytest.approx(201 * 4, abs=1)


@pytest.mark.parametrize("id", IDS)
def test_written_statistics_are_the_read_ones_to_the_bit(id):
    first = make_vec_env(id, 2, seed=0, normalize_obs=True, normalize_reward=True)
    play(first, 50)
    second = make_vec_env(id, 2, seed=0, normalize_obs=True, normalize_reward=True)
    write_statistics(second, read_statistics(first))
    obs = np.ones((2, 4), np.float32)
    assert (second.normalize_obs(obs) == first.normalize_obs(obs)).all()
    assert (second.normalize_reward(obs) == first.normalize_reward(obs)).all()


@pytest.mark.parametrize("id", IDS)
def test_a_frozen_environment_follows_nothing_and_gives_raw_rewards(id):
    training = make_vec_env(id, 2, seed=0, normalize_obs=True, normalize_reward=True)
    play(training, 50)
    statistics = read_statistics(training)
    settings = {"normalize_obs": True, "normalize_reward": True}

    def make_env(n_envs, seed):
        return make_vec_env(id, n_envs, seed, **settings)

    frozen = evaluating(make_env, lambda: statistics)(3, 7)
    _, rewards = play(frozen, 50)
    assert (rewards == 1).all()
    after = read_statistics(frozen)
    assert all((after[name] == statistics[name]).all() for name in statistics)
    plain = make_vec_env(id, 2, seed=0)
    freeze_statistics(plain, {})  # one that does not normalise stays as it is


def test_images_stay_what_they_are_in_the_replay_where_only_rewards_are_normalised():
    """Every row of one of `Identity`'s images is black or white, in every channel and column."""
    settings = {"kwargs": {"form": "image"}, "normalize_reward": True}
    agent = GumbelSAC("CnnPolicy", make_vec_env("Identity-v0", 2, 0, **settings), device="cpu")
    agent.learn(20)
    images = agent.replay_buffer.obs[:10].float()  # (10, N, C, H, W)
    assert images.shape[2:] == (3, 36, 36)
    assert images.std((2, 4)).max() == 0
    assert images.std((2, 3)).min() > 0


def test_images_that_are_transposed_outside_are_refused():
    env = VecNormalize(
        make_vec_env("Identity-v0", 2, 0, kwargs={"form": "image"}), norm_obs=False, gamma=0.9
    )
    agent = GumbelSAC("CnnPolicy", env, device="cpu")
    with pytest.raises(ValueError, match=r"\(2, 3, 36, 36\), got \(2, 36, 36, 3\).*inside it"):
        agent.learn(20)


def test_statistics_of_another_environment_are_refused():
    cartpole = make_vec_env("CartPole-v1", normalize_obs=True)
    acrobot = make_vec_env("Acrobot-v1", normalize_obs=True)
    with pytest.raises(ValueError, match=r"obs/mean must have shape \(6,\).*\(4,\)"):
        write_statistics(acrobot, read_statistics(cartpole))
    with pytest.raises(ValueError, match="there is none"):
        write_statistics(acrobot, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "FrozenLake-v1", "normalize_obs": True}, "normalize_obs=true on FrozenLake-v1"),
        ({"id": "CartPole-v1", "gamma": 2}, "gamma must be a number in"),
    ],
)
def test_what_cannot_be_normalised_is_refused(settings, message):
    with pytest.raises(MakeEnvError, match=message):
        make_vec_env(**settings)


def test_runs_report_raw_returns_and_evaluate_repeats_them(tmp_path, capsys):
    folder = tmp_path / "run"
    normalize = ["env.normalize_obs=true", "env.normalize_reward=true", "agent.gamma=0.9"]
    command = ["agent=ppo", "env=cartpole", *SMALL["ppo"], *normalize, *QUICK]
    assert train.main([*command, f"run_dir={folder}"]) == 0
    result = json.loads((folder / "summary.json").read_text())["eval"]
    assert result["return_min"] == round(result["return_min"]) >= 8
    assert "gamma: 0.9" in (folder / "config.yaml").read_text().partition("env:")[2]
    capsys.readouterr()
    assert evaluate.main([f"run={folder}", "episodes=5"]) == 0
    assert f"{result['return_mean']:.2f} " in capsys.readouterr().out
    assert evaluate.main([f"run={folder}", "episodes=5", "checkpoint=best"]) == 0
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        (checkpoint / "normalization.safetensors").unlink()
    assert evaluate.main([f"run={folder}", "episodes=5"]) == 2
    assert "normalization.safetensors" in capsys.readouterr().err
