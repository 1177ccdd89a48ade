"""Action masks: of both conventions, everywhere, and a masked action is never taken."""

import gymnasium as gym
import known_envs
import masked_envs  # registers the ids
import numpy as np
import pytest
import torch
from gumbelrl.agents import REINFORCE, GumbelSAC
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.envs import make_env, make_vec_env
from gumbelrl.gumbel import ESTIMATORS
from gumbelrl.tracking import evaluate

SPACES = list(known_envs.SPACES)
QUICK = {"batch_size": 32, "policy_kwargs": {"net_arch": [32]}, "seed": 0, "device": "cpu"}


def masked(space="discrete", convention="method", n_envs=1):
    return make_vec_env(
        "RandomMask-v0", n_envs, 0, kwargs={"action_space": space, "convention": convention}
    )


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("convention", ["method", "info"])
@pytest.mark.parametrize("space", SPACES)
def test_masked_actions_are_never_taken_and_masks_are_learned(space, convention, n_envs):
    """The environment asserts that no masked action comes; the best allowed one is learned."""
    env = masked(space, convention, n_envs)
    agent = GumbelSAC(
        "MlpPolicy", env, learning_starts=200, gamma=0.0, ent_coef=0.01, learning_rate=5e-3, **QUICK
    )
    agent.learn(1_600)
    result = evaluate(agent, lambda n, seed: masked(space, convention, n), 20, seed=1)
    sampled = evaluate(
        agent, lambda n, seed: masked(space, convention, n), 20, seed=1, deterministic=False
    )
    assert result.mean > 0.9 * 7
    assert sampled.mean <= 7  # it was played: no masked action there either


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_learns_with_masks(estimator):
    env = masked("multi_discrete")
    agent = GumbelSAC("MlpPolicy", env, learning_starts=50, estimator=estimator, **QUICK)
    agent.learn(120)
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_replay_holds_the_mask_of_its_own_observation(n_steps):
    """The observation is the mask: also at truncations, where the next episode has begun."""
    agent = GumbelSAC("MlpPolicy", masked("multi_discrete", "info", 3), learning_starts=10**6)
    agent.learn(900)
    batch = agent.replay_buffer.sample(500, n_steps=n_steps)
    assert torch.equal(batch.masks, batch.obs.bool())
    alive = batch.discounts > 0
    assert (~alive).any()
    assert torch.equal(batch.next_masks[alive], batch.next_obs.bool()[alive])
    ended = agent.replay_buffer.ended & ~agent.replay_buffer.terminated
    assert ended.any()
    assert torch.equal(
        agent.replay_buffer.next_masks[ended], agent.replay_buffer.next_obs[ended].bool()
    )


def test_targets_and_entropy_heed_the_mask():
    """A single allowed action everywhere: the soft value is its Q alone, with no entropy."""
    env = masked("discrete")
    agent = GumbelSAC("MlpPolicy", env, learning_starts=10**6, ent_coef=5.0, **QUICK)
    agent.learn(200)
    mask = torch.tensor([False, True, False, False])
    dist = agent.policy.dist(torch.rand(50, 4), mask.expand(50, 4), uniform_mix=0.5)
    assert torch.equal(dist.sample(), torch.ones(50, 1, dtype=torch.int64))
    torch.testing.assert_close(dist.entropy(), torch.zeros(50))


@pytest.mark.parametrize("convention", ["method", "info"])
def test_wrapper_offers_both_conventions(convention):
    env = make_env(
        "RandomMask-v0", kwargs={"action_space": "multi_binary", "convention": convention}
    )
    _, info = env.reset(seed=3)
    for _ in range(6):
        mask = env.get_wrapper_attr("action_masks")()
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, np.asarray(info["action_mask"], bool))
        choice = [part.argmax() for part in mask.reshape(3, 2)]
        _, _, _, _, info = env.step(np.array(choice))


@pytest.mark.parametrize("convention", ["method", "info"])
def test_one_mask_per_factor(convention):
    """Gymnasium's way to mask a MultiDiscrete space: a tuple of arrays of unequal lengths."""
    env = make_env("FactorMasks-v0", kwargs={"convention": convention})
    _, info = env.reset()
    for _ in range(3):
        np.testing.assert_array_equal(info["action_mask"], [1, 0, 0, 1, 1])
        np.testing.assert_array_equal(env.get_wrapper_attr("action_masks")(), [1, 0, 0, 1, 1])
        _, _, _, _, info = env.step(np.array([0, 1]))


@pytest.mark.parametrize("convention", ["method", "info"])
def test_a_mask_outlives_what_the_environment_writes_into_its_array(convention):
    """The final observation's mask is read after the reset that wrote the next episode's."""
    env = make_vec_env("FactorMasks-v0", kwargs={"convention": convention, "in_place": True})
    env.reset()
    infos = [env.step(np.array([[0, 1]]))[3][0] for _ in range(3)]
    assert [info["action_mask"].tolist() for info in infos] == [[1, 0, 0, 1, 1]] * 3
    assert infos[-1]["TimeLimit.truncated"]
    assert env.unwrapped.reset_infos[0]["action_mask"].tolist() == [1, 1, 1, 1, 1]


def test_without_masks_there_is_no_such_method():
    env = make_env("CartPole-v1")
    env.reset()
    assert not hasattr(env, "action_masks")
    with pytest.raises(AttributeError):
        env.get_wrapper_attr("action_masks")


def test_taxi_by_its_id():
    agent = GumbelSAC("MlpPolicy", gym.make("Taxi-v4"), learning_starts=100, **QUICK)
    agent.learn(300)
    assert agent.replay_buffer.masks is not None
    rows = agent.replay_buffer.masks[:300, 0]
    assert not rows.all()
    taken = agent.replay_buffer.actions[:300, 0]
    assert rows.gather(1, taken).all()


@pytest.mark.parametrize("convention", ["method", "info"])
@pytest.mark.parametrize("space", SPACES)
def test_reinforce_heeds_masks_in_training_and_evaluation(space, convention):
    agent = REINFORCE(
        "MlpPolicy", masked(space, convention, 3), seed=0, device="cpu", gamma=0.0, n_episodes=2
    )
    agent.learn(300)
    for deterministic in (True, False):
        result = evaluate(
            agent, lambda n, seed: masked(space, convention, n), 20, 1, deterministic=deterministic
        )
        assert result.episodes == 20  # the environment asserts at every step


@pytest.mark.parametrize("cls", [GumbelSAC, REINFORCE])
def test_predict_takes_masks(cls):
    agent = cls("MlpPolicy", masked("multi_discrete"), seed=0, device="cpu")
    mask = np.array([0, 1, 1, 0, 0, 0, 0, 0, 1])
    obs = np.zeros(9, np.float32)
    for deterministic in (True, False):
        action, _ = agent.predict(obs, deterministic=deterministic, action_masks=mask)
        np.testing.assert_array_equal(action, [1, 0, 3])
        actions, _ = agent.predict(
            np.stack([obs] * 4), deterministic=deterministic, action_masks=np.stack([mask] * 4)
        )
        np.testing.assert_array_equal(actions, [[1, 0, 3]] * 4)
    with pytest.raises(ValueError, match="9 entries per environment"):
        agent.predict(obs, action_masks=mask[:5])
    empty = np.stack([mask, mask * [1, 1, 0, 0, 0, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="nothing in some factor of row 1"):
        agent.predict(np.stack([obs] * 2), action_masks=empty)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("empty", r"allows nothing in some factor: \[0, 0, 0\]"),
        ("short", "a mask of 2 entries, its actions need 3"),
        ("late", "masks come and go"),
    ],
)
def test_wrong_masks_are_refused(fault, message):
    agent = GumbelSAC("MlpPolicy", make_vec_env("OddMask-v0", kwargs={"fault": fault}), **QUICK)
    with pytest.raises(ValueError, match=message):
        agent.learn(20)


def test_a_method_without_the_wrapper_is_refused():
    env = masked_envs.RandomMask(convention="method")
    agent = GumbelSAC("MlpPolicy", env, **QUICK)
    with pytest.raises(ValueError, match="ActionMaskInfo"):
        agent.learn(20)


def test_offsets_of_unequal_factors():
    actions = FactoredActions(known_envs.SPACES["multi_discrete"])
    np.testing.assert_array_equal(actions.offsets, [0, 2, 5])


def test_no_masked_action_after_a_callback_stopped_the_training():
    agent = GumbelSAC("MlpPolicy", masked("discrete", "info", 2), learning_starts=1_000, **QUICK)
    for steps in range(2, 42, 2):  # the environment asserts
        agent.learn(100, lambda *_, n=steps: agent.num_timesteps < n, reset_num_timesteps=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "convention"), zip(SPACES, ["method", "info", "method", "info"], strict=True)
)
def test_no_masked_action_in_a_million_steps(space, convention):
    """A quarter of a million steps of each space; the environment asserts at each of them."""
    agent = GumbelSAC(
        "MlpPolicy",
        masked(space, convention, 100),
        learning_starts=5_000,
        buffer_size=20_000,
        train_freq=10,
        uniform_mix=0.2,
        **QUICK,
    )
    agent.learn(240_000)
    result = evaluate(agent, lambda n, seed: masked(space, convention, n), 1_430, 1, n_envs=100)
    assert agent.num_timesteps + sum(result.lengths) >= 250_000
