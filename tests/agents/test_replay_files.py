"""A replay on disk: what did not change is not written again, and what changed is found."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from gumbelrl.agents import replay_files
from gumbelrl.agents.replay import TensorReplayBuffer
from gumbelrl.agents.shelf import DQN
from gymnasium import spaces
from safetensors.torch import save_file

OBS, ACT = spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(4)
ROW = 2 * (2 * 3 * 4 + 8 + 4 + 1 + 1)  # bytes of a row of two environments


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(replay_files, "CHUNK_BYTES", 10 * ROW + 5)  # ten rows


def new(rows=64, masks=False):
    buffer = TensorReplayBuffer(2 * rows, OBS, ACT, n_envs=2)
    return add(buffer, 0, masks=masks)


def add(buffer, steps, masks=False, seed=0):
    rng = np.random.default_rng(seed + buffer.pos)
    for _ in range(steps):
        if masks:
            each = torch.as_tensor(rng.random((2, 4)) < 0.9)
            buffer.step_masks = each, ~each
        obs = rng.normal(size=(2, 2, 3)).astype(np.float32)
        done = rng.random(2) < 0.2
        buffer.add(obs[0], obs[1], rng.integers(4, size=2), rng.normal(size=2), done, [{}, {}])
    return buffer


def inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def assert_same(one, other):
    assert (one.pos, one.full) == (other.pos, other.full)
    rows = one.rows if one.full else one.pos
    pairs = zip(one._tensors(), other._tensors(), strict=True)
    for (name, mine), (_, theirs) in pairs:
        assert torch.equal(mine[:rows], theirs[:rows]), name


def loaded(folder, rows=64):
    buffer = new(rows)
    buffer.load(folder)
    return buffer


def changed(buffer, tmp_path, change):
    """How many chunks the next save writes anew, of how many, after it is seen to be right."""
    buffer.save(tmp_path / "a")
    change(buffer)
    buffer.save(tmp_path / "b", earlier=tmp_path / "a")
    assert_same(buffer, loaded(tmp_path / "b", buffer.rows))
    a, b = inodes(tmp_path / "a"), inodes(tmp_path / "b")
    assert all(a[name] == b[name] for name in a.keys() & b.keys())
    return len(b.keys() - a.keys()), len(b)


def test_only_chunks_that_changed_are_written(tmp_path):
    buffer = add(new(), 35)
    assert changed(buffer, tmp_path, lambda buffer: None) == (0, 4)


def test_new_steps_write_their_chunks(tmp_path):
    assert changed(add(new(), 35), tmp_path, lambda buffer: add(buffer, 7)) == (2, 5)


def test_a_full_ring_writes_where_it_goes_on(tmp_path):
    buffer = add(new(), 64 + 18)
    assert changed(buffer, tmp_path, lambda buffer: add(buffer, 4)) == (2, 7)


def test_a_whole_lap_between_two_saves_is_seen(tmp_path):
    buffer = add(new(), 64)
    assert changed(buffer, tmp_path, lambda buffer: add(buffer, 64, seed=1)) == (7, 7)


@pytest.mark.parametrize("steps", [30, 64])
def test_a_cut_writes_the_chunk_that_it_touches(tmp_path, steps):
    buffer = add(new(), steps)
    buffer.ended[(buffer.pos - 1) % 64] = False
    assert changed(buffer, tmp_path, TensorReplayBuffer.cut)[0] == 1


def test_the_first_mask_writes_everything(tmp_path):
    new_chunks, chunks = changed(add(new(), 35), tmp_path, lambda buffer: add(buffer, 1, True))
    assert new_chunks == chunks > 4  # rows are larger, so chunks hold fewer


def test_a_load_in_between_is_seen(tmp_path):
    add(new(), 41, seed=5).save(tmp_path / "other")
    buffer = add(new(), 35)
    change = changed(buffer, tmp_path, lambda buffer: buffer.load(tmp_path / "other"))
    assert change == (5, 5)


def test_a_loaded_replay_links_what_it_was_loaded_from(tmp_path):
    add(new(), 35).save(tmp_path / "a")
    again = loaded(tmp_path / "a")
    again.save(tmp_path / "b", earlier=tmp_path / "a")
    assert inodes(tmp_path / "a") == inodes(tmp_path / "b")


def test_random_lives_of_a_replay_are_saved_right(tmp_path):
    """Whatever happens between saves, the incremental one holds what the buffer does."""
    rng = np.random.default_rng(3)
    buffer, earlier = new(40), None
    for number in range(60):
        action = rng.integers(4)
        if action == 0:
            buffer.cut(torch.as_tensor(rng.random(2) < 0.5))
        elif action == 1 and number > 30:
            add(buffer, int(rng.integers(1, 5)), masks=True)
        else:
            add(buffer, int(rng.integers(0, 50)))
        folder = tmp_path / str(number)
        digests = buffer.save(folder, earlier)
        assert set(digests) == set(inodes(folder))
        assert_same(buffer, loaded(folder, 40))
        earlier = folder


def test_without_links_chunks_are_written(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(95, "Operation not supported")

    buffer = add(new(), 35)
    buffer.save(tmp_path / "a")
    monkeypatch.setattr(os, "link", no_links)
    buffer.save(tmp_path / "b", earlier=tmp_path / "a")
    assert_same(buffer, loaded(tmp_path / "b"))
    assert not set(inodes(tmp_path / "a").values()) & set(inodes(tmp_path / "b").values())


@pytest.mark.parametrize("content", [b"", None], ids=["emptied", "deleted"])
def test_a_chunk_that_is_no_longer_there_is_not_linked(tmp_path, content):
    buffer = add(new(), 35)
    buffer.save(tmp_path / "a")
    victim = next((tmp_path / "a").glob("*.safetensors"))
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    buffer.save(tmp_path / "b", earlier=tmp_path / "a")
    assert_same(buffer, loaded(tmp_path / "b"))


def test_saving_to_one_path_replaces_what_it_held(tmp_path):
    buffer = add(new(), 35)
    for _ in range(3):
        add(buffer, 20)
        buffer.save(tmp_path / "replay")
    assert len(inodes(tmp_path / "replay")) == 7
    assert_same(buffer, loaded(tmp_path / "replay"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file, and a replay is a folder"):
        buffer.save(tmp_path / "file")


def test_a_failed_write_leaves_what_was_saved(tmp_path, monkeypatch):
    buffer = add(new(), 35)
    buffer.save(tmp_path / "replay")
    kept = loaded(tmp_path / "replay")
    add(buffer, 20)
    monkeypatch.setattr(replay_files, "write_atomically", disk_full)
    with pytest.raises(OSError, match="No space"):
        buffer.save(tmp_path / "replay")
    assert_same(kept, loaded(tmp_path / "replay"))


def disk_full(path, content):
    raise OSError(28, "No space left on device")


def test_single_files_of_older_versions_load(tmp_path):
    buffer = add(new(40), 55, masks=True)
    tensors = {name: tensor.clone() for name, tensor in buffer._tensors()}
    save_file(tensors, tmp_path / "old", metadata={"pos": "15", "full": "1"})
    assert_same(buffer, loaded(tmp_path / "old", 40))
    larger = loaded(tmp_path / "old", 50)
    assert (larger.pos, larger.full) == (40, False)
    assert torch.equal(larger.rewards[:40], buffer.rewards.roll(-15, 0))


def test_damage_is_found_wherever_it_is(tmp_path):
    """False alarms are impossible and so are misses, but for a collision of sha256."""
    rng = np.random.default_rng(11)
    add(new(), 35).save(tmp_path / "a")
    files = sorted((tmp_path / "a").iterdir())
    for number in range(120):
        path = files[number % len(files)]
        content = path.read_bytes()
        damaged = bytearray(content)
        if number % 3:
            damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        else:
            del damaged[rng.integers(len(content)) :]
        path.write_bytes(damaged)
        buffer = add(new(), 20)
        with pytest.raises(ValueError, match=path.name):
            buffer.load(tmp_path / "a")
        assert len(buffer) in (0, 40)  # empty, or as it was where nothing was begun
        path.write_bytes(content)
    files[0].unlink()
    with pytest.raises(ValueError, match=f"{files[0].name} is missing"):
        loaded(tmp_path / "a")


def test_what_does_not_fit_is_named_before_anything_is_read(tmp_path):
    buffer = add(new(), 35)
    buffer.save(tmp_path / "a")
    for wrong in (
        TensorReplayBuffer(40, OBS, ACT, n_envs=2),  # too small
        TensorReplayBuffer(128, spaces.Box(0, 1, (4,)), ACT, n_envs=2),
        TensorReplayBuffer(128, spaces.Box(0, 1, (3,), np.uint8), ACT, n_envs=2),
        TensorReplayBuffer(128, spaces.Dict({"x": OBS}), ACT, n_envs=2),
        TensorReplayBuffer(128, OBS, ACT),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            wrong.load(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no replay at"):
        buffer.load(tmp_path / "nothing")
    (tmp_path / "sb3.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"a pickle runs code when it is loaded: collect it anew"):
        buffer.load(tmp_path / "sb3.pkl")


def test_an_agent_of_the_shelf_links_what_is_the_same(tmp_path):
    def agent():
        settings = {"buffer_size": 200, "learning_starts": 10_000, "seed": 0, "device": "cpu"}
        return DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, **settings)

    dqn = agent()
    dqn.learn(100)
    dqn.save_replay_buffer(tmp_path / "a")
    dqn.learn(30, reset_num_timesteps=False)
    dqn.save_replay_buffer(tmp_path / "b", tmp_path / "a")
    a, b = inodes(tmp_path / "a"), inodes(tmp_path / "b")
    assert len(b) > len(a) > len(a.keys() & b.keys()) > 2
    assert all(a[name] == b[name] for name in a.keys() & b.keys())
    other = agent()
    other.load_replay_buffer(tmp_path / "b")
    rows = dqn.replay_buffer.pos
    assert other.replay_buffer.pos == rows >= 130
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        mine, theirs = (getattr(each.replay_buffer, name)[:rows] for each in (dqn, other))
        assert (mine == theirs).all()


MEMORY = """
import resource, sys, tempfile, threading, time
import numpy as np, torch
from gumbelrl.agents.replay import TensorReplayBuffer
from gymnasium import spaces

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def peak_of(work):
    peak, done = [resident()], threading.Event()
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())
    thread = threading.Thread(target=watch)
    thread.start()
    before = resident()
    work()
    done.set()
    thread.join()
    return max(peak[0], resident()) - before

def full():
    buffer = TensorReplayBuffer(1_000_000, spaces.Box(0, 1, (24,), np.float32), spaces.Discrete(4))
    for _, tensor in buffer._tensors():
        tensor.random_(0, 100 if tensor.dtype != torch.bool else 2)
    buffer.full = True
    return buffer

buffer = full()
size = sum(tensor.nbytes for _, tensor in buffer._tensors())
with tempfile.TemporaryDirectory() as folder:
    saving = peak_of(lambda: buffer.save(folder + "/replay"))
    loading = peak_of(lambda: buffer.load(folder + "/replay"))
print(size, saving, loading)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_rows_are_saved_and_loaded_in_the_memory_of_a_few_chunks():
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    size, saving, loading = map(int, ran.stdout.split())
    assert size > 200e6
    assert saving < 40e6
    assert loading < 40e6
