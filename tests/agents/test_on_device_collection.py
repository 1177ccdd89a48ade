"""GumbelSAC on on-device environments: tensors go to the replay as they are, and rightly."""

import torch
from gumbelrl.agents import GumbelSAC
from gumbelrl.envs import make_vec_env
from gumbelrl.envs.registration import make_task
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize


def make(env, **kwargs):
    settings = {"learning_starts": 400, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}
    return GumbelSAC("MlpPolicy", env, seed=0, device="cpu", **{**settings, **kwargs})


def test_the_replay_holds_the_dynamics():
    agent = make(make_vec_env("gumbelrl/CartPole-v1", 4, seed=0, max_episode_steps=30))
    agent.learn(2_000, log_interval=None)
    task, replay = make_task("CartPole-v1"), agent.replay_buffer
    assert len(replay) == 2_000
    filled = slice(0, replay.pos)
    obs, next_obs = replay.obs[filled], replay.next_obs[filled]
    one_hot = torch.nn.functional.one_hot(replay.actions[filled][..., 0], 2).float()
    expected = task.transition(obs, one_hot, obs[..., :0])  # CartPole shows its whole state
    torch.testing.assert_close(next_obs, expected)
    terminated = task.terminated(next_obs)
    assert torch.equal(replay.terminated[filled].bool(), terminated)
    # An episode goes on where the last step led, unless it ended: by falling, or after 30 steps.
    moved_on = (obs[1:] == next_obs[:-1]).all(-1)
    assert (moved_on | (obs[1:].abs() <= 0.05).all(-1)).all()
    truncated = ~moved_on & ~terminated[:-1]
    assert truncated.any()
    # Warm-up actions are uniform: 400 of two kinds, 3.9 standard deviations is 1e-4.
    assert abs(replay.actions[:100].float().mean().item() - 0.5) < 3.9 * 0.025


def test_episodes_are_counted_and_logged():
    agent = make(make_vec_env("gumbelrl/CartPole-v1", 4, seed=0))
    rows = []
    agent.set_logger(Logger(None, []))
    agent.logger.dump = lambda step: rows.append(dict(agent.logger.name_to_value))
    agent.learn(3_000)  # log_interval counts episodes, as elsewhere
    assert rows
    assert 8 < rows[-1]["rollout/ep_rew_mean"] < 500
    assert rows[-1]["rollout/ep_rew_mean"] == rows[-1]["rollout/ep_len_mean"]  # +1 a step


def test_wrappers_are_not_left_out():
    env = VecNormalize(make_vec_env("gumbelrl/CartPole-v1", 4, seed=0))
    agent = make(env)
    agent.learn(800, log_interval=None)
    assert agent.episodes is None  # the ordinary way
    assert env.obs_rms.count > 700


def test_environments_started_anew_begin_their_episodes_anew():
    class Restart(BaseCallback):
        def _on_rollout_start(self):
            if self.num_timesteps in (400, 1200):
                self.training_env.reset()

        def _on_step(self):
            return True

    agent = make(make_vec_env("gumbelrl/CartPole-v1", 4, seed=0))
    agent.learn(2_000, callback=Restart(), log_interval=None)
    agent._report_episodes()
    assert agent.ep_info_buffer
    assert all(info["r"] == info["l"] for info in agent.ep_info_buffer)  # +1 a step
