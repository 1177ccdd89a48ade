"""Baselines from the shelf: they learn, refuse what they cannot do, and are saved as data."""

import json
import zipfile

import gymnasium
import known_envs  # noqa: F401 (registers Identity-v0)
import numpy as np
import pytest
import torch
from gumbelrl import evaluate, train
from gumbelrl.agents import A2C, DQN, PPO, QRDQN, SAC, MaskablePPO
from gumbelrl.envs import make_vec_env
from gumbelrl.tracking import read_metrics
from stable_baselines3.common.evaluation import evaluate_policy

SMALL_NET = {"net_arch": [16]}
ON_POLICY = {"n_steps": 16, "policy_kwargs": SMALL_NET}
OFF_POLICY = {
    "buffer_size": 500,
    "learning_starts": 20,
    "batch_size": 16,
    "policy_kwargs": SMALL_NET,
}
SETTINGS = {
    PPO: {**ON_POLICY, "batch_size": 16, "n_epochs": 2},
    A2C: ON_POLICY,
    DQN: {**OFF_POLICY, "target_update_interval": 30},
    QRDQN: {**OFF_POLICY, "target_update_interval": 30},
    SAC: OFF_POLICY,
}


def identity(action_space="discrete"):
    return gymnasium.make("Identity-v0", action_space=action_space)


def env_for(agent):
    return gymnasium.make("Pendulum-v1") if agent is SAC else identity()


@pytest.mark.parametrize(
    ("agent", "action_space", "settings", "steps"),
    [
        (PPO, "discrete", {"n_steps": 128}, 2000),
        (PPO, "multi_discrete", {"n_steps": 128}, 2000),
        (PPO, "multi_binary", {"n_steps": 128}, 2000),
        (A2C, "discrete", {}, 2500),
        (DQN, "discrete", {"target_update_interval": 1}, 1500),
        (QRDQN, "discrete", {"batch_size": 64, "policy_kwargs": {"n_quantiles": 10}}, 1500),
    ],
)
def test_they_solve_the_identity_task(agent, action_space, settings, steps):
    env = identity(action_space)
    quick = {"learning_rate": 3e-3, "gamma": 0.0, "device": "cpu", "seed": 0}
    model = agent("MlpPolicy", env, **quick, **settings).learn(steps)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    assert mean > 19  # of 20


@pytest.mark.parametrize("agent", [PPO, A2C, DQN, QRDQN, SAC])
def test_a_loaded_agent_is_the_saved_one_without_pickle(tmp_path, agent):
    env = env_for(agent)
    model = agent("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[agent]).learn(100)
    model.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert set(archive.namelist()) == {"agent.json", "tensors.safetensors"}
        json.loads(archive.read("agent.json"))
    loaded = agent.load(tmp_path / "agent", env=env, device="cpu")
    obs = np.stack([env.observation_space.sample() for _ in range(20)])
    assert (
        loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]
    ).all()
    assert loaded.num_timesteps == model.num_timesteps
    loaded.learn(100, reset_num_timesteps=False)


@pytest.mark.parametrize("agent", [DQN, SAC])
def test_the_replay_comes_back_without_pickle(tmp_path, agent):
    model = agent("MlpPolicy", env_for(agent), seed=0, device="cpu", **SETTINGS[agent]).learn(90)
    path = tmp_path / "replay.safetensors"
    model.save_replay_buffer(path)
    other = agent("MlpPolicy", env_for(agent), seed=1, device="cpu", **SETTINGS[agent])
    other.load_replay_buffer(path)
    a, b = model.replay_buffer, other.replay_buffer
    assert (a.pos, a.full) == (b.pos, b.full)
    assert a.pos >= 90
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert (getattr(a, name) == getattr(b, name)).all()
    smaller = agent(
        "MlpPolicy", env_for(agent), device="cpu", **{**SETTINGS[agent], "buffer_size": 50}
    )
    with pytest.raises(ValueError, match="does not fit"):
        smaller.load_replay_buffer(path)


def test_a_full_replay_does_not_leave_a_gap_in_a_larger_one(tmp_path):
    settings = {**SETTINGS[DQN], "buffer_size": 50}
    model = DQN("MlpPolicy", identity(), device="cpu", **settings).learn(60)
    model.save_replay_buffer(tmp_path / "replay")
    larger = DQN("MlpPolicy", identity(), device="cpu", **SETTINGS[DQN])
    with pytest.raises(ValueError, match="does not fit"):
        larger.load_replay_buffer(tmp_path / "replay")


def test_no_n_step_return_reaches_over_a_cut():
    settings = {**SETTINGS[DQN], "n_steps": 3, "gamma": 1.0}
    model = DQN("MlpPolicy", identity(), seed=0, device="cpu", **settings).learn(16)
    buffer = model.replay_buffer
    buffer.rewards[:] = 1.0
    buffer.dones[:] = 0.0
    model.cut_episodes()
    buffer.pos = 30  # steps that were stored after the cut
    batch = buffer._get_samples(np.array([13, 14, 15, 16]))
    assert batch.rewards.flatten().tolist() == [3, 2, 1, 3]
    assert not batch.dones.any()  # the value goes on


@pytest.mark.parametrize(
    ("agent", "env", "message"),
    [
        (DQN, identity("multi_discrete"), "serves Discrete actions.*use GumbelSAC, PPO, A2C"),
        (QRDQN, gymnasium.make("Pendulum-v1"), "serves Discrete actions.*use SAC, PPO, A2C"),
        (SAC, identity(), "serves Box actions.*use GumbelSAC, DQN"),
        (MaskablePPO, identity(), "action_masks.*use PPO"),
    ],
)
def test_what_an_agent_cannot_do_is_refused_with_the_way_out(agent, env, message):
    with pytest.raises(ValueError, match=message):
        agent("MlpPolicy", env)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be a number in \[0, 1\], got 1.5"),
        ({"n_steps": 0}, "n_steps must be an integer >= 1"),
        ({"learning_rate": 0}, "learning_rate must be a number in"),
        ({"learning_rate": {"schedule": "linear", "strt": 1}}, "'start'"),
        ({"policy_kwargs": {"activation_fn": "rellu"}}, "activation_fn must be one of"),
        ({"batch_size": 1}, "batch_size` must be greater than 1"),
        ({"max_grad_norm": 0}, r"max_grad_norm must be a number in \(0, inf\), got 0"),
        ({"ent_coef": -0.1}, r"ent_coef must be a number in \[0, inf\), got -0.1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PPO("MlpPolicy", identity(), **settings)


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        (DQN, {"train_freq": 0}, "train_freq must be an integer >= 1, got 0"),
        (DQN, {"train_freq": [0, "step"]}, "train_freq must be an integer >= 1, got 0"),
        (DQN, {"gradient_steps": -5}, "gradient_steps must be an integer >= 1, got -5"),
        (SAC, {"ent_coef": "atuo"}, "ent_coef must be a number or 'auto', got 'atuo'"),
        (SAC, {"target_entropy": "atuo"}, "target_entropy must be a number or 'auto'"),
    ],
)
def test_settings_of_a_replay_agent_out_of_range_are_named(agent, settings, message):
    with pytest.raises(ValueError, match=message):
        agent("MlpPolicy", env_for(agent), device="cpu", **{**SETTINGS[agent], **settings})
    agent("MlpPolicy", env_for(agent), device="cpu", **{**SETTINGS[agent], "gradient_steps": -1})


def test_training_by_episodes_is_for_one_environment():
    by_episodes = {**SETTINGS[DQN], "train_freq": [1, "episode"]}
    DQN("MlpPolicy", identity(), **by_episodes).learn(100)
    with pytest.raises(ValueError, match="needs one environment, got n_envs=2"):
        DQN("MlpPolicy", make_vec_env("known_envs:Identity-v0", 2), **by_episodes)


def test_schedules_reach_the_library():
    linear = {"schedule": "linear", "start": 0.4, "end": 0.0}
    model = PPO("MlpPolicy", identity(), learning_rate=linear, clip_range=linear)
    assert (model.lr_schedule(1.0), model.lr_schedule(0.5), model.lr_schedule(0.0)) == (0.4, 0.2, 0)
    assert model.clip_range(0.25) == pytest.approx(0.1)


def test_the_library_does_not_change_what_it_was_given(tmp_path):
    kwargs = {"net_arch": [8], "activation_fn": "relu"}
    model = A2C("MlpPolicy", identity(), policy_kwargs=kwargs)
    assert kwargs == {"net_arch": [8], "activation_fn": "relu"}
    model.save(tmp_path / "agent")
    assert isinstance(
        A2C.load(tmp_path / "agent").policy.mlp_extractor.policy_net[1], torch.nn.ReLU
    )


class Masked(gymnasium.Env):
    """Only the action that the observation names is allowed; taking another one raises."""

    observation_space = gymnasium.spaces.Box(0, 1, (4,))
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.wanted = 0, int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.wanted], {}

    def step(self, action):
        assert action == self.wanted, "a masked action was taken"
        self.t += 1
        self.wanted = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.wanted], 1.0, self.t == 10, False, {}

    def action_masks(self):
        return np.arange(4) == self.wanted


gymnasium.register("Masked-v0", Masked)

RUN = ["eval_every=200", "eval_episodes=4", "checkpoint_every=200", "log_every=100"]


def test_masks_hold_in_training_and_in_evaluation(tmp_path):
    folder = tmp_path / "run"
    command = ["agent=maskable_ppo", "env=Masked-v0", "agent.n_steps=50", "agent.batch_size=50"]
    assert train.main([*command, *RUN, "total_steps=400", f"run_dir={folder}"]) == 0
    assert json.loads((folder / "summary.json").read_text())["eval"]["return_mean"] == 10
    assert evaluate.main([f"run={folder}", "episodes=3"]) == 0
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if "train/loss" in r]
    assert rows
    assert all(row["train/entropy"] == 0 for row in rows)  # one action is allowed at a time
