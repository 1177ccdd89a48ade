"""Making environments: what stands behind an id, and what is said when nothing does."""

import gymnasium
import known_envs  # noqa: F401 (registers the ids)
import numpy as np
import pytest
from gumbelrl.envs import MakeEnvError, NonFiniteError, make_env, make_vec_env
from gymnasium import spaces


def test_vectorised_restarts_in_the_same_step_and_tells_truncation():
    env = make_vec_env("CartPole-v1", 3, seed=0, max_episode_steps=7)
    env.reset()
    for _ in range(7):
        obs, _, dones, infos = env.step(np.array([0, 1, 0]))
    ended = [i for i in range(3) if dones[i]]
    assert ended, "seven alternating steps from the start stand"
    for i in ended:
        assert infos[i]["TimeLimit.truncated"]
        assert infos[i]["episode"]["l"] == 7
        assert not np.allclose(obs[i], infos[i]["terminal_observation"])
        assert np.abs(obs[i]).max() <= 0.05  # CartPole's starting range: a new episode


def test_same_seed_same_observations():
    def rollout(seed):
        env = make_vec_env("CartPole-v1", 2, seed=seed)
        return np.concatenate([env.reset(), *[env.step([0, 1])[0] for _ in range(60)]])

    np.testing.assert_array_equal(rollout(5), rollout(5))
    assert not np.array_equal(rollout(5), rollout(6))


def test_async_gives_what_sync_gives():
    actions = np.random.default_rng(0).integers(2, size=(40, 2))

    def rollout(vectorization):
        env = make_vec_env("CartPole-v1", 2, seed=5, vectorization=vectorization)
        result = np.concatenate([env.reset(), *[env.step(a)[0] for a in actions]])
        env.close()
        return result

    np.testing.assert_array_equal(rollout("sync"), rollout("async"))


def test_wrappers_by_path_mapping_and_callable():
    env = make_env(
        "CartPole-v1",
        wrappers=[
            {"wrapper": "gymnasium.wrappers.FrameStackObservation", "stack_size": 3},
            "gymnasium.wrappers.FlattenObservation",
            lambda e: gymnasium.wrappers.TransformReward(e, lambda r: 10 * r),
        ],
    )
    assert env.observation_space.shape == (12,)
    env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(0)
        total, done = total + float(reward), terminated or truncated
    assert info["episode"]["r"] == total  # returns are those after the wrappers


def test_module_ids_import_their_module():
    assert make_env("known_envs:Identity-v0").observation_space.shape == (4,)


@pytest.mark.parametrize("field", ["reward", "observation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_named(field, value):
    env = make_vec_env("Broken-v0", 2, kwargs={"field": field, "value": value, "at": 3})
    env.reset()
    env.step([0, 0])
    env.step([0, 0])
    place = r" at index \[1\]" if field == "observation" else ""
    message = rf"{value} in its {field}{place} \(environment 0, env step 6 since they"
    with pytest.raises(NonFiniteError, match=message):
        env.step([0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "CartPol-v1"}, "nearest registered ids are CartPole-v1"),
        ({"id": "CartPole-v9"}, "nearest registered ids are CartPole-v1"),
        ({"id": "zzzzzz"}, "nothing registered looks like it"),
        ({"id": "no_such_module:X-v0"}, "no_such_module"),
        ({"id": "CartPole-v1", "kwargs": {"gravty": 1}}, "gravty"),
        ({"id": "CartPole-v1", "wrappers": ["gymnasium.wrappers.Flaten"]}, "Flaten"),
        ({"id": "CartPole-v1", "wrappers": ["Flatten"]}, "import path"),
        ({"id": "CartPole-v1", "n_envs": 0}, "n_envs must be an integer >= 1, got 0"),
        ({"id": "CartPole-v1", "vectorization": "asink"}, "'sync' or 'async', got 'asink'"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message):
    with pytest.raises(MakeEnvError, match=message):
        make_vec_env(**arguments)


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})})]
)
def test_observations_that_are_no_arrays_are_refused(space):
    def odd(env):
        return gymnasium.wrappers.TransformObservation(env, lambda obs: obs, space)

    with pytest.raises(MakeEnvError, match=r"dictionary of arrays.*FlattenObservation"):
        make_vec_env("CartPole-v1", wrappers=odd)


@pytest.mark.parametrize(
    ("id", "package", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("MinAtar/Breakout-v1", "minatar", "minatar"),
    ],
)
def test_missing_extras_are_named(monkeypatch, id, package, extra):
    import sys

    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails, installed or not
    for module in list(sys.modules):
        if module.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco")):
            monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MakeEnvError, match=rf'pip install "gumbelrl\[{extra}\]"'):
        make_env(id)
