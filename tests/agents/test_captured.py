"""The update as a CUDA graph: the same numbers as operation by operation, whatever moves."""

import pytest
import torch
from gumbelrl.agents import GumbelSAC
from gumbelrl.agents.captured import WARM_UP, CapturedStep
from gumbelrl.envs import make_vec_env

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def agent(compile, steps=0, env="CartPole-v1", **settings):
    """One that has learned for some steps, with small networks."""
    settings = {"learning_starts": 64, "batch_size": 32, "trust_every": 20} | settings
    settings["policy_kwargs"] = {"net_arch": [32, 32]} | settings.get("policy_kwargs", {})
    made = GumbelSAC("MlpPolicy", make_vec_env(env), seed=0, compile=compile, **settings)
    return made.learn(steps, log_interval=None) if steps else made


def everything(agent):
    """Weights, moments and figures."""
    parameters = [p for group in agent.optimizer.param_groups for p in group["params"]]
    states = [agent.optimizer.state[p] for p in parameters]
    moments = [s[name] for s in states for name in ("step", "exp_avg", "exp_avg_sq")]
    weights = list(agent.policy.state_dict().values())
    metrics = [value for _, value in sorted(agent.metrics.tensors().items())]
    return [t.detach().cpu() for t in (*weights, *moments, *metrics, agent.log_ent_coef)]


def test_on_the_cpu_nothing_is_captured():
    assert agent("auto", device="cpu")._captured is None


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"compile 'always'.*allowed: auto, never"):
        agent("always")


CASES = {
    "default": {},
    "three steps of reward": {"n_steps": 3},
    "every schedule": {
        "learning_rate": {"schedule": "linear", "start": 3e-3, "end": 1e-4},
        "temperature": {"schedule": "exponential", "start": 2.0, "end": 0.5},
        "forward_temperature": {"schedule": "linear", "start": 2.0, "end": 1.0},
        "uniform_mix": {"schedule": "linear", "start": 0.5, "end": 0.0},
    },
    "critic warm-up, fixed entropy": {"critic_warmup": 30, "ent_coef": 0.01},
    "action_in": {"policy_kwargs": {"critic": "action_in", "layer_norm": True}},
    "minimum": {"actor_objective": "min", "estimator": "reinmax"},
    "exact": {"estimator": "exact"},
    "gumbel_rao": {"estimator": {"name": "gumbel_rao", "k": 4}},
    "rloo": {"estimator": "rloo"},
    "four at once": {"train_freq": 1, "gradient_steps": 4},
}


@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_captured_and_eager_updates_are_the_same(name):
    """To the bit, after 120 updates, trust measurements (eager) among them."""
    captured, eager = (agent(way, 184, device="cuda", **CASES[name]) for way in ("auto", "never"))
    assert captured._captured._graph is not None
    assert eager._captured is None
    assert captured.num_timesteps == eager.num_timesteps
    for a, b in zip(everything(captured), everything(eager), strict=True):
        assert torch.equal(a, b)


@needs_gpu
@pytest.mark.parametrize("name", ["mixed", "rebar", "reinforce"])
def test_estimators_that_tune_themselves_run_eagerly(name):
    made = agent("auto", 100, device="cuda", estimator=name)
    assert made._captured is None


@needs_gpu
def test_masks_that_come_late_are_captured_anew():
    """And a masked action is never taken, in the graph either."""
    made = agent("auto", 300, env="Taxi-v4", device="cuda")
    buffer = made.replay_buffer
    taken = torch.nn.functional.one_hot(buffer.actions[: buffer.pos, :, 0], 6).bool()
    assert not (taken & ~buffer.masks[: buffer.pos]).any()
    assert made._captured._graph is not None


@needs_gpu
def test_a_loaded_agent_goes_on_as_the_saved_one(tmp_path):
    """Loading replaces tensors that the recording knew; it is made anew."""
    made = agent("auto", 150, device="cuda")
    made.save(tmp_path / "agent.zip")
    made.save_replay_buffer(tmp_path / "replay")
    loaded = GumbelSAC.load(tmp_path / "agent.zip", device="cuda")
    loaded.load_replay_buffer(tmp_path / "replay")
    for one in (made, loaded):
        one.set_env(make_vec_env("CartPole-v1"))
        one.train(20, 32)
    for a, b in zip(everything(made), everything(loaded), strict=True):
        assert torch.equal(a, b)
    on_cpu = GumbelSAC.load(tmp_path / "agent.zip", device="cpu")
    on_cpu.load_replay_buffer(tmp_path / "replay")
    on_cpu.set_env(make_vec_env("CartPole-v1"))
    on_cpu.train(5, 32)
    on_cpu.save(tmp_path / "cpu.zip")
    GumbelSAC.load(tmp_path / "cpu.zip", device="cuda")


@needs_gpu
def test_a_new_key_means_a_new_recording():
    x = torch.zeros(3, device="cuda")
    step = CapturedStep([])

    def add(amount):
        def work():
            x.add_(amount)
            return {"sum": x.sum()}

        return work

    for _ in range(WARM_UP + 3):
        returned = step.run("one", add(1.0))
    assert returned["sum"] == 3 * (WARM_UP + 3)
    for _ in range(WARM_UP + 2):
        returned = step.run("two", add(2.0))
    assert returned["sum"] == 3 * (WARM_UP + 3 + 2 * (WARM_UP + 2))
