"""The replay: a ring, uniform, and only `terminated` counts as an end."""

import numpy as np
import pytest
import torch
from gumbelrl.agents.replay import TensorReplayBuffer
from gymnasium import spaces

OBS, ACT = spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(3, start=1)


def fill(buffer, steps, n_envs=2, first=0):
    for t in range(first, first + steps):
        obs = np.stack([np.array([t, i], np.float32) for i in range(n_envs)])
        done = np.arange(n_envs) == t % n_envs
        infos = [{"TimeLimit.truncated": t % 3 == 0} for _ in range(n_envs)]
        buffer.add(obs, obs + 0.5, np.full(n_envs, 1 + t % 3), np.full(n_envs, t), done, infos)


def test_ring_keeps_the_last_transitions_whole():
    buffer = TensorReplayBuffer(8, OBS, ACT, n_envs=2)
    fill(buffer, 7)
    assert len(buffer) == 8
    batch = buffer.sample(2_000, torch.Generator().manual_seed(0))
    assert sorted(set(batch.rewards.tolist())) == [3, 4, 5, 6]
    t, i = batch.obs[:, 0], batch.obs[:, 1]
    torch.testing.assert_close(batch.rewards, t)
    torch.testing.assert_close(batch.next_obs, batch.obs + 0.5)
    torch.testing.assert_close(batch.actions[:, 0], (t % 3).long())  # counted from 0
    ended = (t % 2 == i) & (t % 3 != 0)  # a truncated episode is not terminated
    torch.testing.assert_close(batch.terminated, ended.float())


def test_sampling_is_uniform():
    buffer = TensorReplayBuffer(10, OBS, ACT, n_envs=1)
    fill(buffer, 10, n_envs=1)
    rewards = buffer.sample(20_000, torch.Generator().manual_seed(0)).rewards.long()
    counts = torch.bincount(rewards, minlength=10)
    chi_square = ((counts - 2_000.0) ** 2 / 2_000).sum()
    assert chi_square < 27.9  # 9 degrees of freedom, false alarm 0.001, seed fixed


def test_save_and_load(tmp_path):
    buffer = TensorReplayBuffer(8, OBS, ACT, n_envs=2)
    fill(buffer, 6)
    buffer.save(tmp_path / "replay.safetensors")
    other = TensorReplayBuffer(8, OBS, ACT, n_envs=2)
    other.load(tmp_path / "replay.safetensors")
    for each in (buffer, other):
        fill(each, 1, first=6)  # the ring goes on at the same place
    for name in TensorReplayBuffer.FIELDS:
        torch.testing.assert_close(getattr(buffer, name), getattr(other, name))
    with pytest.raises(ValueError, match="does not fit"):
        TensorReplayBuffer(8, OBS, ACT, n_envs=4).load(tmp_path / "replay.safetensors")


def test_bad_sizes():
    with pytest.raises(ValueError, match="buffer_size must be >= n_envs = 4, got 3"):
        TensorReplayBuffer(3, OBS, ACT, n_envs=4)
    with pytest.raises(ValueError, match="empty"):
        TensorReplayBuffer(8, OBS, ACT).sample(1)
