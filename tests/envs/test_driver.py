"""The driver's promises, on a task that is small enough to be worked out by hand."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gumbelrl.envs import BatchedDriver, NonFiniteError, OnDeviceEnv, OnDeviceVecEnv, SingleEnv


class Counter(OnDeviceEnv):
    """Counts up by 1 or 2 and ends at 3; starts at a number in [0, 1) times `start`."""

    state_dim = observation_dim = 1
    nvec = (2,)
    n_initial_noise = 1
    max_episode_steps = 4
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, start: float = 0.0) -> None:
        self.start = start
        self.increments = (1.0, 2.0)

    def initial(self, noise):
        return noise * self.start

    def transition(self, state, one_hot, noise):
        return state + (one_hot @ self.constant("increments", state)).unsqueeze(-1)

    def observe(self, state):
        return 10 * state

    def reward(self, state, one_hot, next_state):
        return next_state[..., 0]

    def terminated(self, state):
        return state[..., 0] >= 3


class FromOne(Counter):
    """Declares actions 1 and 2."""

    action_space = gymnasium.spaces.Discrete(2, start=1)


class Endless(Counter):
    """Never ends by itself."""

    max_episode_steps = None

    def terminated(self, state):
        return OnDeviceEnv.terminated(self, state)


@pytest.fixture(params=["draw the ended only (CPU)", "draw for all (CUDA)"])
def make_driver(request):
    def make(task, *args, **kwargs):
        driver = BatchedDriver(task, *args, **kwargs)
        driver._draw_ended_only = request.param.startswith("draw the ended")
        return driver

    return make


def test_autoreset_by_hand(make_driver):
    """Environment 0 goes 1 3|; environment 1 goes 1 2 3|; both restart at 0 in the same step."""
    driver = make_driver(Counter(), 2, seed=0)
    assert driver.reset().tolist() == [[0], [0]]

    step = driver.step(torch.tensor([0, 0]))
    assert step.obs.tolist() == step.final_obs.tolist() == [[10], [10]]
    assert step.reward.tolist() == [1, 1]
    assert driver.elapsed.tolist() == [1, 1]

    step = driver.step(torch.tensor([1, 0]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, False]
    assert step.reward.tolist() == [3, 2]
    assert step.final_obs.tolist() == [[30], [20]]
    assert step.obs.tolist() == [[0], [20]]  # the next episode's first
    assert driver.state.tolist() == [[0], [2]]
    assert driver.elapsed.tolist() == [0, 2]

    step = driver.step(torch.tensor([0, 0]))
    assert step.terminated.tolist() == [False, True]
    assert step.obs.tolist() == [[10], [0]]


def test_truncated_is_not_terminated(make_driver):
    driver = make_driver(Counter(), 1, seed=0, max_episode_steps=2)
    driver.step(torch.tensor([0]))
    step = driver.step(torch.tensor([0]))
    assert step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [False]
    assert step.final_obs.tolist() == [[20]]
    assert step.obs.tolist() == [[0]]
    # Both at once, as in Gymnasium, where the last allowed step is also the end.
    driver.step(torch.tensor([0]))
    step = driver.step(torch.tensor([1]))
    assert step.truncated.tolist() == step.terminated.tolist() == [True]


def test_no_limit_and_no_end_never_restarts(make_driver):
    driver = make_driver(Endless(), 2, seed=0)
    for _ in range(50):
        step = driver.step(torch.tensor([0, 1]))
        assert not step.terminated.any()
        assert not step.truncated.any()
    assert step.obs.tolist() == [[500], [1000]]


def test_gradient_flows_within_an_episode_and_is_cut_at_its_end(make_driver):
    """Rewards are the states: 1 3| 1 in environment 0, 1 2 3| in environment 1.

    d reward / d one_hot = (1, 2) for each later reward of the same episode.
    """
    driver = make_driver(Counter(), 2, seed=0)
    actions = []
    rewards = []
    for indices in ([0, 0], [1, 0], [0, 0]):
        one_hot = torch.nn.functional.one_hot(torch.tensor(indices), 2).float().requires_grad_()
        actions.append(one_hot)
        step = driver.step(one_hot)
        rewards.append(step.reward)
        final_obs = step.final_obs
    gradients = torch.autograd.grad(sum(r.sum() for r in rewards), actions, retain_graph=True)
    later_rewards = [[2, 3], [1, 2], [1, 1]]  # counting the action's own
    for gradient, counts in zip(gradients, later_rewards, strict=True):
        assert gradient.tolist() == [[n, 2 * n] for n in counts]
    # The last observation before the restart keeps its graph: a value bootstraps from it.
    (gradient,) = torch.autograd.grad(final_obs[1, 0], actions[0])
    assert gradient.tolist() == [[0, 0], [10, 20]]


def test_detach_cuts_the_graph():
    driver = BatchedDriver(Endless(), 1, seed=0)
    one_hot = torch.tensor([[1.0, 0.0]], requires_grad=True)
    driver.step(one_hot)
    assert driver.state.requires_grad
    driver.detach()
    assert not driver.state.requires_grad
    assert not driver.step(one_hot.detach()).reward.requires_grad


def test_both_ways_to_restart_give_fresh_states(make_driver):
    driver = make_driver(Counter(start=0.5), 4000, seed=0)
    driver.step(torch.ones(4000, dtype=torch.int64))
    step = driver.step(torch.ones(4000, dtype=torch.int64))
    assert step.terminated.all()
    fresh = driver.state[:, 0]
    assert 0 <= fresh.min() < fresh.max() < 0.5
    # Uniform: the mean of 4,000 lies within 5 standard errors, 5 * 0.5 / sqrt(12 * 4000).
    assert abs(float(fresh.mean()) - 0.25) < 0.0115
    assert len(fresh.unique()) > 3900


def test_endless_task_in_float64_and_three_axes():
    driver = BatchedDriver(Endless(), (2, 3, 4), dtype=torch.float64, seed=0)
    step = driver.step(torch.zeros(2, 3, 4, dtype=torch.int64))
    assert driver.n_envs == 24
    assert step.obs.shape == (2, 3, 4, 1)
    assert step.obs.dtype == step.reward.dtype == torch.float64
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == (2, 3, 4)


@pytest.mark.parametrize("n_envs", [0, -1, 1.5, True, (2, 0), "3"])
def test_n_envs_below_one(n_envs):
    with pytest.raises(ValueError, match="n_envs must be an integer >= 1"):
        BatchedDriver(Counter(), n_envs)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="max_episode_steps must be >= 1, got 0"):
        BatchedDriver(Counter(), 1, max_episode_steps=0)
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64"):
        BatchedDriver(Counter(), 1, dtype=torch.float16)
    with pytest.raises(ValueError, match="env must be an OnDeviceEnv, got str"):
        BatchedDriver("CartPole-v1", 1)
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here: Expected one of cpu"):
        BatchedDriver(Counter(), 1, device="gpu")
    with pytest.raises(ValueError, match="one batch axis"):
        OnDeviceVecEnv(BatchedDriver(Counter(), (2, 3)))


def test_actions_that_do_not_count_nvec_from_0_are_refused():
    with pytest.raises(ValueError, match="actions of FromOne start at 1, but an on-device"):
        BatchedDriver(FromOne(), 1)
    task = Counter()
    task.action_space = gymnasium.spaces.MultiDiscrete([2, 3], start=[0, 5])
    with pytest.raises(ValueError, match=r"actions of Counter start at \[0, 5\]"):
        SingleEnv(task)
    task.action_space = gymnasium.spaces.MultiDiscrete([2, 3])
    with pytest.raises(ValueError, match=r"Counter has nvec \(2,\), but its action space is Mul"):
        BatchedDriver(task, 1)
    task.action_space = gymnasium.spaces.Box(0, 1)
    with pytest.raises(ValueError, match="of Counter must be Discrete or MultiDiscrete: Box"):
        BatchedDriver(task, 1)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((3, 2)), "an action must be a torch tensor, got ndarray"),
        (torch.zeros(3, 3), r"one-hot action must have shape \[3, 2\], got \[3, 3\]"),
        (torch.zeros(2, dtype=torch.int64), r"indices must have shape \[3, 1\], got \[2\]"),
        (torch.zeros(3, dtype=torch.int32), "got torch.int32"),
        (torch.zeros(3, 2, dtype=torch.float64), "got torch.float64"),
        (torch.zeros(3, 2, device="meta"), "the action is on meta, the environments are on cpu"),
    ],
)
def test_wrong_actions(action, message):
    with pytest.raises(ValueError, match=message):
        BatchedDriver(Counter(), 3, seed=0).step(action)


@pytest.mark.parametrize("index", [-1, 2])
def test_validate_refuses_indices_out_of_range(index):
    driver = BatchedDriver(Counter(), 3, seed=0, validate=True)
    with pytest.raises(ValueError, match=r"indices must be in 0 .. K - 1 with K = \[2\]"):
        driver.step(torch.tensor([0, index, 1]))


def test_validate_says_which_environment_and_step_became_non_finite():
    driver = BatchedDriver(Endless(), 3, seed=0, validate=True)
    driver.step(torch.zeros(3, dtype=torch.int64))
    driver.state[1, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"inf at index 0 \(environment 1, step 2 of its"):
        driver.step(torch.zeros(3, dtype=torch.int64))
    driver.validate = False
    driver.step(torch.zeros(3, dtype=torch.int64))  # off: nothing waits, nothing is checked


def test_validate_looks_at_rewards_too():
    class Unpriced(Endless):
        def reward(self, state, one_hot, next_state):
            return next_state[..., 0] / (next_state[..., 0] - 2)  # not at 2

    driver = BatchedDriver(Unpriced(), (2, 2), seed=0, validate=True)
    with pytest.raises(
        NonFiniteError, match=r"reward became inf \(environment \(1, 0\), step 1 of"
    ):
        driver.step(torch.tensor([[0, 0], [1, 0]]))


def test_state_dict_of_another_kind_of_device_keeps_the_seeded_generator():
    driver = BatchedDriver(Counter(), 3, seed=0)
    stored = driver.state_dict()
    stored["generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as CUDA's
    before = driver.generator.get_state()
    driver.load_state_dict(stored)
    assert torch.equal(driver.generator.get_state(), before)


def test_state_dict_refuses_another_batch():
    driver = BatchedDriver(Counter(), 3, seed=0)
    with pytest.raises(ValueError, match=r"state must have shape \[3, 1\]"):
        driver.load_state_dict(BatchedDriver(Counter(), 2, seed=0).state_dict())
    with pytest.raises(ValueError, match="lacks 'elapsed'"):
        driver.load_state_dict({"state": driver.state, "generator": torch.zeros(1)})
