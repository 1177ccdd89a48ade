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
    torch.testing.assert_close(batch.discounts, 0.99 * ~ended)


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
    buffer.save(tmp_path / "replay")
    other = TensorReplayBuffer(8, OBS, ACT, n_envs=2)
    other.load(tmp_path / "replay")
    for each in (buffer, other):
        fill(each, 1, first=6)  # the ring goes on at the same place
    for (name, mine), (_, theirs) in zip(buffer._tensors(), other._tensors(), strict=True):
        assert torch.equal(mine, theirs), name
    with pytest.raises(ValueError, match="does not fit"):
        TensorReplayBuffer(8, OBS, ACT, n_envs=4).load(tmp_path / "replay")


def test_bad_sizes():
    with pytest.raises(ValueError, match="buffer_size must be >= n_envs = 4, got 3"):
        TensorReplayBuffer(3, OBS, ACT, n_envs=4)
    with pytest.raises(ValueError, match="empty"):
        TensorReplayBuffer(8, OBS, ACT).sample(1)


def episode_buffer(rows=12, steps=10):
    """Rewards 1, 2, 3, …; row 3 terminates, row 6 is truncated; observation t -> t + 0.5."""
    buffer = TensorReplayBuffer(rows, OBS, ACT, n_envs=1)
    for t in range(steps):
        obs = np.full((1, 2), t, np.float32)
        done = np.array([t in (3, 6)])
        infos = [{"TimeLimit.truncated": t == 6}]
        buffer.add(obs, obs + 0.5, np.array([1]), np.array([t + 1.0]), done, infos)
    return buffer


def by_time(batch):
    """Of each sampled t: (reward, time of the last step, discount)."""
    rows = zip(
        batch.obs[:, 0].int().tolist(),
        batch.rewards.tolist(),
        batch.next_obs[:, 0].tolist(),
        batch.discounts.tolist(),
        strict=True,
    )
    return {t: (round(r, 4), n - 0.5, round(d, 4)) for t, r, n, d in rows}


def test_several_steps_stop_at_ends_and_at_the_newest_row():
    found = by_time(episode_buffer().sample(400, gamma=0.5, n_steps=3))
    assert found == {
        0: (1 + 2 / 2 + 3 / 4, 2, 0.125),
        1: (2 + 3 / 2 + 4 / 4, 3, 0.0),  # reaches the terminal state: no value there
        2: (3 + 4 / 2, 3, 0.0),
        3: (4.0, 3, 0.0),
        4: (5 + 6 / 2 + 7 / 4, 6, 0.125),  # truncated: the value of the final observation
        5: (6 + 7 / 2, 6, 0.25),
        6: (7.0, 6, 0.5),
        7: (8 + 9 / 2 + 10 / 4, 9, 0.125),
        8: (9 + 10 / 2, 9, 0.25),  # no newer row yet: shorter
        9: (10.0, 9, 0.5),
    }


def test_several_steps_do_not_cross_the_seam_of_the_ring():
    buffer = episode_buffer(rows=4, steps=10)  # rows hold t = 8, 9, 6, 7
    found = by_time(buffer.sample(400, gamma=0.5, n_steps=3))
    assert found[7] == (8 + 9 / 2 + 10 / 4, 9, 0.125)
    assert found[9] == (10.0, 9, 0.5)  # the next row in memory is the oldest in time


def test_a_full_ring_goes_on_in_a_larger_one_in_the_order_of_time(tmp_path):
    episode_buffer(rows=4, steps=10).save(tmp_path / "replay")  # rows hold t = 8, 9, 6, 7
    larger = TensorReplayBuffer(6, OBS, ACT, n_envs=1)
    larger.load(tmp_path / "replay")
    assert len(larger) == 4
    assert by_time(larger.sample(400, gamma=0.5, n_steps=3)) == {
        6: (7.0, 6, 0.5),
        7: (8 + 9 / 2 + 10 / 4, 9, 0.125),
        8: (9 + 10 / 2, 9, 0.25),
        9: (10.0, 9, 0.5),
    }


def test_a_cut_ends_windows_where_environments_were_started_anew():
    buffer = episode_buffer(steps=2)
    buffer.cut()
    obs = np.full((1, 2), 2, np.float32)
    buffer.add(obs, obs + 0.5, np.array([1]), np.array([3.0]), np.array([False]), [{}])
    found = by_time(buffer.sample(200, gamma=0.5, n_steps=3))
    assert found[0] == (1 + 2 / 2, 1, 0.25)
    assert found[1] == (2.0, 1, 0.5)


def test_dictionaries_are_stored_part_by_part(tmp_path):
    space = spaces.Dict({"a": OBS, "b": spaces.Discrete(4)})
    buffer = TensorReplayBuffer(6, space, ACT, n_envs=2)
    for t in range(4):
        obs = {"a": np.full((2, 2), t, np.float32), "b": np.array([t % 4, 0])}
        after = {"a": np.full((2, 2), t + 1, np.float32), "b": np.array([(t + 1) % 4, 1])}
        buffer.add(obs, after, np.ones(2), np.ones(2), np.zeros(2, bool), [{}, {}])
    batch = buffer.sample(50)
    torch.testing.assert_close(batch.next_obs["a"], batch.obs["a"] + 1)
    assert batch.obs["b"].dtype == torch.int64
    buffer.save(tmp_path / "replay")
    other = TensorReplayBuffer(6, space, ACT, n_envs=2)
    other.load(tmp_path / "replay")
    assert torch.equal(other.obs["a"], buffer.obs["a"])
