"""Environments made anew behind whoever holds them."""

import os
import signal

import gymnasium as gym
import numpy as np
import pytest
from gumbelrl.envs import MakeEnvError, make_vec_env, read_statistics, rebuild
from stable_baselines3.common.vec_env import SubprocVecEnv, VecCheckNan


def test_new_environments_stand_behind_the_same_object():
    env = make_vec_env("CartPole-v1", 2, 0)
    outside = VecCheckNan(env)  # as an agent's own wrapper holds it
    before = [id(one) for one in env.get_attr("unwrapped")]
    rebuild(env, lambda: make_vec_env("CartPole-v1", 2, 7))
    assert not set(before) & {id(one) for one in env.get_attr("unwrapped")}
    np.testing.assert_array_equal(outside.venv.reset(), make_vec_env("CartPole-v1", 2, 7).reset())


@pytest.mark.parametrize("id", ["CartPole-v1", "gumbelrl/CartPole-v1"])
def test_running_statistics_of_vec_normalize_are_carried_over(id):
    def make():
        return make_vec_env(id, 2, 0, normalize_obs=True, normalize_reward=True)

    env = make()
    env.reset()
    for _ in range(20):
        env.step(np.zeros(2, int))
    before = read_statistics(env)
    rebuild(env, make)
    after = read_statistics(env)
    assert all((before[name] == after[name]).all() for name in before)
    assert before["obs/count"] > 20


def test_the_old_ones_are_closed_even_if_they_mind():
    closed = []

    class Minding(gym.Wrapper):
        def close(self):
            closed.append(self)
            raise RuntimeError("not now")

    env = make_vec_env("CartPole-v1", 1, 0, wrappers=Minding)
    rebuild(env, lambda: make_vec_env("CartPole-v1", 1, 1))
    assert len(closed) == 1


def test_what_cannot_be_made_again_is_one_error():
    env = make_vec_env("CartPole-v1", 1, 0)
    with pytest.raises(MakeEnvError, match=r"action_space Discrete\(3\); it was Discrete\(2\)"):
        rebuild(env, lambda: make_vec_env("Acrobot-v1", 1, 0, wrappers=_with_four_numbers))

    def broken():
        raise KeyError("x")

    with pytest.raises(MakeEnvError, match="x"):
        rebuild(env, broken)


def _with_four_numbers(env):
    space = make_vec_env("CartPole-v1").observation_space
    return gym.wrappers.TransformObservation(env, lambda obs: obs[:4], space)


def test_worker_processes_are_replaced():
    env = make_vec_env("CartPole-v1", 2, 0, vectorization="async")
    old = list(env.unwrapped.processes)
    rebuild(env, lambda: make_vec_env("CartPole-v1", 2, 5, vectorization="async"))
    try:
        assert not any(process.is_alive() for process in old)
        np.testing.assert_array_equal(env.reset(), make_vec_env("CartPole-v1", 2, 5).reset())
    finally:
        env.close()


def test_an_interrupt_waits_until_all_workers_have_begun(monkeypatch):
    def begin(self, env_fns):
        os.kill(os.getpid(), signal.SIGINT)
        begun.append(len(env_fns))

    begun = []
    monkeypatch.setattr(SubprocVecEnv, "__init__", begin)
    with pytest.raises(KeyboardInterrupt):
        make_vec_env("CartPole-v1", 2, 0, vectorization="async")
    assert begun == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
