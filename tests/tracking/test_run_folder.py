import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from gumbelrl.tracking import RunFolder, RunFolderError, default_run_dir, write_atomically
from omegaconf import OmegaConf


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, broken):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["summary.json"]


def test_a_write_replaces_text_and_bytes(tmp_path):
    write_atomically(tmp_path / "a", "τ")
    assert (tmp_path / "a").read_bytes() == "τ".encode()
    write_atomically(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a"]


def test_a_failed_summary_says_what_to_do_and_keeps_the_old_one(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_summary({"env_steps": 1})

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match=r"No space left on device.*Free space"):
        folder.write_summary({"env_steps": 2})
    assert folder.read_summary() == {"env_steps": 1}


def test_config_and_summary_come_back_as_they_were(tmp_path):
    folder = RunFolder.create(tmp_path / "deep" / "run")
    config = {"seed": 3, "agent": {"_target_": "a.B", "lr": 3e-4, "nets": [64, 64], "x": None}}
    folder.write_config(OmegaConf.create({**config, "copy": "${seed}"}))
    assert RunFolder.open(folder.path).read_config() == {**config, "copy": 3}  # resolved
    folder.write_summary({"eval": {"return_mean": float("nan")}, "env_steps": 5})
    assert json.loads(folder.summary_path.read_text())["eval"] == {"return_mean": "NaN"}
    assert folder.read_summary()["env_steps"] == 5
    assert names(folder.path) == ["config.yaml", "summary.json"]  # no empty folders


def test_a_location_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot make the run folder .*file/run.*run_dir="):
        RunFolder.create(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        RunFolder.create(tmp_path / "file")


def test_a_full_disk_shows_itself_before_training(tmp_path, monkeypatch):
    def fail(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(RunFolderError, match="No space left on device; free space"):
        RunFolder.create(tmp_path / "run")


def test_a_used_folder_is_taken_only_to_resume(tmp_path):
    folder = RunFolder.create(tmp_path)  # empty: fine
    folder.write_config({"seed": 0})
    with pytest.raises(RunFolderError, match="not empty; give another run_dir, or resume="):
        RunFolder.create(tmp_path)
    assert RunFolder.create(tmp_path, resume=True).read_config() == {"seed": 0}


def test_what_is_not_a_run_folder_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"not a run folder: it holds no config\.yaml"):
        RunFolder.open(tmp_path)
    folder = RunFolder.create(tmp_path)
    folder.config_path.write_text("- a\n- b\n")
    with pytest.raises(RunFolderError, match="damaged"):
        folder.read_config()
    folder.summary_path.write_text('{"a": ')
    with pytest.raises(RunFolderError, match="damaged"):
        folder.read_summary()
    folder.summary_path.unlink()
    with pytest.raises(RunFolderError, match="has not ended"):
        folder.read_summary()


def test_reading_a_config_runs_nothing(tmp_path):
    folder = RunFolder.create(tmp_path)
    marker = tmp_path / "ran"
    folder.config_path.write_text(f"a: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(RunFolderError, match="damaged"):
        folder.read_config()
    assert not marker.exists()


def test_run_names_are_file_names_and_unique(tmp_path):
    now = datetime(2024, 2, 3, 4, 5, 6)
    first = default_run_dir(tmp_path, "gumbel_sac", "ALE/Pong-v5", 7, now)
    assert first == tmp_path / "ALE_Pong-v5-gumbel_sac-seed7-20240203-040506"
    first.mkdir()
    assert default_run_dir(tmp_path, "gumbel_sac", "ALE/Pong-v5", 7, now).name == f"{first.name}-2"
    assert default_run_dir(tmp_path, "a", "../../module:Env-v0", 0, now).parent == tmp_path


def test_a_run_is_written_by_one_at_a_time(tmp_path):
    folder = RunFolder.create(tmp_path)
    with (
        folder.locked(),
        pytest.raises(RunFolderError, match="another process is writing the run"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with folder.locked():  # free again
        pass


def test_a_damaged_config_is_one_line(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.config_path.write_text("seed: 0\nagent: [\n")
    with pytest.raises(RunFolderError, match=r"config\.yaml is damaged: .*line 3") as raised:
        folder.read_config()
    assert "\n" not in str(raised.value)
