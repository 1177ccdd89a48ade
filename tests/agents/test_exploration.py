"""Held random actions: their share, their lengths, and what ends them."""

import masked_envs  # registers the ids
import pytest
import torch
from gumbelrl.agents import GumbelSAC
from gumbelrl.agents.exploration import HeldActions
from gumbelrl.envs import make_vec_env
from gumbelrl.gumbel import FactoredCategorical

N = 2_000


def taken(held, dist, share, steps, seed=0):
    """Actions of `steps` steps, [T, N, M]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([held.choose(dist, share, generator) for _ in range(steps)])


@pytest.mark.parametrize("length", [1.0, 4.0, 20.0])
def test_the_share_does_not_depend_on_the_length(length):
    """A policy that always takes the first of five: the others are ε 4/5 of what is taken."""
    logits = torch.tensor([100.0, 0, 0, 0, 0]).expand(N, 5)
    held = HeldActions(N, 1, length)
    actions = taken(held, FactoredCategorical(logits), 0.4, 200)
    share = (actions[-1] != 0).float().mean().item()  # N independent rows, long after the start
    assert abs(share - 0.32) < 0.035  # 3.3 standard errors, false alarm 0.001, seed fixed


def test_lengths_are_geometric_and_factors_hold_their_own():
    k, length = 1_000, 5.0  # so many categories that a repetition is a hold
    dist = FactoredCategorical(torch.zeros(N, 2 * k), (k, k))
    actions = taken(HeldActions(N, 2, length), dist, 1.0, 2)
    goes_on = (actions[1] == actions[0]).float()  # (N, M)
    assert abs(goes_on.mean().item() - (1 - 1 / length)) < 0.021  # 3.3 standard errors
    both = goes_on.prod(1).mean().item()
    assert abs(both - (1 - 1 / length) ** 2) < 0.036  # 3.3 standard errors


def test_what_ends_a_hold():
    k = 1_000
    dist = FactoredCategorical(torch.zeros(N, k))
    held = HeldActions(N, 1, 1e9)
    first, second = taken(held, dist, 1.0, 2)
    assert torch.equal(first, second)
    held.end(torch.arange(N) % 2 == 0)  # the episodes of every other environment
    third = taken(held, dist, 1.0, 1, seed=1)[0]
    assert torch.equal(third[1::2], second[1::2])
    assert (third[::2] != second[::2]).float().mean() > 0.98
    mask = torch.ones(N, k, dtype=torch.bool).scatter(1, third, False)
    fourth = taken(held, FactoredCategorical(torch.zeros(N, k), mask=mask), 1.0, 1, seed=2)[0]
    assert (fourth != third).all()  # not allowed any more
    held.end()
    assert (taken(held, dist, 1.0, 1, seed=3)[0] != fourth).float().mean() > 0.98


@pytest.mark.parametrize("space", masked_envs.SPACES)
def test_no_masked_action_is_held(space):
    env = make_vec_env("RandomMask-v0", 3, 0, kwargs={"action_space": space})
    agent = GumbelSAC(
        "MlpPolicy", env, learning_starts=300, uniform_mix=0.5, uniform_hold=5, seed=0
    )
    agent.learn(400)  # the environment asserts


def test_holds_reach_mountain_cars_goal_where_single_steps_do_not():
    """80 episodes of random actions. Held ones reach it in a tenth of them; of independent ones
    none of 450 did, so a false alarm of either side is below 1 %."""

    def goals(hold):
        env = make_vec_env("gumbelrl/MountainCar-v0", 80, seed=0)
        agent = GumbelSAC("MlpPolicy", env, learning_starts=10**6, uniform_hold=hold, seed=0)
        agent.learn(80 * 199, log_interval=None)
        return agent.replay_buffer.terminated.sum()

    assert goals(1.0) == 0
    assert goals(20.0) >= 1


def test_bad_length():
    with pytest.raises(ValueError, match=r"uniform_hold must be a number in \[1, inf\), got 0.5"):
        GumbelSAC("MlpPolicy", "CartPole-v1", uniform_hold=0.5)
