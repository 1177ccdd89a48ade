"""What every registered on-device environment promises: one test, all of them."""

import subprocess
import sys
import types
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gumbelrl.agents import GumbelSHAC
from gumbelrl.envs import (
    BatchedDriver,
    MakeEnvError,
    NonFiniteError,
    OnDeviceVecEnv,
    SingleEnv,
    make_driver,
    make_env,
    make_task,
    make_vec_env,
    on_device_ids,
    registration,
)
from gumbelrl.envs.cartpole import CartPole
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.monitor import Monitor

IDS = [id for id in on_device_ids() if id.startswith("gumbelrl/")]  # not other tests' tasks
every_environment = pytest.mark.parametrize("id", IDS)


def random_indices(task, batch_shape, generator):
    draws = [torch.randint(k, batch_shape, generator=generator) for k in task.nvec]
    return torch.stack(draws, -1)  # (..., M)


def roll(driver, n_steps, seed=0):
    """Random steps; every tensor of every step."""
    generator = torch.Generator().manual_seed(seed)
    return [
        driver.step(random_indices(driver.env, driver.batch_shape, generator))
        for _ in range(n_steps)
    ]


def assert_same(steps, others, reshape=lambda x: x):
    for step, other in zip(steps, others, strict=True):
        for mine, theirs in zip(step, other, strict=True):
            assert torch.equal(reshape(mine), theirs)


def to_actions(task, indices):
    """Indices [N, M] as the NumPy action of the adapters."""
    return (indices[:, 0] if len(task.nvec) == 1 else indices).numpy()


@every_environment
def test_checkers_pass(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Unbounded observations are meant.
        warnings.filterwarnings("ignore", "(?s).*(infinity|normaliz)")
        check_env(gymnasium.make(id).unwrapped)
        check_env_of_sb3(gymnasium.make(id))


@every_environment
def test_shapes_and_spaces(id):
    task = make_task(id)
    driver = BatchedDriver(task, 5, seed=0)
    obs = driver.reset()
    assert driver.state.shape == (5, task.state_dim)
    assert obs.shape == (5, task.observation_dim)
    for step in roll(driver, 60):
        assert step.obs.shape == step.final_obs.shape == (5, task.observation_dim)
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (5,)
        assert step.obs.dtype == step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
        assert all(task.observation_space.contains(row) for row in step.final_obs.numpy())


@every_environment
def test_time_limit_is_the_registered_one(id):
    task = make_task(id)
    limit = gymnasium.spec(id).max_episode_steps
    assert limit == task.max_episode_steps
    driver = BatchedDriver(task, 2, seed=0)
    driver.elapsed += limit - 1
    step = driver.step(torch.zeros(2, len(task.nvec), dtype=torch.int64))
    assert step.truncated.all()
    assert not driver.elapsed.any()


@every_environment
def test_gradients_agree_with_finite_differences(id):
    """In float64, at states reached by random steps, at soft actions and at corners."""
    task = make_task(id)
    generator = torch.Generator().manual_seed(0)
    driver = BatchedDriver(task, 2, seed=0, dtype=torch.float64)
    # SpeakerListener's first number counts steps, which no gradient is for.
    n_counts = int(id == "gumbelrl/SpeakerListener-v0")
    for n_steps in (0, 1, 3):
        driver.reset()
        roll(driver, n_steps)
        counts, state = driver.state[:, :n_counts], driver.state[:, n_counts:]
        noise = torch.rand(2, task.n_transition_noise, dtype=torch.float64, generator=generator)
        corner = driver.one_hot(random_indices(task, (2,), generator))
        soft = torch.rand(corner.shape, dtype=torch.float64, generator=generator)

        def transition(state, one_hot, counts=counts, noise=noise):
            return task.transition(torch.cat((counts, state), -1), one_hot, noise)

        def reward(state, one_hot, counts=counts, noise=noise):
            state = torch.cat((counts, state), -1)
            return task.reward(state, one_hot, task.transition(state, one_hot, noise))

        def observe(state, counts=counts):
            return task.observe(torch.cat((counts, state), -1))

        state = state.clone().requires_grad_()
        for action in (corner, soft):
            action = action.requires_grad_()
            assert torch.autograd.gradcheck(transition, (state, action))
            if reward(state, action).requires_grad:  # classic rewards may be constants
                assert torch.autograd.gradcheck(reward, (state, action))
        assert torch.autograd.gradcheck(observe, (state,))


@every_environment
def test_one_hot_and_indices_do_the_same(id):
    one = make_driver(id, 7, seed=3)
    other = make_driver(id, 7, seed=3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        indices = random_indices(one.env, (7,), generator)
        parts = [
            torch.nn.functional.one_hot(i, k) for i, k in zip(indices.T, one.env.nvec, strict=True)
        ]
        assert_same([one.step(indices)], [other.step(torch.cat(parts, -1).float())])


@every_environment
def test_same_seed_same_trajectory_and_resuming(id):
    driver, again = make_driver(id, 3, seed=5), make_driver(id, 3, seed=6)
    assert torch.equal(driver.reset(seed=1), again.reset(seed=1))
    assert_same(roll(driver, 40), roll(again, 40))

    stored = driver.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in stored.values())
    expected = roll(driver, 40, seed=7)
    resumed = make_driver(id, 3)
    resumed.load_state_dict(stored)
    assert_same(roll(resumed, 40, seed=7), expected)

    assert not torch.equal(driver.reset(seed=1), driver.reset(seed=2))


@every_environment
def test_any_leading_axes(id):
    flat, shaped = make_driver(id, 6, seed=2), make_driver(id, (2, 3), seed=2)
    assert torch.equal(shaped.reset().flatten(0, 1), flat.reset())
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        indices = random_indices(flat.env, (6,), generator)
        step = shaped.step(indices.unflatten(0, (2, 3)))
        assert_same([step], [flat.step(indices)], reshape=lambda x: x.flatten(0, 1))


class SameNoise:
    """Gymnasium's `np_random`, but drawing from a torch generator as a driver of one does."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, n, dtype):
        return torch.rand((n, 1), generator=self.generator)[:, 0].numpy()


@every_environment
def test_adapters_and_driver_give_the_same_trajectory(id):
    driver = make_driver(id, 1, seed=0)
    vector = gymnasium.make_vec(id, num_envs=1)
    vec_env = make_vec_env(id, 1, seed=4)
    single = gymnasium.make(id)
    single.unwrapped.np_random = SameNoise(4)

    first = driver.reset(seed=4)
    np.testing.assert_array_equal(vector.reset(seed=4)[0], first)
    np.testing.assert_array_equal(vec_env.reset(), first)
    np.testing.assert_allclose(single.reset()[0], first[0], rtol=1e-5, atol=1e-6)

    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        indices = random_indices(driver.env, (1,), generator)
        actions = to_actions(driver.env, indices)
        step = driver.step(indices)
        obs, reward, terminated, truncated, infos = vector.step(actions)
        for mine, theirs in zip((obs, reward, terminated, truncated), step, strict=False):
            np.testing.assert_array_equal(mine, theirs)
        obs, reward, done, vec_infos = vec_env.step(actions)
        np.testing.assert_array_equal(obs, step.obs)
        np.testing.assert_array_equal(reward, step.reward)
        ended = bool(step.terminated | step.truncated)
        assert done.tolist() == [ended]
        if ended:
            np.testing.assert_array_equal(infos["final_obs"][0], step.final_obs[0])
            assert infos["_final_obs"].tolist() == [True]
            np.testing.assert_array_equal(vec_infos[0]["terminal_observation"], step.final_obs[0])
            assert vec_infos[0]["TimeLimit.truncated"] == (not bool(step.terminated))
        else:
            assert infos == {}
            assert vec_infos == [{}]

        single_obs, reward, terminated, truncated, _ = single.step(actions[0])
        np.testing.assert_allclose(single_obs, step.final_obs[0], rtol=1e-4, atol=1e-4)
        assert reward == pytest.approx(float(step.reward), rel=1e-4, abs=1e-4)
        assert (terminated, truncated) == (bool(step.terminated), bool(step.truncated))
        if ended:
            np.testing.assert_allclose(single.reset()[0], step.obs[0], rtol=1e-5, atol=1e-6)


@every_environment
def test_vec_env_reports_episodes_as_monitor_does(id):
    limit = make_task(id).max_episode_steps
    vec_env = make_vec_env(id, 3, seed=0, max_episode_steps=min(20, limit))
    assert isinstance(vec_env, OnDeviceVecEnv)
    vec_env.reset()
    generator = torch.Generator().manual_seed(0)
    returns, lengths, episodes = np.zeros(3), np.zeros(3, int), 0
    for _ in range(50):
        indices = random_indices(vec_env.driver.env, (3,), generator)
        _, rewards, dones, infos = vec_env.step(to_actions(vec_env.driver.env, indices))
        returns += rewards
        lengths += 1
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-5)
            assert infos[i]["episode"]["l"] == lengths[i]
            episodes += 1
        returns[dones], lengths[dones] = 0, 0
    assert episodes >= 6
    assert vec_env.env_is_wrapped(Monitor) == [True] * 3  # so evaluate_policy trusts the infos


def test_arrays_share_memory_with_the_tensors():
    vec_env = make_vec_env("gumbelrl/CartPole-v1", 4, seed=0)
    obs = vec_env.reset()
    assert np.shares_memory(obs, vec_env.driver.state.numpy())
    obs, *_ = vec_env.step(np.zeros(4, np.int64))
    assert np.shares_memory(obs, vec_env.driver.state.numpy())


def test_seeding_a_vec_env_counts_once():
    vec_env = make_vec_env("gumbelrl/CartPole-v1", 2, seed=8)
    first = vec_env.reset().copy()
    assert not np.array_equal(vec_env.reset(), first)
    vec_env.seed(8)
    np.testing.assert_array_equal(vec_env.reset(), first)


def test_ones_of_the_user_are_batched_by_the_id_that_imports_their_module():
    env = make_vec_env("known_tasks:known/Breaking-v0", 3, seed=0)
    assert isinstance(env, OnDeviceVecEnv)
    assert GumbelSHAC("MlpPolicy", env, n_envs=4, device="cpu").driver.n_envs == 4
    with pytest.raises(MakeEnvError, match="give n_envs=2 beside them"):
        make_vec_env("known_tasks:known/Breaking-v0", kwargs={"n_envs": 2})
    with pytest.raises(MakeEnvError, match="no_such_module"):
        make_vec_env("no_such_module:known/Breaking-v0")


def test_wrapped_or_asynchronous_ones_are_made_one_by_one():
    flat = make_vec_env(
        "gumbelrl/CartPole-v1", 2, wrappers=["gymnasium.wrappers.FlattenObservation"]
    )
    assert not isinstance(flat, OnDeviceVecEnv)
    assert flat.reset().shape == (2, 4)


def test_make_vec_passes_arguments_on():
    env = gymnasium.make_vec("gumbelrl/CoupledControl-v0", num_envs=3, n_factors=2, n_bins=7)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.action_space.shape == (3, 2)
    assert env.single_action_space.nvec.tolist() == [7, 7]
    assert env.driver.max_episode_steps == 50
    assert gymnasium.make_vec("gumbelrl/Pendulum-v1", max_episode_steps=9).driver is not None


def test_as_vec_env_shares_the_driver():
    vector = gymnasium.make_vec("gumbelrl/CartPole-v1", num_envs=3)
    assert vector.as_vec_env().driver is vector.driver
    single = gymnasium.make("gumbelrl/CartPole-v1", max_episode_steps=7)
    vec_env = single.unwrapped.as_vec_env(single.spec.max_episode_steps)
    assert vec_env.driver.max_episode_steps == 7


def test_importing_registers_and_loads_neither_torch_nor_stable_baselines():
    code = (
        "import sys, gumbelrl.envs, gymnasium\n"
        "assert 'gumbelrl/CartPole-v1' in gymnasium.registry\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("id", "soft"),
    [("CartPole-v1", np.array([0.3, 0.7])), ("CoupledControl-v0", np.full(40, 0.2))],
)
def test_adapters_refuse_soft_actions(id, soft):
    single = SingleEnv("gumbelrl/" + id)
    single.reset(seed=0)
    with pytest.raises(ValueError, match="wants action indices"):
        single.step(soft)
    with pytest.raises(ValueError, match="wants action indices"):  # a graph is no excuse
        single.step(torch.from_numpy(soft).requires_grad_())
    with pytest.raises(ValueError, match="wants action indices"):
        make_vec_env("gumbelrl/" + id, 1).step(torch.from_numpy(soft[None]).requires_grad_())
    with pytest.raises(ValueError, match="wants action indices"):
        make_vec_env("gumbelrl/" + id, 2).step(np.stack((soft, soft)))
    with pytest.raises(ValueError, match="wants action indices"):
        gymnasium.make_vec("gumbelrl/" + id, num_envs=2).step(np.stack((soft, soft)))


def test_adapters_refuse_wrong_actions():
    single = SingleEnv("CartPole-v1")
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.step(0)
    single.reset(seed=0)
    with pytest.raises(ValueError, match=r"must be in Discrete\(2\), got 2"):
        single.step(2)
    vec_env = make_vec_env("gumbelrl/CartPole-v1", 3)
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got \(2,\)"):
        vec_env.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="indices must be in"):
        vec_env.step(np.array([0, 5, 0]))


def test_adapters_name_a_non_finite_state():
    vec_env = make_vec_env("gumbelrl/CartPole-v1", 3, seed=0)
    vec_env.reset()
    vec_env.driver.state[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"environment 2, step 1 of its episode"):
        vec_env.step(np.zeros(3, int))
    single = SingleEnv("CartPole-v1")
    single.reset(seed=0)
    single.state[0] = np.inf
    with pytest.raises(NonFiniteError, match=r"environment 0, step 1"):
        single.step(0)


def test_wrong_ids_and_arguments():
    with pytest.raises(MakeEnvError, match=r"no on-device environment 'LunarLander-v3'; there"):
        make_driver("LunarLander-v3", 4)
    with pytest.raises(MakeEnvError, match="refuses its arguments"):
        make_driver("CartPole-v1", 4, gravity=3.7)
    with pytest.raises(MakeEnvError, match="n_envs must be an integer >= 1"):
        make_driver("CartPole-v1", 0)
    with pytest.raises(MakeEnvError, match="device 'gpu' cannot be used here"):
        make_driver("CartPole-v1", 4, device="gpu")
    with pytest.raises(ValueError, match="render_mode must be None"):
        SingleEnv("CartPole-v1", render_mode="human")
    for id, arguments, message in (
        ("Pendulum-v1", {"n_bins": 1}, "n_bins must be >= 2, got 1"),
        ("CoupledControl-v0", {"n_factors": 0}, "n_factors must be >= 1, got 0"),
        ("SwitchedLQR-v0", {"n_modes": 1}, "n_modes must be >= 2, got 1"),
        ("Inventory-v0", {"n_products": 0}, "n_products must be >= 1, got 0"),
        ("SpeakerListener-v0", {"n_goals": 9}, "n_goals must be 2 to 8, got 9"),
    ):
        with pytest.raises(MakeEnvError, match=message):
            make_driver(id, 1, **arguments)


@pytest.mark.parametrize("make", [make_env, make_vec_env])
def test_arguments_that_stand_beside_kwargs(make):
    for id in ("gumbelrl/CartPole-v1", "CartPole-v1"):
        with pytest.raises(MakeEnvError, match="give max_episode_steps=7 beside them"):
            make(id, kwargs={"max_episode_steps": 7})
    with pytest.raises(MakeEnvError, match="give seed=3 beside them"):
        make_vec_env("gumbelrl/CartPole-v1", kwargs={"seed": 3})


class FromTwo(CartPole):
    """Declares actions 2 and 3."""

    action_space = gymnasium.spaces.Discrete(2, start=2)


def test_registered_tasks_are_checked_when_made(monkeypatch):
    with pytest.raises(ValueError, match="task must be 'module:Class', got 'CartPole'"):
        registration.register_on_device("test/FromTwo-v0", "CartPole", None)
    monkeypatch.setitem(sys.modules, "from_two", types.ModuleType("from_two"))
    sys.modules["from_two"].FromTwo = FromTwo
    try:
        registration.register_on_device("test/FromTwo-v0", "from_two:FromTwo", None)
        message = "actions of FromTwo start at 2, but an on-device environment counts them from 0"
        for make in (make_driver, make_vec_env, gymnasium.make, gymnasium.make_vec):
            with pytest.raises(ValueError, match=message):
                make("test/FromTwo-v0")
    finally:
        gymnasium.registry.pop("test/FromTwo-v0", None)
        registration._TASKS.pop("test/FromTwo-v0", None)


def test_every_on_device_environment_has_a_configuration():
    import gumbelrl.configs
    from omegaconf import OmegaConf

    made = set()
    for path in (Path(gumbelrl.configs.__path__[0]) / "env").glob("*.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(path))
        if config["id"] in IDS:
            assert config.pop("_target_") == "gumbelrl.envs.make_vec_env"
            assert make_vec_env(**config).num_envs == config["n_envs"]
            made.add(config["id"])
    assert made == set(IDS)


def test_the_documented_example_works(monkeypatch):
    """Every line of the new environment in docs/environments.md, by every door."""
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    (example,) = (block for block in page.split("```")[1::2] if "class Lander" in block)
    module = types.ModuleType("lander_example")
    monkeypatch.setitem(sys.modules, "lander_example", module)
    try:
        exec(example.removeprefix("python\n"), module.__dict__)
        assert module.driver.validate
        check_env(gymnasium.make("mine/Lander-v0").unwrapped, skip_render_check=True)
        assert make_vec_env("mine/Lander-v0", 4).num_envs == 4
        one_hot = torch.full((64, 3), 1 / 3, requires_grad=True)
        for _ in range(3):
            step = module.driver.step(one_hot)
        (gradient,) = torch.autograd.grad(step.final_obs[:, 0].sum(), one_hot)
        # Height after 3 steps: dt² (3 + 2 + 1) thrust.
        torch.testing.assert_close(gradient, torch.tensor([0, 1.62, 3.24]).expand(64, 3) * 0.06)
    finally:
        gymnasium.registry.pop("mine/Lander-v0", None)
        registration._TASKS.pop("mine/Lander-v0", None)
