"""Histograms and videos: what they show, and that training is the same without them."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from gumbelrl.agents import AGENTS
from gumbelrl.envs import make_vec_env
from gumbelrl.tracking.histograms import HistogramCallback
from gumbelrl.tracking.videos import CannotRender, record_episode

SMALL: dict[str, dict[str, Any]] = {
    "gumbel_sac": {"learning_starts": 20, "batch_size": 16},
    "gumbel_shac": {"n_envs": 2, "horizon": 5},
    "reinforce": {},
    "ppo": {"n_steps": 20, "batch_size": 20, "n_epochs": 1},
    "a2c": {},
    "dqn": {"learning_starts": 20, "batch_size": 16, "buffer_size": 300},
    "qr_dqn": {"learning_starts": 20, "batch_size": 16, "buffer_size": 300},
}
ENVS = {"gumbel_shac": "gumbelrl/CartPole-v1"}


def learn(name: str, env: str, log: Any, steps: int = 120) -> Any:
    agent = AGENTS[name](
        "MlpPolicy", make_vec_env(env, 2, seed=0), seed=0, device="cpu", **SMALL[name]
    )  # type: ignore[call-arg]
    callback = None if log is None else HistogramCallback(50, log)
    agent.learn(steps, callback=callback, log_interval=10**9)
    return agent


@pytest.mark.parametrize("name", SMALL)
def test_histograms_of_every_agent_leave_training_alone(name):
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    env = ENVS.get(name, "CartPole-v1")
    agent = learn(name, env, lambda histograms, step: seen.append((step, histograms)))
    alone = learn(name, env, None)
    for key, value in alone.policy.state_dict().items():
        assert torch.equal(agent.policy.state_dict()[key], value), key
    assert [step // 50 for step, _ in seen] == [1, 2]
    _, last = seen[-1]
    assert torch.isfinite(last["histograms/gradient_norm"]).all()
    if "dqn" in name:
        assert last["histograms/action_value"].numel() >= 2 * 20
        return
    probabilities = last["histograms/action_probability"].reshape(-1, 2)
    assert len(probabilities) >= (2 if name == "gumbel_shac" else 20)
    assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)), atol=1e-5)
    logits = last["histograms/logits"].reshape(-1, 2)
    assert torch.allclose(logits.softmax(1), probabilities, atol=1e-5)


def test_masked_actions_have_no_probability():
    seen: list[dict[str, torch.Tensor]] = []
    agent = AGENTS["reinforce"]("MlpPolicy", make_vec_env("Taxi-v4", 1, seed=0), seed=0, n_steps=30)  # type: ignore[call-arg]
    agent.learn(60, callback=HistogramCallback(50, lambda found, _: seen.append(found)))
    probabilities = seen[0]["histograms/action_probability"].reshape(-1, 6)
    assert (probabilities == 0).any()
    assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)), atol=1e-5)


def test_a_policy_that_cannot_be_looked_into_is_told_once(caplog):
    def fail(histograms: Any, step: int) -> None:
        raise RuntimeError("no such thing")

    learn("reinforce", "CartPole-v1", fail, steps=200)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "no such thing" in warning


class Left:
    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        return np.zeros(len(observation), int), None


def cartpole(n_envs: int, seed: int) -> Any:
    return make_vec_env("CartPole-v1", n_envs, seed, render_mode="rgb_array")


def test_a_video_has_one_frame_per_step(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    state = torch.get_rng_state()
    total, length = record_episode(Left(), cartpole, tmp_path / "videos" / "x.mp4", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert total == length
    assert 5 < length < 20
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "videos" / "x.mp4"))[0] == length
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["x.mp4"]


def test_an_environment_that_draws_nothing(tmp_path):
    def device_cartpole(n_envs: int, seed: int) -> Any:
        return make_vec_env("gumbelrl/CartPole-v1", n_envs, seed, render_mode="rgb_array")

    with pytest.raises(CannotRender, match="nothing is drawn"):
        record_episode(Left(), device_cartpole, tmp_path / "x.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []
