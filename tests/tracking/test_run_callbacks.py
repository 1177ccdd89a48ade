"""The rhythm of a run."""

import numpy as np
import pytest
from gumbelrl.tracking import JsonlWriter, LogCallback, read_metrics, restart_environments
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


@pytest.mark.parametrize(("n_envs", "expected"), [(1, [100, 200]), (8, [104, 200])])
def test_a_row_at_the_first_step_at_or_after_each_multiple(tmp_path, envs, n_envs, expected):
    agent = DQN("MlpPolicy", envs(n_envs, 0), learning_starts=8, train_freq=1, **SMALL)
    agent.set_logger(Logger(None, [JsonlWriter(tmp_path / "m")]))
    agent.learn(250, callback=LogCallback(100), log_interval=None)
    assert [row["env_steps"] for row in read_metrics(tmp_path / "m")] == expected
    agent.learn(100, callback=LogCallback(100), log_interval=None, reset_num_timesteps=False)
    steps = [row["env_steps"] for row in read_metrics(tmp_path / "m")]
    assert steps == [*expected, 304 if n_envs == 8 else 300]


def test_rows_need_an_interval():
    with pytest.raises(ValueError, match="log_every must be >= 1 env step, got 0"):
        LogCallback(0)


def test_environments_begin_again_from_the_seed_and_the_step(envs):
    agent = DQN("MlpPolicy", envs(2, 0), **SMALL)

    def restarted(seed: int, env_steps: int) -> tuple[np.ndarray, list[int]]:
        agent.num_timesteps = env_steps
        restart_environments(agent, agent.get_env(), envs, seed)
        return agent._last_obs.copy(), [agent.action_space.sample() for _ in range(30)]

    first, again = restarted(3, 100), restarted(3, 100)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]
    for other in (restarted(3, 200), restarted(4, 100)):
        assert not np.array_equal(first[0], other[0])
        assert first[1] != other[1]
