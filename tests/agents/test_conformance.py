"""GumbelSAC keeps the promises that Stable-Baselines3's users rely on."""

import subprocess
import sys
from importlib.util import find_spec

import gymnasium
import known_envs  # registers the ids
import numpy as np
import pytest
import torch
from gumbelrl.agents import PPO, REINFORCE, GumbelSAC
from gumbelrl.envs import make_vec_env
from gumbelrl.gumbel import ESTIMATORS
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

QUICK = {"learning_starts": 50, "batch_size": 32, "seed": 0, "device": "cpu"}
SMALL = {"policy_kwargs": {"net_arch": [32]}}


def identity(space="discrete", n_envs=1, form="vector"):
    return make_vec_env("Identity-v0", n_envs, 0, kwargs={"action_space": space, "form": form})


def share_right(agent, make_env):
    """Mean share of right actions of 10 episodes of 20 steps, in [0, 1]."""
    return evaluate_policy(agent, make_env(), 10)[0] / 20


FAMILY = ("st_gumbel", "straight_through", "exact", "rloo")  # one of each kind
CASES = [
    *(
        (space, "auto", name)
        for space in ("discrete", "multi_discrete", "multi_binary")
        for name in ESTIMATORS
    ),
    *((space, "multilinear", name) for space in known_envs.SPACES for name in FAMILY),
    *(("discrete_start", critic, name) for critic in ("heads", "action_in") for name in FAMILY),
]


@pytest.mark.parametrize(("space", "critic", "estimator"), CASES)
def test_identity_with_every_estimator(space, critic, estimator):
    agent = GumbelSAC(
        "MlpPolicy",
        identity(space, 8),
        estimator=estimator,
        gamma=0.0,
        ent_coef=0.02,
        learning_rate=5e-3,
        policy_kwargs={"net_arch": [32], "critic": critic},
        **QUICK,
    )
    agent.learn(8 * 500)
    assert share_right(agent, lambda: identity(space, 2)) > 0.9


def test_heads_are_for_one_factor():
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        GumbelSAC("MlpPolicy", identity("multi_binary"), policy_kwargs={"critic": "heads"})


@pytest.mark.parametrize(
    ("policy", "form"),
    [
        ("MlpPolicy", "discrete"),
        ("CnnPolicy", "image"),
        ("CnnPolicy", "grid"),
        ("MultiInputPolicy", "dict"),
    ],
)
@pytest.mark.parametrize("n_steps", [1, 2])
def test_observations_of_every_kind(policy, form, n_steps, tmp_path):
    agent = GumbelSAC(
        policy,
        identity("discrete", 4, form),
        gamma=0.0,
        n_steps=n_steps,
        ent_coef=0.02,
        learning_rate=2e-3,
        **QUICK,
        **SMALL,
    )
    agent.learn(4 * 700)
    assert share_right(agent, lambda: identity("discrete", 2, form)) > 0.9
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "replay")
    loaded = GumbelSAC.load(tmp_path / "agent", env=identity("discrete", 4, form), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    for each in (agent, loaded):
        each.train(gradient_steps=3, batch_size=16)
    for a, b in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_wrong_policy_for_the_observations():
    with pytest.raises(ValueError, match="use `MultiInputPolicy`"):
        GumbelSAC("MlpPolicy", identity(form="dict"))
    with pytest.raises(ValueError, match="'MultiInputPolicy' is for dictionaries"):
        GumbelSAC("MultiInputPolicy", identity())
    with pytest.raises(ValueError, match="images or grids of three axes"):
        GumbelSAC("CnnPolicy", identity())


class StopAt(BaseCallback):
    def __init__(self, env_steps):
        super().__init__()
        self.env_steps = env_steps

    def _on_step(self):
        return self.num_timesteps < self.env_steps


@pytest.mark.parametrize("id", ["CartPole-v1", "gumbelrl/CartPole-v1"])
def test_learning_on_after_a_callback_stopped_leaves_no_seam_in_the_replay(id):
    """A step that was stopped at is not stored; what follows it must not seem to follow its
    predecessor, for returns over several steps and for masks."""
    agent = GumbelSAC("MlpPolicy", make_vec_env(id, 2, 0), learning_starts=1_000, device="cpu")
    agent.learn(100, callback=StopAt(20))
    replay = agent.replay_buffer
    assert replay.pos == 9
    agent.learn(10, reset_num_timesteps=False)
    goes_on = (replay.next_obs[: replay.pos - 1] == replay.obs[1 : replay.pos]).all(-1)
    assert (goes_on | replay.ended[: replay.pos - 1]).all()
    assert replay.ended[8].all()


@pytest.mark.parametrize("cls", [GumbelSAC, REINFORCE, PPO])
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), "FlattenObservation"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), "FlattenObservation"),
        (spaces.Discrete(4, start=1), "must count from 0"),
        (spaces.Dict({"a": spaces.MultiDiscrete([2, 3], start=[0, 1])}), "must count from 0"),
        (spaces.Box(0.0, 1.0, ()), "ReshapeObservation"),
    ],
)
def test_observations_that_no_network_reads_are_refused_with_the_way_out(cls, space, message):
    env = gymnasium.wrappers.TransformObservation(gymnasium.make("CartPole-v1"), None, space)
    with pytest.raises(ValueError, match=message):
        cls("MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", env)


def test_set_env_goes_on_in_the_new_environment():
    agent = GumbelSAC("MlpPolicy", identity("discrete", 2), **QUICK, **SMALL)
    agent.learn(200)
    agent.set_env(identity("discrete", 2))
    agent.learn(200, reset_num_timesteps=False)
    assert agent.num_timesteps == 400
    with pytest.raises(ValueError, match="spaces do not match"):
        agent.set_env(identity("discrete_start", 2))


def test_callbacks_evaluate_stop_and_save(tmp_path):
    agent = GumbelSAC(
        "MlpPolicy", identity("discrete"), gamma=0.0, learning_rate=5e-3, **QUICK, **SMALL
    )
    stop = StopTrainingOnRewardThreshold(reward_threshold=19.5)
    evaluation = EvalCallback(
        identity("discrete"), callback_on_new_best=stop, eval_freq=100, warn=False, verbose=0
    )
    save = CheckpointCallback(100, str(tmp_path), "agent", save_replay_buffer=True)
    agent.learn(5_000, callback=[evaluation, save])
    assert agent.num_timesteps < 5_000
    loaded = GumbelSAC.load(tmp_path / "agent_100_steps", env=identity("discrete"))
    loaded.load_replay_buffer(tmp_path / "agent_replay_buffer_100_steps.pkl")
    assert loaded.num_timesteps == 100
    assert len(loaded.replay_buffer) == 99  # callbacks come before a step is stored


@pytest.mark.parametrize("n_envs", [1, 8])
@pytest.mark.parametrize("wrap", [VecNormalize, lambda env: VecFrameStack(env, 3)])
def test_vectorised_wrappers(wrap, n_envs):
    env = wrap(identity("multi_discrete", n_envs))
    agent = GumbelSAC(
        "MlpPolicy",
        env,
        gamma=0.0,
        ent_coef=0.02,
        learning_rate=5e-3,
        estimator="local_expectation",  # st_gumbel ends at .6 to .9 here, by the seed
        **QUICK,
        **SMALL,
    )
    agent.learn(1_500 * max(1, n_envs // 2))
    if isinstance(env, VecNormalize):
        env.training = env.norm_reward = False
    assert evaluate_policy(agent, env, 10)[0] / 20 > 0.85


def test_a_plain_vec_env_of_the_users():
    env = DummyVecEnv([lambda: known_envs.Identity("multi_binary")] * 2)
    agent = GumbelSAC("MlpPolicy", env, **QUICK, **SMALL)
    agent.learn(200)
    action, _ = agent.predict(env.reset())
    assert action.shape == (2, 3)


@pytest.mark.parametrize(("estimator", "limit"), [("exact", 20), ("local_expectation", 8)])
def test_too_much_to_enumerate_is_told_when_the_agent_is_made(estimator, limit):
    with pytest.raises(ValueError, match=f"the limit is {limit}; take"):
        GumbelSAC(
            "MlpPolicy",
            identity("multi_discrete"),  # 24 joint actions, 9 categories
            estimator={"name": estimator, "limit": limit},
            policy_kwargs={"critic": "action_in"},
        )


def test_uniform_mix_is_the_share_of_random_actions():
    """With one greedy action, the others are taken ε (K − 1)/K of the time, in training alone."""
    agent = GumbelSAC(
        "MlpPolicy", identity(), uniform_mix=0.4, learning_rate=1e-12, **{**QUICK, **SMALL}
    )
    with torch.no_grad():
        agent.policy.actor[-1].bias.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    agent.learn(3_050)
    taken = agent.replay_buffer.actions[50:3_050, 0, 0]
    share = (taken != 0).float().mean().item()
    assert abs(share - 0.3) < 0.028  # 3.3 standard errors, false alarm 0.001, seed fixed
    assert (agent.predict(np.random.default_rng(0).random((200, 4), np.float32))[0] == 0).all()


def test_critic_warmup_moves_the_critics_alone():
    agent = GumbelSAC("MlpPolicy", identity(), critic_warmup=10**6, **QUICK, **SMALL)
    before = [p.clone() for p in agent._actor.parameters]
    critics = [p.clone() for p in agent._critic.parameters]
    agent.learn(100)
    assert all(torch.equal(p, q) for p, q in zip(before, agent._actor.parameters, strict=True))
    assert agent.log_ent_coef == 0
    assert not any(
        torch.equal(p, q) for p, q in zip(critics, agent._critic.parameters, strict=True)
    )


def test_forward_temperature_flattens_the_policy_and_comes_back_on_load(tmp_path):
    schedule = {"schedule": "linear", "start": 4.0, "end": 2.0}
    agent = GumbelSAC("MlpPolicy", identity(), forward_temperature=schedule, **QUICK, **SMALL)
    assert agent.policy.forward_temperature == 4.0
    agent.learn(200)
    assert agent.policy.forward_temperature == pytest.approx(2.0, abs=0.02)
    obs = torch.rand(5, 4)
    logits = agent.policy.actor(obs) / agent.policy.forward_temperature
    torch.testing.assert_close(agent.policy.dist(obs).probs, logits.softmax(-1))
    agent.save(tmp_path / "agent")
    loaded = GumbelSAC.load(tmp_path / "agent")
    assert loaded.policy.forward_temperature == agent.policy.forward_temperature


def test_target_over_several_steps_by_hand():
    """y = r_0 + γ r_1 + γ² V: with γ = ½ and two-step episodes, Q(s_0) = 1 + ½, terminal after."""
    env = make_vec_env("OneState-v0", 1, kwargs={"truncate": False, "length": 2})
    agent = GumbelSAC(
        "MlpPolicy", env, n_steps=5, gamma=0.5, ent_coef=0.0, learning_rate=2e-3, **QUICK, **SMALL
    )
    agent.learn(1_000)
    # First and second steps look alike and are equally frequent: the mean of 1.5 and 1.
    table = agent.policy.critic.embed(torch.ones(1, 1))
    torch.testing.assert_close(table, torch.full_like(table, 1.25), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer >= 1, got 0"),
        ({"uniform_mix": 1.5}, r"uniform_mix must be .*\[0, 1\], got 1.5"),
        ({"forward_temperature": 0}, "forward_temperature must be .* > 0, got 0"),
        ({"reward_scale": 0}, r"reward_scale must be a number in \(0, inf\), got 0"),
        ({"critic_warmup": -1}, "critic_warmup must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GumbelSAC("MlpPolicy", identity(), **arguments)


def test_rl_zoo_trains_it(tmp_path):
    if find_spec("rl_zoo3") is None:  # not imported here: it patches Gymnasium's TimeLimit
        pytest.skip("rl_zoo3 is not installed")
    (tmp_path / "settings.yml").write_text(
        "CartPole-v1:\n  n_timesteps: 300\n  policy: MlpPolicy\n  learning_starts: 50\n"
    )
    script = (
        "import rl_zoo3, rl_zoo3.train\n"
        "from gumbelrl.agents import GumbelSAC\n"
        "rl_zoo3.ALGOS['gumbel_sac'] = GumbelSAC\n"
        "rl_zoo3.train.train()\n"
    )
    arguments = (
        "--algo gumbel_sac --env CartPole-v1 --conf-file settings.yml -f logs --eval-freq -1"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split(), "--device", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    saved = next((tmp_path / "logs").rglob("CartPole-v1.zip"))
    assert GumbelSAC.load(saved).num_timesteps >= 300


@pytest.mark.parametrize("entropy_reward", [True, False])
def test_entropy_in_targets_or_not(entropy_reward):
    """One state for ever, two equal actions: Q = 1 + γ (Q + α log 2), or 1 + γ Q without it."""
    env = make_vec_env("OneState-v0", 1, kwargs={"truncate": True})
    agent = GumbelSAC(
        "MlpPolicy",
        env,
        gamma=0.5,
        ent_coef=0.5,
        entropy_reward=entropy_reward,
        polyak=0.1,
        learning_rate=3e-3,
        **QUICK,
        **SMALL,
    )
    agent.learn(900)
    expected = 2 * (1 + 0.25 * np.log(2)) if entropy_reward else 2.0
    table = agent.policy.critic.embed(torch.ones(1, 1))
    torch.testing.assert_close(table, torch.full_like(table, expected), rtol=0.03, atol=0)
