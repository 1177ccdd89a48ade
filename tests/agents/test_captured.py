"""The update as a CUDA graph: the same numbers as operation by operation, whatever moves."""

import gc
import weakref

import gymnasium
import known_tasks
import numpy as np
import pytest
import torch
from gumbelrl.agents import GumbelSAC, GumbelSHAC
from gumbelrl.agents.captured import WARM_UP, CapturedPair, CapturedStep, HeldInputs
from gumbelrl.agents.replay import TensorReplayBuffer
from gumbelrl.envs import make_vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor

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
    "held random actions": {
        "uniform_mix": {"schedule": "linear", "start": 0.9, "end": 0.1},
        "uniform_hold": 4.0,
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
    assert made.exploration._captured._graph is not None


@needs_gpu
def test_masks_that_come_late_are_captured_anew():
    """And a masked action is never taken, in the graph either."""
    made = agent("auto", 300, env="Taxi-v4", device="cuda")
    buffer = made.replay_buffer
    taken = torch.nn.functional.one_hot(buffer.actions[: buffer.pos, :, 0], 6).bool()
    assert not (taken & ~buffer.masks[: buffer.pos]).any()
    assert made._captured._graph is not None
    assert made.exploration._captured._graph is not None


@needs_gpu
@pytest.mark.parametrize("env", ["CartPole-v1", "gumbelrl/CartPole-v1", "Taxi-v4"])
def test_captured_and_eager_acting_are_the_same(env):
    """Observations from the host, from the device, and with masks."""
    captured, eager = (agent(way, 150, env=env, device="cuda") for way in ("auto", "never"))
    assert captured.exploration._captured._graph is not None
    assert eager.exploration._captured is None
    for (name, a), (_, b) in zip(
        captured.replay_buffer._tensors(), eager.replay_buffer._tensors(), strict=True
    ):
        assert torch.equal(a, b), name


class InPlaceStep(CapturedStep):
    """Works as a recording does, on the tensors it saw first, but eagerly."""

    def run(self, key, work):
        if key != self._key:
            self._key, self._work = key, work
        return self._work()


@pytest.mark.parametrize("env", ["CartPole-v1", "Taxi-v4"])
def test_acting_on_held_inputs_is_the_same(env):
    plain, in_place = (agent("auto", device="cpu", env=env) for _ in range(2))
    step = in_place.exploration._captured = InPlaceStep([])
    works = set()
    for made in (plain, in_place):
        made.learn(120, log_interval=None)
        works.add(getattr(step, "_work", None))
    assert len(works) == 2  # it was used
    for (name, a), (_, b) in zip(
        plain.replay_buffer._tensors(), in_place.replay_buffer._tensors(), strict=True
    ):
        assert torch.equal(a, b), name


def test_inputs_of_other_shapes_are_another_version():
    inputs = HeldInputs()
    one = inputs.take("obs", {"a": torch.zeros(2), "b": torch.zeros(3)})
    first = inputs.version
    two = inputs.take("obs", {"b": torch.full((3,), 2.0), "a": torch.ones(2)})
    assert one["a"] is two["a"]
    assert (two["a"].tolist(), two["b"].tolist()) == ([1, 1], [2, 2, 2])
    assert inputs.take("mask", None) is None
    assert inputs.version == first
    assert inputs.take("obs", {"a": torch.zeros(4), "b": torch.zeros(3)})["a"].shape == (4,)
    assert inputs.version != first


class WaitingExtractor(FlattenExtractor):
    """Looks at the observations on the host."""

    def forward(self, observations):
        assert float(observations.abs().max()) < 1e9
        return super().forward(observations)


@needs_gpu
def test_policies_that_wait_for_the_gpu_run_eagerly_and_are_named(caplog):
    kwargs = {"features_extractor_class": WaitingExtractor}
    ways = [agent(way, 120, device="cuda", policy_kwargs=kwargs) for way in ("auto", "never")]
    for made in ways:
        assert made._captured is None
        assert made.exploration._captured is None
    for a, b in zip(*map(everything, ways), strict=True):
        assert torch.equal(a, b)
    acting, update = (record.getMessage() for record in caplog.records)
    for message, what in ((acting, "acting runs"), (update, "updates run")):
        assert what in message
        assert "test_captured.py:" in message


@needs_gpu
def test_rows_reach_the_gpu_as_they_were_given():
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    buffers = [
        TensorReplayBuffer(20, space, gymnasium.spaces.Discrete(4), device, n_envs=2)
        for device in ("cpu", "cuda")
    ]
    rng = np.random.default_rng(0)
    for number in range(14):  # beyond the ring's end
        arrays = [rng.standard_normal((2, 3), dtype=np.float32) for _ in range(2)]
        arrays += [rng.integers(4, size=(2, 1)), rng.standard_normal(2)]
        flags = {name: rng.random(2) < 0.3 for name in ("terminated", "ended")}
        if number > 2:  # masks come late
            flags |= {name: rng.random((2, 4)) < 0.5 for name in ("masks", "next_masks")}
        for buffer in buffers:
            given, named = arrays, flags
            if number % 3 == 0:  # as tensors, where they are
                given = [torch.as_tensor(x, device=buffer.device) for x in arrays]
                named = {k: torch.as_tensor(v, device=buffer.device) for k, v in flags.items()}
            buffer.add_step(*given, **named)
    for (name, a), (_, b) in zip(*(buffer._tensors() for buffer in buffers), strict=True):
        assert torch.equal(a, b.cpu()), name
    assert buffers[1]._size_and_pos.tolist() == [20, 4]


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


def shac(compile="auto", steps=0, env="CartPole-v1", device="cuda", **settings):
    """GumbelSHAC likewise; a window is 32 steps."""
    settings = {"n_envs": 4, "horizon": 8, "policy_kwargs": {"net_arch": [16]}} | settings
    made = GumbelSHAC("MlpPolicy", env, seed=0, device=device, compile=compile, **settings)
    return made.learn(steps, log_interval=None) if steps else made


def all_of_shac(made):
    """Weights, moments, figures, and where the environments stand."""
    moments = {
        f"{optimizer}/{parameter}/{name}": value
        for optimizer, of in made._optimizers().items()
        for parameter, state in of.state_dict()["state"].items()
        for name, value in state.items()
    }
    place = {f"place/{i}": tensor for i, tensor in enumerate(made._place.now())}
    everything = made.policy.state_dict() | moments | made.metrics.tensors() | place
    return {name: tensor.detach().cpu() for name, tensor in sorted(everything.items())}


def different(a, b):
    """Names of what is not the same to the bit in two agents."""
    a, b = all_of_shac(a), all_of_shac(b)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


class InPlace(CapturedPair):
    """Works as a recording does, from tensors that stay where they are, but eagerly."""

    def first(self, key, work):
        return work()

    def second(self, work):
        return work()


def test_windows_in_place_are_the_same_as_others():
    plain, in_place = (shac(device="cpu") for _ in range(2))
    in_place._captured = InPlace([])
    for made in (plain, in_place):
        made.learn(20 * 32, log_interval=None)
    assert [i["r"] for i in plain.ep_info_buffer] == [i["r"] for i in in_place.ep_info_buffer]
    held = in_place.driver.state, in_place._obs, in_place.episodes.returns
    assert not different(plain, in_place)
    # Environments that were put elsewhere go on from there.
    for made in (plain, in_place):
        made.driver.load_state_dict(shac(device="cpu").driver.state_dict())
        made._obs = made.driver.observe()
        made.learn(2 * 32, reset_num_timesteps=False, log_interval=None)
    assert held[0] is in_place.driver.state
    assert held[1] is in_place._obs
    assert held[2] is in_place.episodes.returns
    assert not different(plain, in_place)


def test_no_graph_outlives_its_window():
    """Its nodes would tie the next window to another CUDA stream than the one that records."""

    class Sentinel:
        def __call__(self, gradient):
            pass

    made, alive = shac(device="cpu"), []
    rsample = made.estimator.rsample

    def watched(*args):
        one_hot, sentinel = rsample(*args), Sentinel()
        one_hot.register_hook(sentinel)
        alive.append(weakref.ref(sentinel))
        return one_hot

    made.estimator.rsample = watched
    gc.disable()
    try:
        made.learn(9 * 32, log_interval=None)
        assert len(alive) == 9 * 8
        assert not any(reference() for reference in alive)
    finally:
        gc.enable()


SHAC_CASES = {
    "default": {},
    "every schedule": {
        "learning_rate": {"schedule": "linear", "start": 3e-3, "end": 1e-4},
        "value_learning_rate": {"schedule": "linear", "start": 1e-2, "end": 1e-3},
        "temperature": {"schedule": "exponential", "start": 2.0, "end": 0.5},
    },
    "seeds and batches": {"n_seeds": 3, "value_batches": 2, "ent_coef": 0.01},
    "gumbel_rao": {"estimator": {"name": "gumbel_rao", "k": 4}, "actor_lambda": 0.9},
    "many factors": {"env": "gumbelrl/CoupledControl-v0", "estimator": "reinmax"},
    "noise": {"env": "gumbelrl/Inventory-v0"},
}


@needs_gpu
@pytest.mark.parametrize("name", SHAC_CASES)
def test_captured_and_eager_windows_are_the_same(name):
    """To the bit, after 40 windows, with episodes that end in them."""
    captured, eager = (shac(way, 40 * 32, **SHAC_CASES[name]) for way in ("auto", "never"))
    assert captured._captured._first._graph is not None
    assert captured._captured._second._graph is not None
    assert eager._captured is None
    assert list(captured.ep_info_buffer) == list(eager.ep_info_buffer)
    assert not different(captured, eager)


@needs_gpu
def test_callbacks_see_the_steps_of_a_captured_window():
    class Look(BaseCallback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def _on_step(self):
            step = self.locals["step"]
            self.seen.append(torch.cat([step.obs.flatten(), step.reward.flatten()]).tolist())
            return self.num_timesteps < self.stop_at

    looks = []
    for way in ("auto", "never"):
        look = Look()
        look.stop_at = 8 * 32 + 12  # in the middle of a window
        made = shac(way).learn(20 * 32, callback=look, log_interval=None)
        look.stop_at = 10**9
        made.learn(20 * 32, callback=look, reset_num_timesteps=False, log_interval=None)
        looks.append(look.seen)
    assert looks[0] == looks[1]


@needs_gpu
@pytest.mark.parametrize("way", ["auto", "never"])
@pytest.mark.parametrize("env", ["CartPole-v1", "gumbelrl/CoupledControl-v0"])
def test_a_loaded_shac_goes_on_as_the_saved_one(way, env, tmp_path):
    made = shac(way, 12 * 32, env=env)
    made.save(tmp_path / "agent")
    loaded = GumbelSHAC.load(tmp_path / "agent", env=env, device="cuda", force_reset=False)
    for one in (made, loaded):
        one.learn(8 * 32, reset_num_timesteps=False, log_interval=None)
    assert not different(made, loaded)


class Waiting(known_tasks.Walk):
    """Looks at its state on the host, as a user's own might."""

    def transition(self, state, one_hot, noise):
        if float(state.detach().sum()) > 1e9:
            raise RuntimeError
        return super().transition(state, one_hot, noise)


@needs_gpu
def test_environments_that_wait_for_the_gpu_run_eagerly_and_are_named(caplog):
    ways = []
    for way in ("auto", "never"):
        made = shac(way, env="known/Walk-v0")
        made.driver.env = Waiting()
        made.learn(12 * 32, log_interval=None)
        assert made._captured is None
        ways.append(made)
    assert not different(*ways)
    (record,) = caplog.records
    assert "Waiting waits for the GPU at" in record.getMessage()
    assert "test_captured.py:" in record.getMessage()
