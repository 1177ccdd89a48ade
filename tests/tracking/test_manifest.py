"""What a checkpoint says of itself, and what is believed."""

import json
import logging

import numpy as np
import pytest
from gumbelrl.tracking import CheckpointCallback, RunFolderError, end_table, open_checkpoint
from gumbelrl.tracking.checkpoints import write_checkpoint
from gumbelrl.tracking.manifest import FORMAT, MANIFEST, VERSION, file_digest, write_manifest
from gumbelrl.tracking.sealed_json import seal, unseal
from rich.console import Console
from stable_baselines3 import DQN


def save(path):
    (path / "replay").mkdir()
    (path / "replay" / "chunk").write_bytes(b"transitions")
    (path / "agent.zip").write_bytes(b"weights")
    (path / "state.json").write_text(json.dumps({"version": VERSION}))


def written(folder, steps=100):
    return write_checkpoint(folder, f"step-{steps:09d}", save, "GumbelSAC")


def test_every_byte_of_sealed_json_counts():
    raw = seal({"format": "x", "version": 2, "list": [1.5, None, "é"], "nested": {"b": 1, "a": 2}})
    assert unseal(raw, "x", 2)["nested"] == {"a": 2, "b": 1}
    rng = np.random.default_rng(0)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= int(rng.integers(1, 256))
        with pytest.raises(ValueError, match="it is damaged"):
            unseal(bytes(changed), "x", 2)
        with pytest.raises(ValueError, match=r"it is (damaged|empty)"):
            unseal(raw[:place], "x", 2)
    with pytest.raises(ValueError, match="it is a 'x' file, not 'y'"):
        unseal(raw, "y", 2)
    with pytest.raises(ValueError, match="version 2, and this gumbelrl reads up to 1: install"):
        unseal(raw, "x", 1)


@pytest.mark.parametrize("raw", [b"[1]", b"7", b'"a"', b"null", b"[" * 100_000, b"\xff", b"{}"])
def test_sealed_json_that_is_none(raw):
    with pytest.raises(ValueError, match="it is damaged"):
        unseal(raw, "x", 2)


def test_a_manifest_says_what_there_is(tmp_path):
    path = written(tmp_path)
    content = unseal((path / MANIFEST).read_bytes(), FORMAT, VERSION)
    assert (content["agent"], content["env_steps"], content["name"]) == (
        "GumbelSAC",
        100,
        "step-000000100",
    )
    assert content["gumbelrl"][0].isdigit()
    assert content["files"]["replay/chunk"] == {
        "size": 11,
        "sha256": file_digest(path / "replay" / "chunk"),
    }
    assert set(content["files"]) == {"replay/chunk", "agent.zip", "state.json"}


def test_a_digest_that_is_known_is_not_computed_again(tmp_path):
    def saving(path):
        save(path)
        return {"replay/chunk": "0" * 64}

    path = write_checkpoint(tmp_path, "step-000000100", saving)
    with pytest.raises(RunFolderError, match=r"replay/chunk \(it is not what was written"):
        open_checkpoint(path)
    assert open_checkpoint(path, replay=False).holds("replay")


def test_without_a_manifest(tmp_path, caplog):
    path, earlier = written(tmp_path, 200), written(tmp_path, 100)
    (path / MANIFEST).unlink()
    with pytest.raises(RunFolderError, match=rf"{MANIFEST} \(it is missing\); .*{earlier.name}"):
        open_checkpoint(path)
    (path / "state.json").write_text("{}")  # as those from before there were manifests
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(path)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"{path} carries no checksums"
    ]
    assert checkpoint.holds("agent.zip")
    assert not checkpoint.holds("normalization.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3, and this gumbelrl reads up to 2: install the gumbelrl that"),
        ({"format": "other"}, "it is a 'other' file"),
        ({"files": 3}, "it lists no files of a checkpoint"),
        ({"files": {"agent.zip": {}}}, "it lists no files of a checkpoint"),
        ({"name": "best-000000100"}, "it is that of best-000000100"),
    ],
)
def test_manifests_that_are_whole_and_of_no_use(tmp_path, change, message):
    path = written(tmp_path)
    content = unseal((path / MANIFEST).read_bytes(), FORMAT, VERSION)
    (path / MANIFEST).write_bytes(seal({**content, **change}))
    with pytest.raises(RunFolderError, match=message):
        open_checkpoint(path)


def test_what_writing_takes_is_told(tmp_path, envs):
    agent = DQN("MlpPolicy", envs(1, 0), learning_starts=1000, buffer_size=1000, seed=0)
    broken = False

    def saving(path):
        if broken:
            raise OSError(28, "No space left on device")
        save(path)

    keeper = CheckpointCallback(100, tmp_path, saving)
    keeper.init_callback(agent)
    agent._setup_learn(1)
    keeper.save_now(100)
    keeper.save_best(100)
    seconds = agent.logger.name_to_value["time/checkpoint_seconds"]
    assert seconds == pytest.approx(keeper.seconds) != 0
    broken = True
    keeper.save_now(200)
    totals = keeper.totals()
    size = sum(p.stat().st_size for p in (tmp_path / "step-000000100").rglob("*") if p.is_file())
    assert (totals["written"], totals["failed"], totals["last_bytes"]) == (2, 1, size)
    assert keeper.seconds > seconds

    table = end_table(
        {"checkpoints": {"written": 12, "failed": 1, "seconds": 0.84, "last_bytes": 23_000_000}},
        run_dir=tmp_path,
    )
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    row = "12 written, 0.84 s in all, 23.0 MB last, 1 FAILED: see the warning above"
    assert row in capture.get()


def test_a_file_more_than_was_listed_is_not_held(tmp_path):
    path = written(tmp_path)
    (path / "normalization.safetensors").write_bytes(b"planted")
    assert not open_checkpoint(path).holds("normalization.safetensors")
    (path / MANIFEST).unlink()
    write_manifest(path, path.name, 100, None, {})
    assert open_checkpoint(path).holds("normalization.safetensors")
