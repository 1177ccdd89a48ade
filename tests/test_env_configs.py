"""Every env= that there is: made as configured, it takes an action of its space."""

import gymnasium
import numpy as np
import pytest
from gumbelrl.configs.build import env_factory
from gumbelrl.configs.compose import compose, group_options
from gumbelrl.envs import MakeEnvError

ACTION_SPACES = {
    "hopper": gymnasium.spaces.Box,
    "halfcheetah": gymnasium.spaces.Box,
    "hopper_binned": gymnasium.spaces.MultiDiscrete([7] * 3),
    "halfcheetah_binned": gymnasium.spaces.MultiDiscrete([7] * 6),
    "halfcheetah_bang_bang": gymnasium.spaces.MultiBinary(6),
    "minatar_breakout": gymnasium.spaces.Discrete(3),
    "taxi": gymnasium.spaces.Discrete(6),
}


@pytest.mark.parametrize("name", [name for name in group_options("env") if name != "gym"])
def test_it_is_made_and_takes_a_step(name):
    config = compose([f"env={name}", "agent=ppo"])
    try:
        env = env_factory(config["env"])(2, 0)
    except MakeEnvError as error:
        if "needs a package" in str(error):
            pytest.skip(str(error))
        raise
    wanted = ACTION_SPACES.get(name)
    if wanted is not None:
        fits = isinstance(env.action_space, wanted) if isinstance(wanted, type) else None
        assert env.action_space == wanted or fits
    env.action_space.seed(0)
    env.reset()
    obs, rewards, _, _ = env.step(np.array([env.action_space.sample() for _ in range(2)]))
    assert len(obs) == len(rewards) == 2
    env.close()
