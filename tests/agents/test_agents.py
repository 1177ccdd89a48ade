"""What every agent promises: it learns, bootstraps rightly, repeats itself, and can be kept."""

import zipfile

import known_envs  # registers the ids
import numpy as np
import pytest
import torch
from gumbelrl.agents import REINFORCE, GumbelSAC
from gumbelrl.agents.policies import GumbelSACPolicy
from gumbelrl.agents.storage import DivergenceError
from gumbelrl.envs import make_vec_env
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

QUICK = {"learning_starts": 50, "batch_size": 32, "policy_kwargs": {"net_arch": [32]}}


def make_sac(env="Identity-v0", **kwargs):
    return GumbelSAC("MlpPolicy", env, seed=0, device="cpu", **{**QUICK, **kwargs})


def make_reinforce(env="Identity-v0", **kwargs):
    kwargs = {"policy_kwargs": {"net_arch": [32]}, **kwargs}
    return REINFORCE("MlpPolicy", env, seed=0, device="cpu", **kwargs)


MAKERS = {"gumbel_sac": make_sac, "reinforce": make_reinforce}  # GumbelSHAC has its own tests


def identity(space, n_envs=1):
    return make_vec_env("Identity-v0", n_envs, seed=0, kwargs={"action_space": space})


def score(agent, space):
    """Mean share of right actions per step, in [0, 1]."""
    return evaluate_policy(agent, identity(space, 2), 10)[0] / 20


# --- learning --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_gumbel_sac_solves_cartpole(seed):
    agent = GumbelSAC("MlpPolicy", "CartPole-v1", seed=seed, device="cpu")
    best = 0.0
    for _ in range(15):  # 30,000 steps at most; benchmarks/cartpole.py has the figures
        agent.learn(2_000, reset_num_timesteps=False)
        best = max(best, evaluate_policy(agent, make_vec_env("CartPole-v1", 10, seed=1), 10)[0])
        if best >= 475:
            return
    pytest.fail(f"mean return never reached 475; best {best}")


# --- the gradient ----------------------------------------------------------------------------


def actor_gradient(estimator, **kwargs):
    """Actor gradient of one update on one batch, and the pieces of its closed form."""
    agent = make_sac(estimator=estimator, ent_coef=0.3, max_grad_norm=1e9, **kwargs)
    agent.learn(60)
    batch = agent.replay_buffer.sample(64, torch.Generator().manual_seed(1))
    policy = agent.policy
    with torch.no_grad():
        table = policy.critic.embed(policy.critic_features(batch.obs)).mean(0)  # (B, K)
    dist = policy.dist(batch.obs)
    loss = -((dist.probs * table).sum(-1) + 0.3 * dist.entropy()).mean()
    closed_form = torch.autograd.grad(loss, agent._actor.parameters)
    agent._update(batch, keep_metrics=False)
    return [p.grad.clone() for p in agent._actor.parameters], closed_form


@pytest.mark.parametrize("estimator", ["exact", "straight_through"])
def test_actor_gradient_is_the_closed_form(estimator):
    # Straight-through on a critic with one head per action is exact (estimators.md, line 1).
    gradient, closed_form = actor_gradient(estimator)
    for got, expected in zip(gradient, closed_form, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_critic_gets_no_gradient_from_the_actor():
    agent = make_sac(policy_kwargs={"net_arch": [32], "critic": "action_in"})
    agent.learn(60)
    batch = agent.replay_buffer.sample(64, torch.Generator().manual_seed(1))
    before = [p.clone() for p in agent._critic.parameters]
    other = make_sac(policy_kwargs={"net_arch": [32], "critic": "action_in"}, estimator="exact")
    other.policy.load_state_dict(agent.policy.state_dict())
    gradients = []
    for each in (agent, other):  # the estimator changes the actor's gradient only
        each.log_ent_coef.data.fill_(-2.0)
        each.generator.manual_seed(3)
        each._update(batch, keep_metrics=False)
        gradients.append([p.grad.clone() for p in each._critic.parameters])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert any((p != q).any() for p, q in zip(before, agent._critic.parameters, strict=True))


# --- bootstrapping ---------------------------------------------------------------------------


@pytest.mark.parametrize(("truncate", "value"), [(True, 2.0), (False, 1.0)])
def test_gumbel_sac_bootstraps_truncation_and_not_termination(truncate, value):
    env = make_vec_env("OneState-v0", 2, kwargs={"truncate": truncate})
    agent = make_sac(env, gamma=0.5, ent_coef=0.0, polyak=0.1, learning_rate=5e-3)
    agent.learn(800)
    table = agent.policy.critic.embed(torch.ones(1, 1))
    torch.testing.assert_close(table, torch.full_like(table, value), rtol=0.03, atol=0)


# --- the API ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("space", list(known_envs.SPACES))
def test_predict_gives_actions_of_the_space(name, space):
    env = identity(space, 3)
    agent = MAKERS[name](env)
    obs = env.reset()
    for deterministic in (True, False):
        single, state = agent.predict(obs[0], deterministic=deterministic)
        batch, _ = agent.predict(obs, deterministic=deterministic)
        assert state is None
        assert env.action_space.contains(np.asarray(single).astype(env.action_space.dtype)[()])
        assert batch.shape == (3, *env.action_space.shape)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("n_envs", [1, 8])
def test_same_seed_same_weights(name, n_envs):
    def weights(seed):
        env = make_vec_env("CartPole-v1", n_envs)
        agent = MAKERS[name](env)
        agent = type(agent)("MlpPolicy", env, seed=seed, device="cpu")
        if name == "gumbel_sac":
            agent.learning_starts = 50
        agent.learn(400)
        return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("name", MAKERS)
def test_saved_agent_acts_the_same_and_goes_on_the_same(name, tmp_path):
    agent = MAKERS[name](identity("discrete"))
    agent.learn(200)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=identity("discrete"), device="cpu")
    obs = np.random.default_rng(0).random((50, 4), dtype=np.float32)
    np.testing.assert_array_equal(
        agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )
    np.testing.assert_array_equal(agent.predict(obs)[0], loaded.predict(obs)[0])
    assert loaded.num_timesteps == agent.num_timesteps
    if name == "gumbel_sac":
        agent.save_replay_buffer(tmp_path / "replay")
        loaded.load_replay_buffer(tmp_path / "replay")
        for each in (agent, loaded):
            each.train(gradient_steps=5, batch_size=32)
    else:
        for each in (agent, loaded):  # one more update from the same starting point
            each.env.seed(1)
            each.action_space.seed(1)
            each._last_obs = each.env.reset()
            each.learn(20, reset_num_timesteps=False)
    for a, b in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MAKERS)
def test_saved_file_holds_no_pickle(name, tmp_path):
    MAKERS[name]().save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["agent.json", "tensors.safetensors"]


def test_files_with_pickles_are_refused(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=10).save(tmp_path / "dqn")
    with pytest.raises(ValueError, match="holds pickles"):
        GumbelSAC.load(tmp_path / "dqn")


def test_loading_the_wrong_thing(tmp_path):
    make_reinforce().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"holds a REINFORCE.*REINFORCE\.load"):
        GumbelSAC.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="spaces do not match"):
        REINFORCE.load(tmp_path / "agent", env="CartPole-v1")
    with pytest.raises(FileNotFoundError, match="no agent file"):
        REINFORCE.load(tmp_path / "nothing")
    (tmp_path / "half.zip").write_bytes((tmp_path / "agent.zip").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        REINFORCE.load(tmp_path / "half")


@pytest.mark.parametrize("name", MAKERS)
def test_stable_baselines_callbacks(name, tmp_path):
    agent = MAKERS[name]()
    callback = EvalCallback(
        identity("discrete"), eval_freq=100, log_path=str(tmp_path), verbose=0, warn=False
    )
    agent.learn(300, callback=callback)
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 3


def test_temperature_follows_its_schedule():
    schedule = {"schedule": "linear", "start": 2.0, "end": 1.0}
    agent = make_sac(temperature=schedule)
    agent.learn(300)
    # The last update of 300 steps sees progress 300/300.
    assert agent.estimator.temperature == pytest.approx(1.0, abs=0.01)


def test_a_learning_rate_may_fall_to_zero():
    agent = make_sac(learning_rate={"schedule": "linear", "start": 1e-3, "end": 0})
    agent.learn(100)
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=2e-5)
    with pytest.raises(ValueError, match=r"start of learning_rate must be .*\[0, 1\], got -1"):
        make_sac(learning_rate={"schedule": "linear", "start": -1, "end": 0})


def test_entropy_coefficient_moves_towards_the_target():
    high = make_sac(target_entropy=1.0, learning_rate=0.01)
    low = make_sac(target_entropy=0.0, learning_rate=0.01)
    for agent in (high, low):
        agent.learn(300)
    assert low.log_ent_coef < -0.5 < high.log_ent_coef


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"polyak": 1.5}, r"polyak must be a number in \(0, 1\], got 1.5"),
        ({"gamma": -0.1}, r"gamma must be a number in \[0, 1\], got -0.1"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"buffer_size": 10}, "batch_size must be <= buffer_size = 10, got 32"),
        ({"ent_coef": "atuo"}, "ent_coef must be a number >= 0 or 'auto', got 'atuo'"),
        ({"estimator": "st_gumble"}, "st_gumbel"),
        ({"policy_kwargs": {"net_arch": []}}, "net_arch must list at least one hidden width"),
        ({"policy_kwargs": {"activation": "rleu"}}, "unknown activation 'rleu'"),
        ({"policy_kwargs": {"critic": "head"}}, "did you mean 'heads'"),
        ({"env": "Pendulum-v1"}, "needs a discrete action space"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sac(**{"env": "Identity-v0", **arguments})


def test_a_run_may_end_beyond_its_budget():
    agent = make_sac(identity("discrete", 7), train_freq=4)
    agent.learn(100)  # 7 does not divide it: the last update sees progress beyond 1
    assert agent.num_timesteps == 112


def test_vec_normalize_reaches_the_update_as_it_reaches_the_policy():
    env = VecNormalize(make_vec_env("OneState-v0", 2, kwargs={"truncate": True}))
    agent = make_sac(env)
    seen = []
    update = agent._update
    agent._update = lambda batch, keep_metrics: (seen.append(batch), update(batch, keep_metrics))
    agent.learn(60)
    raw = agent.replay_buffer.sample(32, torch.Generator())
    assert (raw.obs == 1).all()
    torch.testing.assert_close(
        seen[-1].obs[0], torch.as_tensor(env.normalize_obs(np.ones(1)), dtype=torch.float32)
    )
    assert seen[-1].rewards[0] == pytest.approx(env.normalize_reward(np.ones(1)).item())


def test_own_policy_class_is_named_on_load(tmp_path):
    class Own(GumbelSACPolicy):
        pass

    agent = GumbelSAC(Own, "Identity-v0", seed=0, device="cpu", **QUICK)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"policy=Own"):
        GumbelSAC.load(tmp_path / "agent")
    assert isinstance(GumbelSAC.load(tmp_path / "agent", policy=Own).policy, Own)


def test_settings_survive_a_subclass_that_passes_them_on(tmp_path):
    class Own(GumbelSAC):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    Own("MlpPolicy", "Identity-v0", gamma=0.5, **QUICK).save(tmp_path / "agent")
    assert Own.load(tmp_path / "agent").gamma == 0.5


def test_changes_on_load(tmp_path):
    make_sac().save(tmp_path / "agent")
    assert GumbelSAC.load(tmp_path / "agent", gamma=0.5).gamma == 0.5
    with pytest.raises(ValueError, match="ent_coef cannot change on load"):
        GumbelSAC.load(tmp_path / "agent", ent_coef=0.1)
    one, two = (GumbelSAC.load(tmp_path / "agent", seed=5) for _ in range(2))
    assert torch.equal(one.generator.get_state(), two.generator.get_state())


@pytest.mark.parametrize("estimator", ["relax", "rebar", "mixed", "reinforce"])
def test_estimators_with_a_life_are_kept(estimator, tmp_path):
    agent = make_sac(estimator=estimator)
    agent.learn(80)
    agent.save(tmp_path / "agent")
    loaded = GumbelSAC.load(tmp_path / "agent")
    state = agent.estimator.state_dict()
    assert state.keys() == loaded.estimator.state_dict().keys()
    for name, value in loaded.estimator.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_reseeding_reseeds_the_agents_own_generator():
    agent = make_sac()
    draws = []
    for _ in range(2):
        agent.set_random_seed(5)
        draws.append([agent.predict(np.ones(4, np.float32))[0].item() for _ in range(20)])
    assert draws[0] == draws[1]


def test_divergence_is_told():
    agent = make_sac(learning_rate=1e9, max_grad_norm=1e30)
    with pytest.raises(DivergenceError, match=r"training diverged: train/\w+ is (inf|nan)"):
        agent.learn(400, log_interval=1)


def test_settings_from_numpy_and_schedules_of_the_remaining_progress():
    agent = make_sac(batch_size=np.int64(16), learning_rate=lambda remaining: 1e-3 * remaining)
    agent.learn(60)
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"estimator": "exact", "ent_coef": 0.05},
        {"estimator": "reinmax", "forward_temperature": 1.5},
        {"actor_objective": "min", "temperature": 0.5},
    ],
)
def test_the_actors_step_on_heads_is_what_autograd_gives(settings):
    agents = []
    for closed in (True, False):
        made = GumbelSAC(
            "MlpPolicy", "CartPole-v1", seed=0, device="cpu", learning_starts=64, **settings
        )
        made.learn(64, log_interval=None)
        if not closed:
            made.estimator.on_table = lambda *arguments: None
        made.train(10, 32)
        agents.append(made)
    for a, b in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
