"""The discrete SACs that GumbelSAC is timed beside do the same work as it does."""

import gymnasium
import numpy as np
import pytest
import torch
from gumbelrl.agents import GumbelSAC

from benchmarks.plain_sac import LeanSAC, PlainSAC

WIDTH = 16


class OneStep(gymnasium.Env):
    """A step from one random observation to another, of the shapes of CartPole."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, terminated, seed):
        self.terminated = terminated
        self.draw = np.random.default_rng(seed)

    def reset(self, *, seed=None, options=None):
        return self.draw.standard_normal(4, np.float32), {}

    def step(self, action):
        return self.draw.standard_normal(4, np.float32), 1.7, self.terminated, False, {}


def ours_beside_plain(terminated, seed, scale=1.0):
    """GumbelSAC's metrics of its only transition, and PlainSAC with its weights and that batch.

    The steps of its updates are too small to move a float32. `scale` multiplies the logits.
    """
    ours = GumbelSAC(
        "MlpPolicy",
        OneStep(terminated, seed),
        learning_rate=1e-15,
        polyak=1e-15,
        learning_starts=1000,
        estimator="exact",
        actor_objective="min",
        trust_every=0,
        policy_kwargs={"net_arch": [WIDTH, WIDTH]},
        seed=seed,
        device="cpu",
    )
    with torch.no_grad():
        for parameter in list(ours.policy.actor.parameters())[-2:]:
            parameter.mul_(scale)
        for parameter in ours.policy.critic_target.parameters():
            parameter.add_(0.1)  # else a target taken for the critic would not be noticed
    ours.learn(1)
    ours.train(8, 4)  # metrics are kept of one update in eight
    plain = PlainSAC("CartPole-v1", WIDTH, 4, 0, target_entropy=ours.target_entropy)
    with torch.no_grad():
        for mine, theirs in zip(
            plain.actor.parameters(), ours.policy.actor.parameters(), strict=True
        ):
            mine.copy_(theirs)
        for networks, ensemble in (
            (plain.critics, ours.policy.critic),
            (plain.targets, ours.policy.critic_target),
        ):
            for i, network in enumerate(networks):
                for mine, theirs in zip(network.parameters(), ensemble.parameters(), strict=True):
                    mine.copy_(theirs[i].T.reshape(mine.shape))
    batch = ours.replay_buffer.sample(4, gamma=ours.gamma)
    batch = (batch.obs, batch.actions, batch.rewards, batch.next_obs, batch.discounts)
    return ours.metrics.take(), plain, batch


@pytest.mark.parametrize("seed", range(3))
def test_the_critics_loss_is_that_of_gumbel_sac(seed):
    """GumbelSAC's target draws the next action where plain SAC sums over it, which is the same
    where the policy is certain."""
    metrics, plain, batch = ours_beside_plain(terminated=False, seed=seed, scale=1e4)
    gap = plain.actor(batch[3]).diff(dim=-1).abs().min()
    assert gap > 50  # nats: noise does not turn it
    assert plain.critic_loss(batch).item() == pytest.approx(metrics["train/critic_loss"], rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_losses_at_the_end_of_an_episode_are_those_of_gumbel_sac(seed):
    metrics, plain, batch = ours_beside_plain(terminated=True, seed=seed)
    loss, entropy = plain.actor_loss(batch[0])
    assert plain.critic_loss(batch).item() == pytest.approx(metrics["train/critic_loss"], rel=1e-5)
    assert loss.item() == pytest.approx(metrics["train/actor_loss"], rel=1e-5)
    assert entropy.item() == pytest.approx(metrics["train/entropy"], rel=1e-5)


def batch_of(size, seed):
    torch.manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 4)
    discounts = 0.99 * (torch.rand(size) < 0.8)
    return obs, torch.randint(2, (size, 1)), torch.randn(size), next_obs, discounts


def test_lean_sac_takes_the_steps_of_plain_sac():
    plain = PlainSAC("CartPole-v1", WIDTH, 32, 0, learning_rate=1e-2, tau=0.1)
    lean = LeanSAC("CartPole-v1", WIDTH, 32, 0, learning_rate=1e-2, tau=0.1, compile=False)
    for seed in range(20):
        for agent in (plain, lean):
            agent.update(batch_of(32, seed))
    assert plain.log_alpha.item() < -0.1  # the entropy begins above its target
    torch.testing.assert_close(lean.log_alpha, plain.log_alpha)
    obs, *_ = batch_of(100, 1000)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(lean.actor(obs), plain.actor(obs), **close)
    for mine, theirs in (
        (lean.critic_values(obs), plain.critic_values(obs)),
        (lean.target_values(obs), plain.target_values(obs)),
    ):
        torch.testing.assert_close([*mine], theirs, **close)


def test_plain_sac_learns_which_action_pays():
    """Action 1 pays where the first number is above 0, action 0 elsewhere."""
    agent = PlainSAC("CartPole-v1", WIDTH, 64, 0, learning_rate=1e-2)
    for seed in range(150):
        obs, actions, *_ = batch_of(64, seed)
        right = (actions.squeeze(1) == (obs[:, 0] > 0)).float()
        agent.update((obs, actions, right, obs, torch.zeros(64)))
    obs, *_ = batch_of(200, 1000)
    agreed = (agent.actor(obs).argmax(-1) == (obs[:, 0] > 0)).float().mean()
    assert agreed > 0.9


@pytest.mark.parametrize("cls", [PlainSAC, LeanSAC])
def test_a_truncated_episode_is_not_stored_as_terminated(cls, monkeypatch):
    agent = cls("CartPole-v1", WIDTH, 1, 1000)
    ends = iter([(False, True), (True, False)])
    first, last = np.zeros((1, 4), np.float32), np.full((1, 4), 5, np.float32)

    def step(actions):
        terminated, truncated = next(ends)
        ended = np.array([terminated]), np.array([truncated])
        return first, np.ones(1), *ended, {"final_obs": last}

    monkeypatch.setattr(agent.env, "step", step)
    agent.learn(2)
    _, _, _, reached, discounts = agent.sample(64)
    assert discounts.min() == 0
    assert discounts.max().item() == pytest.approx(agent.gamma)
    assert reached.eq(5).all()
    np.testing.assert_array_equal(agent.obs, first)
