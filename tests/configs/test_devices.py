"""`device: auto`: what it takes, what it says, and where a run goes on."""

import re

import pytest
import torch
from command_lines import SAC, rows_without_times, run
from gumbelrl import train
from gumbelrl.agents import A2C, DQN, PPO, REINFORCE, GumbelSAC, GumbelSHAC
from gumbelrl.agents import SAC as ContinuousSAC
from gumbelrl.agents.captured import CapturedStep
from gumbelrl.configs import build, devices
from gumbelrl.configs.compose import ConfigError
from gumbelrl.configs.devices import faster_on_cpu, select_device, update_seconds, update_size
from gumbelrl.envs import make_vec_env
from gumbelrl.tracking import RunFolder


@pytest.mark.parametrize(("there", "taken"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, there, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert select_device("auto") == taken


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda") == "cuda"
    assert select_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="sees 2 CUDA devices: use device=auto or device=cpu"):
        select_device("cuda:2")
    with pytest.raises(ConfigError, match="device=tpu is unknown"):
        select_device("tpu")
    with pytest.raises(ConfigError, match=r"type 'resume=runs/a b' device=cpu$"):
        select_device("cuda:2", resumed="runs/a b")


def agent_of(cls, env="CartPole-v1", n_envs=1, **settings):
    return cls("MlpPolicy", make_vec_env(env, n_envs), device="cpu", **settings)


NET = {"policy_kwargs": {"net_arch": [32, 16]}}


@pytest.mark.parametrize(
    ("agent", "widths", "rows"),
    [
        (lambda: agent_of(GumbelSAC, batch_size=96, **NET), [4, 32, 16, 2], 96),
        (lambda: agent_of(DQN, batch_size=40, **NET), [4, 32, 16, 2], 40),
        (lambda: agent_of(PPO, n_steps=64, batch_size=32, **NET), [4, 32, 16], 32),
        (lambda: agent_of(A2C, n_envs=3, n_steps=5, **NET), [4, 32, 16], 15),
        (lambda: agent_of(ContinuousSAC, "Pendulum-v1", batch_size=9, **NET), [3, 32, 16, 1], 9),
        (lambda: agent_of(REINFORCE, rollout="steps", n_steps=30, **NET), [4, 32, 16, 2], 30),
        (lambda: agent_of(REINFORCE, **NET), [4, 32, 16, 2], devices.ROLLOUT_ROWS),
        (
            lambda: GumbelSHAC("MlpPolicy", "CartPole-v1", n_envs=8, horizon=4, device="cpu"),
            [4, 64, 64, 2],
            32,
        ),
    ],
)
def test_what_is_measured_has_the_size_of_an_update(agent, widths, rows):
    assert update_size(agent()) == (widths, rows)


def test_images_are_not_measured_by_a_perceptron():
    env = make_vec_env("known_envs:Identity-v0", 1, 0, kwargs={"form": "image"})
    agent = GumbelSAC("CnnPolicy", env, device="cpu", buffer_size=200)
    assert update_size(agent) is None
    assert faster_on_cpu(agent, "cuda", lambda *_: pytest.fail("measured")) is None


def times(**seconds):
    """A measurement that says so, and remembers what it was asked."""
    asked = []

    def measure(widths, rows, device):
        asked.append((list(widths), rows, device))
        return seconds[device]

    return measure, asked


def test_it_says_so_where_the_cpu_is_faster():
    agent = agent_of(GumbelSAC, batch_size=96, **NET)
    measure, asked = times(cuda=0.9e-3, cpu=0.3e-3)
    line = faster_on_cpu(agent, "cuda", measure)
    assert line is not None
    assert "\n" not in line
    for part in ("took cuda", "0.30 ms against 0.90 ms", "4-32-16-2", "96 rows", "device=cpu"):
        assert part in line
    assert asked == [([4, 32, 16, 2], 96, "cuda"), ([4, 32, 16, 2], 96, "cpu")]


def test_it_is_silent_where_the_gpu_is_faster_or_about_the_same():
    agent = agent_of(GumbelSAC)
    assert faster_on_cpu(agent, "cuda", times(cuda=1e-3, cpu=5e-3)[0]) is None
    assert faster_on_cpu(agent, "cuda", times(cuda=1e-3, cpu=0.97e-3)[0]) is None
    assert faster_on_cpu(agent, "cpu", lambda *_: pytest.fail("measured")) is None


def test_an_update_that_is_one_cuda_graph_is_not_measured_by_an_eager_one():
    agent = agent_of(GumbelSAC)
    agent._captured = CapturedStep([])
    assert faster_on_cpu(agent, "cuda", lambda *_: pytest.fail("measured")) is None


def test_measuring_takes_devices_and_leaves_random_streams_alone():
    before = torch.get_rng_state()
    seconds = [update_seconds([4, 64, 64, 2], 128, "cpu") for _ in range(2)]
    assert all(0 < value < 10 for value in seconds)
    assert torch.equal(torch.get_rng_state(), before)
    agent = agent_of(GumbelSAC)
    line = faster_on_cpu(agent, "cpu:0")  # a device by another name: cpu against cpu
    assert line is None or re.search(r"[\d.]+ ms against [\d.]+ ms", line)


@pytest.fixture
def with_a_gpu(monkeypatch):
    """A machine that seems to have CUDA; what is built there is built on the CPU."""
    built = build.build_agent
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(
            build, "build_agent", lambda node, env, seed, device: built(node, env, seed, "cpu")
        )
        patch.setattr(devices, "update_seconds", times(cuda=0.9e-3, cpu=0.3e-3)[0])
        yield patch


def test_a_run_says_it_stores_it_and_goes_on_elsewhere_by_name(tmp_path, capsys, with_a_gpu):
    code, folder = run(tmp_path, *SAC)
    assert code == 0
    assert capsys.readouterr().out.count("this machine's CPU is faster at this size") == 1
    assert RunFolder.open(folder).read_config()["device"] == "cuda"
    code, _ = run(tmp_path, *SAC, "device=cpu", name="by_name")
    assert code == 0
    assert "faster" not in capsys.readouterr().out
    assert rows_without_times(folder) == rows_without_times(tmp_path / "by_name")

    with_a_gpu.undo()
    if torch.cuda.is_available():
        pytest.skip("this machine has what the run needs")
    longer = [f"resume={folder}", "total_steps=700"]
    assert train.main(longer) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{folder} would go on with device=cuda, but this torch sees 0" in error
    typed = error.rpartition("type ")[2].split()
    assert train.main([*typed, "total_steps=700"]) == 0
    assert RunFolder.open(folder).read_config()["device"] == "cpu"
    assert train.main([f"resume={folder}", "total_steps=800"]) == 0
