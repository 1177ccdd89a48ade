"""REINFORCE: its gradient by enumeration, its returns, that it learns, and that it can be kept."""

import itertools

import gymnasium as gym
import known_envs  # registers the ids
import masked_envs  # noqa: F401  # likewise
import numpy as np
import pytest
import torch
from gumbelrl.agents import REINFORCE
from gumbelrl.agents.baselines import BASELINES, RunningMean, leave_one_out, of_first_step
from gumbelrl.agents.episodes import StepStore, episode_numbers, rewards_to_go
from gumbelrl.envs import make_vec_env
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

MODES = [(b, r) for b in BASELINES for r in ("episodes", "steps")]
TOLERANCE = {"rtol": 2e-4, "atol": 2e-6}  # of float32 sums over thousands of trajectories


def make(env="Identity-v0", **kwargs):
    kwargs = {"policy_kwargs": {"net_arch": [32]}, **kwargs}
    if kwargs.get("baseline") == "leave_one_out" and kwargs.get("rollout") != "steps":
        kwargs.setdefault("n_episodes", 2)
    return REINFORCE("MlpPolicy", env, seed=0, device="cpu", **kwargs)


def identity(space, n_envs=1, **kwargs):
    kwargs = {"action_space": space, **kwargs}
    return make_vec_env("Identity-v0", n_envs, seed=0, kwargs=kwargs)


# --- the gradient, by enumeration ------------------------------------------------------------


class Tree:
    """Two steps in five states, with chance and an early end: every trajectory can be listed.

    State 0 goes to 1, 2 or the end; 1 and 2 to 3, 4 or the end, and there the horizon cuts. An
    observation is the state's one-hot.
    """

    NEXT = np.array(  # [state, action, next state]; what is missing to 1 is the end
        [
            [[0, 0.5, 0.3, 0, 0], [0, 0.2, 0.4, 0, 0]],
            [[0, 0, 0, 0.6, 0.1], [0, 0, 0, 0.1, 0.7]],
            [[0, 0, 0, 0.6, 0.1], [0, 0, 0, 0.2, 0.2]],
        ]
    )
    REWARD = np.array([[1.0, -0.5], [2.0, 0.3], [-1.0, 1.5]])

    @classmethod
    def trajectories(cls):
        """(chance's share of the probability, states, actions, terminated) of each."""
        for a0, s1 in itertools.product((0, 1), (1, 2, None)):
            p0 = cls.NEXT[0, a0, s1] if s1 else 1 - cls.NEXT[0, a0].sum()
            if s1 is None:
                yield p0, [0, None], [a0], True
                continue
            for a1, s2 in itertools.product((0, 1), (3, 4, None)):
                p1 = cls.NEXT[s1, a1, s2] if s2 else 1 - cls.NEXT[s1, a1].sum()
                yield p0 * p1, [0, s1, s2], [a0, a1], s2 is None


class TreeSpaces(gym.Env):
    observation_space = spaces.Box(0, 1, (5,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.eye(5, dtype=np.float32)[0], {}


def tree_agent(baseline, n_trajectories, **kwargs):
    n_envs = n_trajectories if kwargs.get("rollout") == "steps" else 1
    kwargs.setdefault("n_episodes", 1 if n_envs > 1 else n_trajectories)
    env = make_vec_env("Tree-v0", n_envs)
    agent = make(env, baseline=baseline, normalize_advantage=False, max_grad_norm=1e9, **kwargs)
    agent._last_obs = env.reset()
    agent._running_mean.add(torch.tensor([0.7, 1.9]))  # what earlier updates have left
    return agent


def collect(agent, episodes):
    """The agent's own rollout of these episodes: one after the other in one environment."""
    eye = np.eye(5, dtype=np.float32)
    steps, truncations = StepStore(1), []
    for _, states, actions, terminated in episodes:
        for t, action in enumerate(actions):
            last = t == len(actions) - 1
            steps.add(
                obs=eye[states[t]][None],
                action=np.array([[action]]),
                reward=np.array([Tree.REWARD[states[t], action]], np.float32),
                end=np.array([last]),
            )
        if not terminated:
            truncations.append((steps.length - 1, 0, eye[states[-1]]))
    return agent._finish(steps, truncations)


def expected_gradient(agent, n_trajectories):
    """E ĝ over all tuples of trajectories, from the agent's own loss."""
    parameters = agent._actor_parameters
    kept = agent._running_mean.state.clone()
    every = list(Tree.trajectories())
    with torch.no_grad():
        log_pi = agent.policy.dist(torch.eye(5)).log_probs.double().numpy()  # (5, 2)
    probability = [
        p * np.exp(sum(log_pi[s, a] for s, a in zip(states, actions, strict=False)))
        for p, states, actions, _ in every
    ]
    assert sum(probability) == pytest.approx(1, abs=1e-6)
    total = 0.0
    for chosen in itertools.product(range(len(every)), repeat=n_trajectories):
        agent._running_mean.state.copy_(kept)
        loss, _ = agent._actor_loss(collect(agent, [every[i] for i in chosen]))
        total = total - np.prod([probability[i] for i in chosen]) * loss
    return torch.autograd.grad(total, parameters)


def exact_gradient(agent, gamma=1.0, whole=True):
    """∇J, J = E[Σ γ^t r_t + γ^T V(s_T) where it was cut], written as a sum over all trajectories.

    Without `whole`, the weight γ^t of step t's log-probability is left out: the direction that
    rewards-to-go estimate, Σ_t E[∇ log π(a_t | s_t) Σ_{k≥t} γ^{k−t} r_k].
    """
    with torch.no_grad():
        values = agent.policy.predict_values(torch.eye(5)).squeeze(-1)
    log_pi = agent.policy.dist(torch.eye(5)).log_probs
    objective = 0.0
    for p, states, actions, terminated in Tree.trajectories():
        logs = torch.stack([log_pi[s, a] for s, a in zip(states, actions, strict=False)])
        rewards = [Tree.REWARD[s, a] for s, a in zip(states, actions, strict=False)]
        rewards.append(0.0 if terminated else values[states[-1]].item())
        probability = p * logs.sum().exp()
        if whole:
            objective += probability * sum(gamma**t * r for t, r in enumerate(rewards))
            continue
        for t in range(len(actions)):
            to_go = sum(gamma**k * r for k, r in enumerate(rewards[t:]))
            objective += probability.detach() * logs[t] * to_go
    return torch.autograd.grad(objective, agent._actor_parameters)


def assert_same(gradient, expected):
    assert max(g.abs().max() for g in expected) > 0.01
    for got, want in zip(gradient, expected, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("reward_to_go", [True, False])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_is_the_policy_gradient(baseline, reward_to_go):
    n = 2 if baseline == "leave_one_out" else 1
    agent = tree_agent(baseline, n, gamma=1.0, reward_to_go=reward_to_go)
    assert_same(expected_gradient(agent, n), exact_gradient(agent))


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_with_a_discount(baseline):
    n = 2 if baseline == "leave_one_out" else 1
    agent = tree_agent(baseline, n, gamma=0.5)
    assert_same(expected_gradient(agent, n), exact_gradient(agent, 0.5, whole=False))
    agent = tree_agent(baseline, n, gamma=0.5, reward_to_go=False)
    assert_same(expected_gradient(agent, n), exact_gradient(agent, 0.5))


def columns():
    """Every rollout of two steps in one environment: (probability's share, its episodes)."""
    every = list(Tree.trajectories())
    first_steps = {(states[1], actions[0]): p for p, states, actions, _ in every if states[1]}
    chance = {s_a: Tree.NEXT[0, s_a[1], s_a[0]] for s_a in first_steps}
    ends = [e for e in every if len(e[2]) == 1]
    for episode in every:
        if len(episode[2]) == 2:
            yield [episode]
    for ended, again in itertools.product(ends, ends):
        yield [ended, again]
    for ended, ((s1, a0), p) in itertools.product(ends, chance.items()):
        yield [ended, (p, [0, s1], [a0], False)]  # cut after one step of the next episode


def collect_columns(agent, chosen):
    """The agent's own rollout of two steps where each environment plays one of `columns()`."""
    eye, steps, last = np.eye(5, dtype=np.float32), StepStore(2), []
    flat = []
    for episodes in chosen:
        rows = [
            (s, a, t == len(e[2]) - 1 and e[3])
            for e in episodes
            for t, (s, a) in enumerate(zip(e[1], e[2], strict=False))
        ]
        flat.append(rows)
        last.append(episodes[-1][1][-1] or 0)  # a new episode begins in state 0
    for t in range(2):
        states, actions, ends = zip(*(rows[t] for rows in flat), strict=True)
        steps.add(
            obs=eye[list(states)],
            action=np.array(actions)[:, None],
            reward=Tree.REWARD[list(states), list(actions)].astype(np.float32),
            end=np.array(ends),
        )
    agent._last_obs = eye[last]
    return agent._finish(steps, [])


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_of_cut_rollouts(baseline):
    """It is Σ_t E[∇ log π(a_t | s_t) G_t], each G_t worked out here, whatever the baseline."""
    n, gamma = (2 if baseline == "leave_one_out" else 1), 0.5
    agent = tree_agent(baseline, n, rollout="steps", n_steps=2, gamma=gamma)
    kept = agent._running_mean.state.clone()
    every = list(columns())
    log_pi = agent.policy.dist(torch.eye(5)).log_probs
    values = agent.policy.predict_values(torch.eye(5)).squeeze(-1).detach()
    exact, probability = 0.0, []
    for episodes in every:
        p, direction = 1.0, 0.0
        for share, states, actions, terminated in episodes:
            logs = [log_pi[s, a] for s, a in zip(states, actions, strict=False)]
            p *= share * sum(logs).exp().item()
            rewards = [Tree.REWARD[s, a] for s, a in zip(states, actions, strict=False)]
            rewards.append(0.0 if terminated else values[states[-1]].item())
            for t, log in enumerate(logs):
                direction += log * sum(gamma**k * r for k, r in enumerate(rewards[t:]))
        probability.append(p)
        exact += p * direction / 2  # the mean over steps
    assert sum(probability) == pytest.approx(1, abs=1e-6)
    total = 0.0
    for chosen in itertools.product(range(len(every)), repeat=n):
        agent._running_mean.state.copy_(kept)
        loss, _ = agent._actor_loss(collect_columns(agent, [every[i] for i in chosen]))
        total -= np.prod([probability[i] for i in chosen]) * loss
    parameters = agent._actor_parameters
    assert_same(torch.autograd.grad(total, parameters), torch.autograd.grad(exact, parameters))


def gradient_variance(agent):
    """Trace of the covariance of ĝ from one trajectory, by enumeration."""
    log_pi = agent.policy.dist(torch.eye(5)).log_probs.detach()
    first, second = 0.0, 0.0
    for trajectory in Tree.trajectories():
        share, states, actions, _ = trajectory
        p = share * sum(log_pi[s, a] for s, a in zip(states, actions, strict=False)).exp().item()
        loss, _ = agent._actor_loss(collect(agent, [trajectory]))
        gradient = torch.autograd.grad(loss, agent._actor_parameters)
        flat = torch.cat([g.flatten() for g in gradient]).double()
        first, second = first + p * flat, second + p * flat.square()
    return (second - first.square()).sum().item()


def test_a_learned_value_takes_variance_away():
    variances = []
    for baseline in ("none", "value"):
        agent = tree_agent(baseline, 1, gamma=1.0)
        rollout = collect(agent, list(Tree.trajectories()))
        optimizer = torch.optim.Adam(agent._value_parameters, 2e-2)
        for _ in range(60):
            value = agent.policy.predict_values(rollout.obs).squeeze(-1)
            optimizer.zero_grad()
            (value - rollout.returns).square().mean().backward()
            optimizer.step()
        variances.append(gradient_variance(agent))
    assert variances[1] < 0.8 * variances[0]


gym.register("Tree-v0", TreeSpaces)


# --- returns and baselines by hand -----------------------------------------------------------


def test_rewards_to_go_by_hand():
    rewards = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    ends = np.array([[False, False], [True, False], [False, True]])
    bootstraps = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 0.0]])
    expected = [[1 + 0.5 * 7, 1.75], [2 + 0.5 * 10, 1.5], [4.0, 1.0]]
    np.testing.assert_allclose(rewards_to_go(rewards, ends, bootstraps, 0.5), expected)


def test_episode_numbers_by_hand():
    ends = np.array([[0, 1], [1, 0], [0, 0], [0, 1]], bool)
    numbers, positions = episode_numbers(ends)
    np.testing.assert_array_equal(numbers, [[0, 0], [0, 1], [1, 1], [1, 1]])
    np.testing.assert_array_equal(positions, [[0, 0], [1, 0], [0, 1], [1, 2]])


def test_leave_one_out_by_hand():
    # Three trajectories of 3, 2 and 1 steps; ended ones count with 0.
    returns = torch.tensor([6.0, 4.0, 2.0, 3.0, 1.0, 5.0])
    positions = torch.tensor([0, 1, 2, 0, 1, 0])
    trajectories = torch.tensor([0, 0, 0, 1, 1, 2])
    expected = torch.tensor([4.0, 0.5, 0.0, 5.5, 2.0, 4.5])
    torch.testing.assert_close(leave_one_out(returns, positions, 3), expected)
    whole = of_first_step(returns, positions, trajectories)
    assert whole.tolist() == [6, 6, 6, 3, 3, 5]
    baseline = leave_one_out(whole, positions, 3, whole=True)
    assert baseline.tolist() == [4, 4, 4, 5.5, 5.5, 4.5]
    assert leave_one_out(torch.ones(2), torch.tensor([0, 1]), 1).tolist() == [0, 0]


def test_running_mean_by_hand():
    mean = RunningMean(torch.device("cpu"))
    assert mean.value == 0
    mean.add(torch.tensor([1.0, 3.0]))
    assert mean.value == pytest.approx(2)  # the first weight is undone
    mean.add(torch.tensor([5.0]))
    assert mean.value == pytest.approx((0.9 * 2 + 5) / 1.9)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_store_grows(n):
    store = StepStore(2)
    for t in range(n):
        store.add(a=np.full((3, 2), t), b=np.full(3, -t))
    np.testing.assert_array_equal(store["a"][:, 1, 1], np.arange(n))
    np.testing.assert_array_equal(store["b"][:, 2], -np.arange(n))
    assert "c" not in store


# --- bootstrapping ---------------------------------------------------------------------------


@pytest.mark.parametrize(("truncate", "value"), [(True, 2.0), (False, 1.0)])
@pytest.mark.parametrize(("baseline", "rollout"), MODES)
def test_truncation_is_bootstrapped_and_termination_is_not(baseline, rollout, truncate, value):
    env = make_vec_env("OneState-v0", 2, kwargs={"truncate": truncate})
    agent = make(
        env,
        gamma=0.5,
        baseline=baseline,
        rollout=rollout,
        n_episodes=1,
        n_steps=2,
        value_learning_rate=0.02,
    )
    agent.learn(160)
    assert agent.policy.predict_values(torch.ones(1, 1)).item() == pytest.approx(value, rel=0.03)
    torch.testing.assert_close(
        agent._collected.returns,
        torch.full_like(agent._collected.returns, value),
        rtol=0.03,
        atol=0,
    )


@pytest.mark.parametrize("rollout", ["episodes", "steps"])
def test_unfinished_episodes_are_cut_and_bootstrapped(rollout):
    env = make_vec_env("Identity-v0", 2, seed=0, kwargs={"length": 10**9})
    agent = make(env, gamma=0.5, rollout=rollout, n_steps=50)
    rollouts = []
    agent.train = lambda: rollouts.append((agent._collected, agent._last_obs))
    agent.learn(100)
    assert agent.num_timesteps == 100
    ((collected, last_obs),) = rollouts
    assert len(collected.returns) == 100
    values = agent.policy.predict_values(torch.as_tensor(last_obs)).squeeze(-1)  # (N,)
    rewards = collected.returns[-2:] - 0.5 * values
    assert all(min(abs(r), abs(r - 1)) < 1e-6 for r in rewards.tolist())  # 0 or 1 each


def test_fixed_rollouts_go_on_where_they_stopped():
    env = make_vec_env("Identity-v0", 3, seed=0, kwargs={"length": 20})
    agent = make(env, rollout="steps", n_steps=7)
    agent.learn(20 * 3 * 7)
    assert [info["l"] for info in agent.ep_info_buffer] == [20] * 3 * 7


def test_only_the_episodes_trained_on_are_counted():
    agent = make(make_vec_env("CartPole-v1", 8))
    agent.learn(1, log_interval=None)  # one update: one episode of each environment
    assert len(agent.ep_info_buffer) == 8
    collected = agent._collected
    assert collected.n_trajectories == 8
    assert len(collected.returns) == sum(info["l"] for info in agent.ep_info_buffer)
    lengths = torch.bincount(collected.trajectories)
    assert sorted(lengths.tolist()) == sorted(info["l"] for info in agent.ep_info_buffer)


class Successes(gym.Env):
    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, {"is_success": True}


def test_successes_are_counted():
    agent = make(Successes())
    agent.learn(5)
    assert list(agent.ep_success_buffer) == [True] * 5


# --- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["discrete_start", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize(("baseline", "rollout"), MODES)
def test_every_mode_solves_identity(baseline, rollout, space):
    kwargs = {"gamma": 0.0, "learning_rate": 0.02, "baseline": baseline, "rollout": rollout}
    agent = make(identity(space, 8), n_steps=20, n_episodes=1, **kwargs)
    for _ in range(6):
        agent.learn(4_000, reset_num_timesteps=False)
        if evaluate_policy(agent, identity(space, 2), 10)[0] / 20 > 0.95:
            return
    pytest.fail("the share of right actions never reached 0.95 in 24,000 steps")


def test_whole_returns_learn_too():
    agent = make(identity("discrete", 8, length=1), reward_to_go=False, n_episodes=4)
    agent.learn(6_000)
    assert evaluate_policy(agent, identity("discrete", 2, length=1), 200)[0] > 0.95


def test_the_entropy_bonus_leads_to_the_soft_policy():
    """With rewards of 0 and 1 and γ = 0 the best policy is softmax(r / α)."""
    agent = make(
        identity("discrete", 8),
        gamma=0.0,
        learning_rate={"schedule": "linear", "start": 0.02, "end": 1e-4},
        ent_coef=0.5,
        normalize_advantage=False,
    )
    agent.learn(16_000)
    probs = agent.policy.dist(torch.eye(4)).probs
    soft = torch.softmax(torch.eye(4) / 0.5, -1)  # 0.71 for the right action
    torch.testing.assert_close(probs, soft, rtol=0, atol=0.08)


def test_equal_returns_move_nothing_but_by_their_size():
    """Normalised by the root mean square: returns that are all alike are not blown up."""
    agent = make(make_vec_env("OneState-v0", 2, kwargs={"truncate": False}), baseline="none")
    seen = []
    loss = agent._actor_loss
    agent._actor_loss = lambda rollout: seen.append(loss(rollout)[0].item()) or loss(rollout)
    agent.learn(20)
    assert all(0 < value < 5 for value in seen)


@pytest.mark.parametrize("rollout", ["episodes", "steps"])
@pytest.mark.parametrize(
    ("policy", "form"),
    [
        ("MlpPolicy", "discrete"),
        ("CnnPolicy", "image"),
        ("CnnPolicy", "grid"),
        ("MultiInputPolicy", "dict"),
    ],
)
def test_observations_of_every_kind(policy, form, rollout, tmp_path):
    agent = REINFORCE(
        policy,
        make_vec_env("Identity-v0", 4, 0, kwargs={"form": form}),
        rollout=rollout,
        n_steps=20,
        value_steps=1,
        gamma=0.5,
        seed=0,
        device="cpu",
    )
    agent.learn(200)
    obs = agent.env.reset()
    agent.save(tmp_path / "agent")
    loaded = REINFORCE.load(tmp_path / "agent", device="cpu")
    np.testing.assert_array_equal(
        agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("rollout", ["episodes", "steps"])
@pytest.mark.parametrize("space", list(known_envs.SPACES))
def test_masked_actions_are_never_taken(space, rollout, n_envs):
    """The environment asserts it; the mask stored with a step is the one it was taken under."""
    env = make_vec_env("RandomMask-v0", n_envs, 0, kwargs={"action_space": space})
    agent = make(env, rollout=rollout, n_steps=16, ent_coef=0.01)
    masks = []
    train = agent.train
    agent.train = lambda: (masks.append(agent._collected), train())
    agent.learn(400)
    assert all(torch.equal(r.masks, r.obs.bool()) for r in masks)  # the observation is the mask
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


def test_log_probabilities_and_entropy_heed_the_mask():
    env = make_vec_env("RandomMask-v0", 2, 0, kwargs={"action_space": "multi_discrete"})
    agent = make(env, baseline="none", normalize_advantage=False, ent_coef=0.7)
    agent.learn(1)
    rollout = agent._collected
    loss, metrics = agent._actor_loss(rollout)
    logits = agent.policy.actor(rollout.obs).where(rollout.masks, -torch.inf)
    objective = 0.0
    for m, factor in enumerate(logits.split([2, 3, 4], -1)):
        log_p = factor.log_softmax(-1)
        taken = log_p.gather(-1, rollout.actions[:, m : m + 1]).squeeze(-1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e9)).sum(-1)
        objective = objective + (rollout.returns * taken + 0.7 * entropy).sum()
    torch.testing.assert_close(loss, -objective / rollout.n_trajectories)
    assert metrics["train/entropy"] > 0


# --- the same again --------------------------------------------------------------------------


class SaveAt(BaseCallback):
    """Saves once, between an update and the next rollout."""

    def __init__(self, path, at):
        super().__init__()
        self.path, self.at, self.saved_at = path, at, None

    def _on_rollout_start(self):
        if self.saved_at is None and self.num_timesteps >= self.at:
            self.saved_at = self.num_timesteps
            self.model.save(self.path)
        if self.num_timesteps == self.saved_at:  # as a run does at its checkpoints
            self.model.env.seed(3)
            self.model._last_obs = self.model.env.reset()

    def _on_step(self):
        return True


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("baseline", "rollout"), MODES)
def test_a_loaded_agent_goes_on_to_the_bit(baseline, rollout, n_envs, tmp_path):
    if baseline == "leave_one_out" and rollout == "steps" and n_envs == 1:
        return  # refused
    kwargs = {"baseline": baseline, "rollout": rollout, "n_steps": 30}
    whole = make(make_vec_env("CartPole-v1", n_envs, seed=0), **kwargs)
    save = SaveAt(tmp_path / "agent", 200)
    whole.learn(600, callback=save)
    loaded = REINFORCE.load(tmp_path / "agent", env=make_vec_env("CartPole-v1", n_envs, seed=9))
    assert loaded.num_timesteps == save.saved_at
    again = SaveAt(None, 0)
    again.saved_at = save.saved_at
    loaded.learn(600 - save.saved_at, callback=again, reset_num_timesteps=False)
    assert loaded.num_timesteps == whole.num_timesteps
    assert torch.equal(loaded._running_mean.state, whole._running_mean.state)
    for a, b in zip(whole.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_file_keeps_the_running_mean_whatever_the_baseline(tmp_path):
    agent = make(baseline="running")
    agent.learn(100)
    agent.save(tmp_path / "agent")
    loaded = REINFORCE.load(tmp_path / "agent")
    assert loaded._running_mean.value == agent._running_mean.value > 0
    assert REINFORCE.load(tmp_path / "agent", baseline="value").baseline == "value"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "valeu"}, "unknown baseline 'valeu' .did you mean 'value'"),
        ({"rollout": "step"}, "unknown rollout 'step' .did you mean 'steps'"),
        ({"n_steps": 0}, "n_steps must be an integer >= 1, got 0"),
        ({"n_episodes": 0}, "n_episodes must be an integer >= 1, got 0"),
        ({"value_steps": 0}, "value_steps must be an integer >= 1, got 0"),
        ({"value_learning_rate": 0.0}, r"value_learning_rate must be a number in \(0, inf\)"),
        ({"ent_coef": -1}, r"ent_coef must be a number in \[0, inf\), got -1"),
        ({"gamma": 1.1}, r"gamma must be a number in \[0, 1\], got 1.1"),
        ({"max_grad_norm": 0}, r"max_grad_norm must be a number in \(0, inf\), got 0"),
        ({"reward_to_go": "no"}, "reward_to_go must be True or False, got 'no'"),
        ({"normalize_advantage": 2}, "normalize_advantage must be True or False, got 2"),
        ({"reward_to_go": False, "rollout": "steps"}, "use rollout='episodes'"),
        ({"baseline": "leave_one_out", "n_episodes": 1}, "n_episodes >= 2"),
        ({"baseline": "leave_one_out", "rollout": "steps"}, "use more environments"),
        ({"env": "Pendulum-v1"}, "needs a discrete action space"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
