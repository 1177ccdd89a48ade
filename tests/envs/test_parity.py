"""The classic environments equal Gymnasium's, step by step, from the same state."""

import gymnasium
import numpy as np
import pytest
import torch
from gumbelrl.envs import BatchedDriver, make_task

N_STEPS = 10_000
LIMIT = 12  # steps per episode, so that truncation is seen too
JUMP = 7  # every so many steps the state is drawn anew, so that ends and walls are visited

# Where jumps land: low and high of Gymnasium's state.
CLASSIC = {
    "CartPole-v1": ([-2.5, -3.0, -0.25, -3.0], [2.5, 3.0, 0.25, 3.0]),
    "Acrobot-v1": ([-np.pi, -np.pi, -12.5, -28.0], [np.pi, np.pi, 12.5, 28.0]),
    "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "Pendulum-v1": ([-9.0, -8.0], [9.0, 8.0]),
}


def record(id: str, torques: np.ndarray | None) -> dict[str, np.ndarray]:
    """10,000 random transitions of Gymnasium's environment."""
    env = gymnasium.make(id, max_episode_steps=LIMIT, disable_env_checker=True)
    rng = np.random.default_rng(0)
    low, high = (np.array(bound) for bound in CLASSIC[id])
    n_actions = 3 if torques is None else len(torques)
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        n_actions = int(env.action_space.n)
    rows: list[tuple] = []
    env.reset(seed=0)
    elapsed = 0
    for step in range(N_STEPS):
        if step % JUMP == 3:
            env.unwrapped.state = rng.uniform(low, high)
        state = np.array(env.unwrapped.state, np.float64)
        action = int(rng.integers(n_actions))
        given = action if torques is None else np.array([torques[action]])
        obs, reward, terminated, truncated, _ = env.step(given)
        following = np.array(env.unwrapped.state, np.float64)
        rows.append((state, elapsed, action, following, obs, reward, terminated, truncated))
        elapsed += 1
        if terminated or truncated:
            env.reset()
            elapsed = 0
    names = ("state", "elapsed", "action", "next_state", "obs")
    names += ("reward", "terminated", "truncated")
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


@pytest.mark.parametrize("id", CLASSIC)
def test_equal_to_gymnasium_from_the_same_state(id):
    task = make_task(id)
    gym = record(id, getattr(task, "torques", None) if id == "Pendulum-v1" else None)
    driver = BatchedDriver(task, N_STEPS, dtype=torch.float64, seed=0, max_episode_steps=LIMIT)
    driver.state = torch.as_tensor(gym["state"])
    driver.elapsed = torch.as_tensor(gym["elapsed"])

    one_hot = driver.one_hot(torch.as_tensor(gym["action"]))
    next_state = task.transition(driver.state, one_hot, driver.state[:, :0])
    step = driver.step(torch.as_tensor(gym["action"]))

    close = {"rtol": 1e-5, "atol": 1e-9}
    torch.testing.assert_close(next_state, torch.as_tensor(gym["next_state"]), **close)
    # Gymnasium's observations are float32.
    torch.testing.assert_close(
        step.final_obs.float(), torch.as_tensor(gym["obs"]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(step.reward, torch.as_tensor(gym["reward"]).double(), **close)
    np.testing.assert_array_equal(step.terminated, gym["terminated"])
    np.testing.assert_array_equal(step.truncated, gym["truncated"])
    if id != "Pendulum-v1":
        assert gym["terminated"].sum() > 50  # the comparison has seen ends
    assert gym["truncated"].sum() > 50


@pytest.mark.parametrize("id", CLASSIC)
def test_spaces_and_limits_are_gymnasiums(id):
    ours, theirs = gymnasium.make("gumbelrl.envs:gumbelrl/" + id), gymnasium.make(id)
    assert ours.observation_space == theirs.observation_space
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps
    if id != "Pendulum-v1":
        assert ours.action_space == theirs.action_space


@pytest.mark.parametrize("id", CLASSIC)
def test_first_states_come_from_gymnasiums_distribution(id):
    env = gymnasium.make(id, disable_env_checker=True)
    theirs = []
    for seed in range(300):
        env.reset(seed=seed)
        theirs.append(np.array(env.unwrapped.state, np.float64))
    ours = BatchedDriver(make_task(id), 300, seed=0).state.double().numpy()
    # Uniform on the same box: the extremes of 300 draws lie within 5 % of its width of each other,
    # but for 2 * 0.95**300 * dims < 2e-6.
    width = np.ptp(np.array(theirs), 0) + 1e-12
    np.testing.assert_array_less(np.abs(ours.min(0) - np.min(theirs, 0)), 0.05 * width)
    np.testing.assert_array_less(np.abs(ours.max(0) - np.max(theirs, 0)), 0.05 * width)
