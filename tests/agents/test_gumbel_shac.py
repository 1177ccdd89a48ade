"""GumbelSHAC: its gradient, its values, its seeds, and what can be kept of it."""

import gymnasium
import known_tasks
import pytest
import torch
from gumbelrl.agents import GumbelSHAC
from gumbelrl.agents.fault_watch import FaultWatch
from gumbelrl.agents.policies import ShacPolicy
from gumbelrl.agents.windows import Window, lambda_returns
from gumbelrl.envs import make_vec_env
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

PATHWISE = ["st_gumbel", "straight_through", "gumbel_rao", "reinmax", "gapped_st"]


def make(env="known/Walk-v0", **kwargs):
    kwargs = {"n_envs": 32, "horizon": 8, "policy_kwargs": {"net_arch": [32]}, **kwargs}
    return GumbelSHAC("MlpPolicy", env, seed=0, device="cpu", **kwargs)


def unroll(agent):
    """One window outside `learn`."""
    _, callback = agent._setup_learn(10_000)
    return agent._unroll(callback)


def test_gradient_is_the_closed_form_where_straight_through_is_exact():
    agent = make("known/Bandit-v0", estimator="straight_through", max_grad_norm=1e9)
    window = unroll(agent)
    dist_logits = agent.policy.actor(window.obs.flatten(0, 2))[0]  # (H·N, ΣK)
    values = torch.tensor(known_tasks.Bandit.values)
    probs = torch.cat([dist_logits[:, :2].softmax(-1), dist_logits[:, 2:].softmax(-1)], -1)
    # Every step is an episode: the objective is the mean reward.
    closed_form = torch.autograd.grad(-(probs @ values).mean(), agent._actor_parameters)
    agent._update(window)
    for parameter, expected in zip(agent._actor_parameters, closed_form, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_gradient_reaches_back_through_the_dynamics():
    agent = make("known/Walk-v0", estimator="straight_through", horizon=3)
    for parameter in agent.policy.value_target.parameters():
        parameter.zero_()
    for parameter in agent.policy.actor[0].parameters():
        parameter.data.zero_()  # a policy that does not look: the dynamics alone carry the slope
    window = unroll(agent)
    returns = lambda_returns(window, 1.0, 1.0)
    (slope,) = torch.autograd.grad(returns[0].sum(), window.one_hots[0])
    # R_0 = −s1² − s2² − s3², and every s_t moves with the first step:
    # ∂R_0/∂D_0[k] = −2 (s1 + s2 + s3) u_k, u = (−1, 0, 1).
    obs = torch.cat([window.obs, agent._obs.detach().unsqueeze(0)])  # (H + 1, S, N, 1)
    expected = -2 * obs[1:, ..., 0].sum(0).unsqueeze(-1) * torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(slope, expected)


def test_lambda_returns_by_hand():
    def column(*values):
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)

    def flags(*values):
        return torch.tensor(values).view(-1, 1, 1)

    window = Window(
        obs=column(0, 0, 0, 0),
        rewards=column(1, 2, 4, 8),
        next_values=column(10, 20, 30, 40),
        terminated=flags(False, True, False, False),
        truncated=flags(False, False, True, False),
        entropies=column(0, 0, 0, 0),
        returns=column(1, 3, 7, 15),
        lengths=column(1, 2, 3, 4),
    )
    # γ = 0.5, λ = 0.5, backwards: 8 + .5·40; 4 + .5·30 (truncated: V, not what follows);
    # 2 (terminated: nothing); 1 + .5 (.5·10 + .5·2).
    expected = column(1 + 0.5 * (5 + 1), 2, 4 + 15, 28)
    torch.testing.assert_close(lambda_returns(window, 0.5, 0.5), expected)
    # λ = 1 goes to the window's end or the episode's, and takes V only there.
    torch.testing.assert_close(lambda_returns(window, 0.5, 1.0), column(1 + 0.5 * 2, 2, 19, 28))


@pytest.mark.parametrize(
    ("env", "value"), [("known/Constant-v0", 2.0), ("known/Terminating-v0", 1.0)]
)
def test_truncation_bootstraps_and_termination_does_not(env, value):
    agent = make(env, gamma=0.5)
    agent.learn(32 * 8 * 150)
    assert agent.policy.value_net(torch.ones(1, 1)).item() == pytest.approx(value, rel=0.03)


def best_walk():
    """Mean return of the best policy of `Walk`: towards 0 while that is nearer."""
    s, total = torch.linspace(-4, 4, 10_001), 0.0
    for _ in range(20):
        s = torch.where(s.abs() > 0.5, s - s.sign(), s)
        total -= s.square().mean().item()
    return total


@pytest.mark.parametrize("estimator", PATHWISE)
def test_learns_to_walk_to_the_middle(estimator):
    agent = make(estimator=estimator)
    assert agent.evaluate_seeds(500).item() < 8 * best_walk()
    agent.learn(32 * 8 * 80)
    assert agent.evaluate_seeds(500).item() > 2.2 * best_walk()


def test_solves_cartpole_on_gymnasiums_environment():
    agent = GumbelSHAC("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    agent.learn(30_720)
    assert evaluate_policy(agent, make_vec_env("CartPole-v1", 5, seed=3), 10)[0] > 400


def test_same_seed_same_weights():
    def weights(seed):
        agent = GumbelSHAC("MlpPolicy", "known/Walk-v0", seed=seed, device="cpu", n_envs=4)
        agent.learn(4 * 16 * 3)
        return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_saved_agent_goes_on_to_the_bit(tmp_path):
    agent = make()
    agent.learn(32 * 8 * 5)
    agent.save(tmp_path / "agent")
    loaded = GumbelSHAC.load(
        tmp_path / "agent", env="known/Walk-v0", device="cpu", force_reset=False
    )
    for each in (agent, loaded):
        each.learn(32 * 8 * 3, reset_num_timesteps=False)
    for a, b in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(agent.driver.state, loaded.driver.state)


def test_seeds_are_batched_but_independent():
    agent = make(n_seeds=3, max_grad_norm=0.1)
    window = unroll(agent)
    agent._update(window)
    gradients = [p.grad.clone() for p in agent._actor_parameters]
    # The same window with one seed's rewards changed: the others' gradients stay as they were.
    again = make(n_seeds=3, max_grad_norm=0.1)
    window = unroll(again)
    again._update(window._replace(rewards=window.rewards * torch.tensor([5.0, 1, 1]).view(1, 3, 1)))
    for a, b in zip(gradients, (p.grad for p in again._actor_parameters), strict=True):
        torch.testing.assert_close(a[1:], b[1:])
    assert any(
        (a[0] != p.grad[0]).any() for a, p in zip(gradients, again._actor_parameters, strict=True)
    )
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    assert (norms <= 0.1 + 1e-6).all()  # clipped seed by seed


def test_every_seed_learns_and_can_be_taken_out():
    agent = make(n_seeds=3)
    agent.learn(32 * 8 * 80)
    scores = agent.evaluate_seeds(200)
    assert (scores > 2.2 * best_walk()).all()
    member = agent.member(2)
    obs = torch.linspace(-4, 4, 30).view(-1, 1)
    expected = agent.policy.actor(obs)[2].argmax(-1)
    assert (member.predict(obs.numpy(), deterministic=True)[0] == expected.numpy()).all()
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\), got 3"):
        agent.member(3)


def test_stable_baselines_callbacks_and_statistics():
    agent = make("CartPole-v1")
    callback = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=8, verbose=0, warn=False)
    agent.learn(32 * 8 * 4, callback=callback)
    assert callback.best_mean_reward >= 8
    returns = [info["r"] for info in agent.ep_info_buffer]
    assert returns  # 32 near-random poles fall within 32 steps
    assert all(info["r"] == info["l"] for info in agent.ep_info_buffer)  # +1 a step


def test_gradient_norms_by_depth_are_logged():
    agent = make()
    agent.learn(32 * 8 * 8, log_interval=None)
    metrics = agent.metrics.take()
    depths = [metrics[f"train/action_grad_norm_{d}"] for d in ("first", "middle", "last")]
    assert depths[0] > depths[2] > 0  # early actions move all later states


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_envs": 0}, "n_envs must be an integer >= 1, got 0"),
        ({"horizon": 0}, "horizon must be an integer >= 1, got 0"),
        ({"actor_lambda": 0.0}, r"actor_lambda must be a number in \(0, 1\]"),
        ({"compile": "always"}, r"compile 'always'.*allowed: auto, never"),
        ({"actor_beta2": 1.0}, r"actor_beta2 must be a number in \[0, 1\), got 1.0"),
        ({"estimator": "reinforce"}, "needs a pathwise estimator"),
        ({"temperature": -1}, "temperature must be a finite number > 0, got -1"),
        ({"env": "Taxi-v4"}, r"cannot be differentiated. These can: .*gumbelrl/CartPole-v1"),
        ({"policy_kwargs": {"activation": "rleu"}}, "unknown activation 'rleu'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_callback_may_stop_in_the_middle_of_a_window():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 3 * 32

    agent = make()
    agent.learn(10_000, callback=Stop())
    assert agent.num_timesteps == 3 * 32
    assert torch.equal(agent._obs, agent.driver.observe())
    agent.learn(32 * 8 * 2, reset_num_timesteps=False)  # and learning may go on
    assert agent.num_timesteps >= 32 * 8 * 2


def test_callbacks_hear_of_every_step_and_its_episodes():
    class Look(BaseCallback):
        rewards, ends, heard = 0.0, 0, 0

        def _on_step(self):
            step = self.locals["step"]
            self.rewards += step.reward.sum().item()
            self.ends += int(self.locals["dones"].__array__().sum())
            self.heard += 1
            assert torch.equal(self.locals["obs"], step.obs)
            return True

    agent, look = make("CartPole-v1"), Look()
    agent.learn(32 * 8 * 6, callback=look, log_interval=None)
    assert look.heard == 8 * 6
    assert look.rewards == 32 * 8 * 6
    assert look.ends == len(agent.ep_info_buffer) > 0
    # Every reward is in an episode that ended or in one that runs.
    ended = sum(info["r"] for info in agent.ep_info_buffer)
    assert ended + agent.episodes.returns.sum().item() == look.rewards


def test_stops_after_a_number_of_episodes():
    agent = make("CartPole-v1")
    agent.learn(100_000, callback=StopTrainingOnMaxEpisodes(3))
    assert agent.num_timesteps < 32 * 200


def test_wrappers_that_would_be_left_out_are_refused():
    vec_env = make_vec_env("gumbelrl/CartPole-v1", 2, seed=0)
    assert make(VecMonitor(vec_env)).driver is not None
    with pytest.raises(ValueError, match="VecNormalize around it would be left out"):
        make(VecNormalize(vec_env))
    single = gymnasium.make("gumbelrl/CartPole-v1", max_episode_steps=50)
    assert make(single).driver.max_episode_steps == 50
    with pytest.raises(ValueError, match="TransformReward around it would be left out"):
        make(gymnasium.wrappers.TransformReward(single, lambda r: -r))
    wrapped = make_vec_env(
        "gumbelrl/CartPole-v1", 2, wrappers="gymnasium.wrappers.FlattenObservation"
    )
    with pytest.raises(ValueError, match="steps the tensors of gumbelrl/CartPole-v1 itself"):
        make(wrapped)


def test_a_state_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"nan.*environment"):
        make("known/Breaking-v0").learn(1_000)


def test_without_a_look_at_every_step_the_first_fault_is_told_later():
    agent = make("known/Breaking-v0")
    agent.driver.validate = False  # as on a GPU, where a look would wait for it
    with pytest.raises(ValueError, match=r"environment \(0, 0\), step 4 since training began"):
        agent.learn(1_000)


def test_fault_watch_keeps_the_first_place():
    watch = FaultWatch(torch.device("cpu"))
    obs, rewards = torch.zeros(4, 2, 3, 5), torch.zeros(4, 2, 3)
    watch.look(obs, rewards)
    watch.tell()
    obs[1, 1, 2, 4] = float("inf")
    rewards[2, 0, 0] = float("nan")
    watch.look(obs, rewards)
    watch.look(torch.full_like(obs, float("nan")), rewards)
    with pytest.raises(ValueError, match=r"environment \(1, 2\), step 6 since training began"):
        watch.tell()


def test_members_of_loaded_agents_and_own_policies(tmp_path):
    class Own(ShacPolicy):
        pass

    agent = GumbelSHAC(Own, "known/Walk-v0", n_seeds=2, seed=0, device="cpu", n_envs=4)
    agent.save(tmp_path / "agent")
    loaded = GumbelSHAC.load(tmp_path / "agent", policy=Own, device="cpu")
    member = loaded.member(1)
    assert isinstance(member.policy, Own)
    assert torch.equal(member.policy.actor[0].weight[0], agent.policy.actor[0].weight[1])
    with pytest.raises(ValueError, match="env must be an environment or its id, got None"):
        GumbelSHAC("MlpPolicy", None)
