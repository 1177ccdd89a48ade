"""Continuous actions as a choice of evenly spaced values."""

import gymnasium
import numpy as np
import pytest
from gumbelrl.envs import BinnedActions, make_env


class Arm(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, low=(-1.0, 0.0), high=(1.0, 4.0)):
        self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high))

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), 0.0, False, False, {"taken": action}

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}


@pytest.mark.parametrize(
    ("indices", "values"),
    [([0, 0], [-1, 0]), ([4, 4], [1, 4]), ([2, 1], [0, 1]), ([1, 3], [-0.5, 3])],
)
def test_indices_stand_for_evenly_spaced_values(indices, values):
    env = BinnedActions(Arm(), n_bins=5)
    assert env.action_space == gymnasium.spaces.MultiDiscrete([5, 5])
    assert env.step(np.array(indices))[4]["taken"].tolist() == values


def test_two_bins_may_be_binary():
    env = BinnedActions(Arm(), n_bins=2, multi_binary=True)
    assert env.action_space == gymnasium.spaces.MultiBinary(2)
    for dtype in (np.int8, np.float32):  # PPO's Bernoulli actions are floats
        assert env.step(np.array([0, 1], dtype))[4]["taken"].tolist() == [-1, 4]
    with pytest.raises(ValueError, match="n_bins must be 2"):
        BinnedActions(Arm(), n_bins=3, multi_binary=True)


def test_a_configuration_reaches_it_and_the_step_is_the_environments_own():
    wrapper = {"wrapper": "gumbelrl.envs.BinnedActions", "n_bins": 3}
    binned, plain = make_env("Pendulum-v1", wrappers=[wrapper]), gymnasium.make("Pendulum-v1")
    binned.reset(seed=3)
    plain.reset(seed=3)
    for index, torque in ((0, -2), (1, 0), (2, 2)):
        ours, theirs = binned.step(np.array([index])), plain.step(np.float32([torque]))
        assert (ours[0] == theirs[0]).all()
        assert ours[1] == theirs[1]


@pytest.mark.parametrize(
    ("env", "n_bins", "message"),
    [
        (gymnasium.make("CartPole-v1"), 3, "needs a bounded Box action space, got Discrete"),
        (Arm(high=(1.0, np.inf)), 3, "needs a bounded Box"),
        (Arm(), 1, "n_bins must be an integer >= 2, got 1"),
    ],
)
def test_what_cannot_be_binned_is_refused(env, n_bins, message):
    with pytest.raises(ValueError, match=message):
        BinnedActions(env, n_bins)
