"""Agent files: spaces as data, and nothing in a damaged file that is used."""

import json
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from gumbelrl.agents import GumbelSAC
from gumbelrl.agents.agent_file import _digest, read_agent_file
from gumbelrl.agents.storage import decode_space, encode_space
from gymnasium import spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.float32([1.1, np.inf]), (2,)),
        spaces.Box(np.float64([[0.1]]), np.float64([[1e300]]), dtype=np.float64),
        spaces.Box(0, 255, (3, 2), np.uint8),
        spaces.Box(np.zeros((2, 2), bool), np.array([[True, False], [True, True]]), dtype=bool),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5], start=[1, 0]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((3,)),
        spaces.MultiBinary((2, 3)),
    ],
)
def test_a_space_comes_back_as_it_was(space):
    assert decode_space(encode_space(space)) == space


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained agent's file, and one of the same network at another moment."""
    folder = tmp_path_factory.mktemp("saved")
    agent = GumbelSAC(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=8,
        batch_size=8,
        policy_kwargs={"net_arch": [4]},
        seed=0,
        device="cpu",
    )
    for name in ("first.zip", "second.zip"):
        agent.learn(20, reset_num_timesteps=False)
        agent.save(folder / name)
    return folder


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_no_flipped_byte_changes_what_is_read(saved, tmp_path):
    """Bytes that nobody reads, such as a member's date, may change; nothing else does."""
    header, tensors = read_agent_file(saved / "first.zip")
    whole = (saved / "first.zip").read_bytes()
    rng = np.random.default_rng(5)
    path, found = tmp_path / "agent.zip", 0
    for number in range(400):
        content = bytearray(whole)
        # Half of them in the zip's own records, which stand at the end.
        low = len(whole) - 250 if number % 2 else 0
        content[rng.integers(low, len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            again, values = read_agent_file(path)
        except ValueError:
            found += 1
        else:
            assert again == header
            assert values.keys() == tensors.keys()
            assert all(torch.equal(values[name], tensors[name]) for name in tensors)
    assert found > 250
    for length in rng.integers(len(whole), size=50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"agent\.zip is damaged or not a gumbelrl-agent file"):
            read_agent_file(path)


@pytest.mark.parametrize("name", ["agent.json", "tensors.safetensors"])
def test_parts_of_two_files_do_not_make_one(saved, tmp_path, name):
    mixed = members_of(saved / "first.zip") | {name: members_of(saved / "second.zip")[name]}
    path = write_members(tmp_path / "agent.zip", mixed)
    with pytest.raises(ValueError, match="two parts are not what was written together"):
        GumbelSAC.load(path)


def as_version(saved, path, version, change=None):
    """The file as that version would have written it, `change` of header and tensors made."""
    members = members_of(saved / "first.zip")
    header = json.loads(members["agent.json"]) | {"version": version}
    tensors = safetensors.torch.load(members["tensors.safetensors"])
    header.pop("sha256")
    if change is not None:
        change(header, tensors)
    content = safetensors.torch.save(tensors)
    if version > 1:
        header["sha256"] = _digest(header, content)
    return write_members(path, {"agent.json": json.dumps(header), "tensors.safetensors": content})


def test_versions(saved, tmp_path):
    agent = GumbelSAC.load(as_version(saved, tmp_path / "old.zip", 1))
    now = GumbelSAC.load(saved / "first.zip")
    for mine, theirs in zip(agent.policy.parameters(), now.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for version in (3, 99):
        path = as_version(saved, tmp_path / "later.zip", version)
        with pytest.raises(ValueError, match=f"version {version}, and .* up to 2: install the"):
            GumbelSAC.load(path)
    members = members_of(saved / "first.zip")
    header = json.loads(members["agent.json"])
    header.pop("sha256")
    path = write_members(tmp_path / "bare.zip", members | {"agent.json": json.dumps(header)})
    with pytest.raises(ValueError, match="damaged"):
        GumbelSAC.load(path)


def shorter(name):
    return lambda header, tensors: tensors.update({name: tensors[name][:-1].clone()})


def as_double(name):
    return lambda header, tensors: tensors.update({name: tensors[name].double()})


def without(name):
    return lambda header, tensors: tensors.pop(name)


def counting(header, tensors):
    header["counters"]["learn"] = 0


def misplaced(header, tensors):
    header["action_space"] = {"kind": "Discrete"}


def lacking(header, tensors):
    del header["counters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter("policy/actor.0.weight"), r"policy/actor.0.weight is torch.float32 \(3, 4\)"),
        (as_double("policy/actor.0.weight"), "is torch.float64"),
        (without("policy/actor.0.weight"), "holds no policy/actor.0.weight"),
        (without("extra/log_ent_coef"), "holds no extra/log_ent_coef"),
        (shorter("optimizer/all/0/exp_avg"), "optimiser does not fit"),
        (counting, "counts what this agent does not: learn"),
        (misplaced, "its spaces cannot be read"),
        (lacking, "agent.json lacks counters"),
    ],
)
def test_names_shapes_and_dtypes_are_checked_before_use(saved, tmp_path, change, message):
    path = as_version(saved, tmp_path / "agent.zip", 2, change)
    with pytest.raises(ValueError, match=message):
        GumbelSAC.load(path)


def test_a_failed_save_leaves_the_file_that_stood_there(saved, tmp_path, monkeypatch):
    agent = GumbelSAC.load(saved / "first.zip")
    agent.save(tmp_path / "agent.zip")
    before = (tmp_path / "agent.zip").read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    agent.num_timesteps += 1
    with pytest.raises(OSError, match="No space"):
        agent.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]
