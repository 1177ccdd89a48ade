"""Code planted in a run folder: none of it runs unless the command line names it as trusted."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_lines import SAC, run
from gumbelrl import compare, evaluate, train
from gumbelrl.agents import agent_file, replay_files
from gumbelrl.tracking import latest, manifest
from gumbelrl.tracking.sealed_json import seal

MODULE = "planted_module"


class Bomb:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that normalises, so that a checkpoint has every kind of file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        settings = [*SAC, "env.normalize_obs=true", "total_steps=100", "agent.learning_starts=90"]
        code, folder = run(tmp_path_factory.mktemp("made"), *settings, "checkpoint_every=50")
    assert code == 0
    return folder


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that planted code makes; the module that makes it can be imported by its name."""
    path = tmp_path / "marker"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{MODULE}.py").write_text(
        f"""
from pathlib import Path
Path({str(path)!r}).touch()
import gymnasium
class Wrapper(gymnasium.Wrapper):
    pass
gymnasium.register("Planted-v0", "gymnasium.envs.classic_control:CartPoleEnv")
"""
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(modules)])
    yield path
    sys.modules.pop(MODULE, None)


def reseal(checkpoint: Path) -> None:
    """What whoever plants a file can do too: a manifest that fits."""
    (checkpoint / manifest.MANIFEST).unlink()
    steps = int(checkpoint.name.partition("-")[2])
    manifest.write_manifest(checkpoint, checkpoint.name, steps, "GumbelSAC", {})


def sb3_archive(checkpoint: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(checkpoint / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": pickled.hex()}}))
        for name in ("policy.pth", "pytorch_variables.pth", "policy.optimizer.pth"):
            archive.writestr(name, pickled)


def our_member(name: str) -> Callable[[Path, bytes], None]:
    def plant(checkpoint: Path, pickled: bytes) -> None:
        path = checkpoint / "agent.zip"
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        members[name] = pickled
        header = members["agent.json"]
        if name != "agent.json":  # a digest that fits
            plain = json.loads(header)
            plain.pop("sha256")
            plain["sha256"] = agent_file._digest(plain, pickled)
            members["agent.json"] = json.dumps(plain).encode()
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            for each, content in members.items():
                archive.writestr(each, content)
        path.write_bytes(whole.getvalue())

    return plant


def replay_chunk(checkpoint: Path, pickled: bytes) -> None:
    folder = checkpoint / "replay"
    index = json.loads((folder / replay_files.INDEX).read_bytes())
    index.pop("sha256")
    for old in index["chunks"]:
        (folder / old).unlink(missing_ok=True)
    name = f"{hashlib.sha256(pickled).hexdigest()}.safetensors"
    (folder / name).write_bytes(pickled)
    (folder / replay_files.INDEX).write_bytes(seal({**index, "chunks": [name]}))


def replay_of_old(checkpoint: Path, pickled: bytes) -> None:
    shutil.rmtree(checkpoint / "replay")
    (checkpoint / "replay.safetensors").write_bytes(pickled)


def replay_of_sb3(checkpoint: Path, pickled: bytes) -> None:
    shutil.rmtree(checkpoint / "replay")
    (checkpoint / "replay").write_bytes(pickled)


def file(name: str) -> Callable[[Path, bytes], None]:
    return lambda folder, pickled: (folder / name).write_bytes(pickled) and None


IN_A_CHECKPOINT: dict[str, Callable[[Path, bytes], None]] = {
    "agent.zip, as Stable-Baselines3's": sb3_archive,
    "agent.zip": file("agent.zip"),
    "agent.json": our_member("agent.json"),
    "tensors.safetensors": our_member("tensors.safetensors"),
    "a member more": our_member("policy.pth"),
    "replay chunk": replay_chunk,
    "replay.json": file("replay/replay.json"),
    "replay.safetensors": replay_of_old,
    "replay.pkl": replay_of_sb3,
    "normalization": file("normalization.safetensors"),
    "state.json": file("state.json"),
}
OF_THE_RUN = ["config.yaml", "metrics.jsonl", "summary.json"]


def command_lines(folder: Path) -> list[int]:
    return [
        train.main([f"resume={folder}", "total_steps=110"]),
        evaluate.main([f"run={folder}", "episodes=1"]),
    ]


def test_a_pickle_is_never_loaded(made, marker, tmp_path, capsys):
    pickled = pickle.dumps(Bomb(marker), protocol=2)
    pickle.loads(pickled)
    assert marker.exists()  # so it would be seen
    marker.unlink()
    runs = tmp_path / "runs"
    for number, (name, plant) in enumerate(IN_A_CHECKPOINT.items()):
        folder = runs / f"run-{number}"
        shutil.copytree(made, folder)
        last = latest(folder / "checkpoints")
        plant(last, pickled)
        reseal(last)
        capsys.readouterr()
        codes = command_lines(folder)
        error = capsys.readouterr().err
        assert codes[0] == 2, name
        assert "Traceback" not in error, name
        (last / manifest.MANIFEST).write_bytes(pickled)
        assert command_lines(folder) == [2, 2]
        assert not marker.exists(), name
    for name in OF_THE_RUN:
        folder = runs / name
        shutil.copytree(made, folder)
        (folder / name).write_bytes(pickled)
        command_lines(folder)
        assert not marker.exists(), name
    capsys.readouterr()
    compare.main([f"runs={runs}"])
    assert "Traceback" not in capsys.readouterr().err
    assert not marker.exists()


def planted(**env):
    def change(config):
        config["env"] = {**config["env"], **env}

    return change


def positional(config):
    config["env"].pop("id")
    config["env"]["_args_"] = [f"{MODULE}:Planted-v0"]


def a_class(group, path):
    def change(config):
        config[group]["_target_"] = path

    return change


def deep(config):
    config["agent"]["policy_kwargs"]["net_arch"] = {"_target_": "os.system", "command": "true"}


CONFIGURATIONS = {
    "agent": a_class("agent", f"{MODULE}.Wrapper"),
    "env": a_class("env", f"{MODULE}.Wrapper"),
    "tracking": a_class("tracking", f"{MODULE}.Wrapper"),
    "deep": deep,
    "module:Env": planted(id=f"{MODULE}:Planted-v0"),
    "positional": positional,
    "looked up": planted(id="${render_mode}", render_mode=f"{MODULE}:Planted-v0"),
    "wrapper": planted(wrappers=f"{MODULE}.Wrapper"),
    "wrappers": planted(wrappers=["gymnasium.wrappers.FlattenObservation", f"{MODULE}.Wrapper"]),
    "mapping": planted(wrappers=[{"wrapper": f"{MODULE}.Wrapper"}]),
    "wrapper looked up": planted(
        wrappers=["${kwargs}"], kwargs={"wrapper": f"{MODULE}.Wrapper", "sutton_barto_reward": True}
    ),
    "a function of ours": planted(
        wrappers=[{"wrapper": "gumbelrl.envs.make.make_env", "wrappers": [f"{MODULE}.Wrapper"]}]
    ),
}
TAGS = {
    "object/apply": "!!python/object/apply:pathlib.Path.touch [{}]",
    "object/new": "!!python/object/new:pathlib.PosixPath [[{}]]",
    "module": f"!!python/module:{MODULE} ''",
    "name": f"!!python/name:{MODULE}.Wrapper ''",
}


def test_a_configuration_imports_nothing(made, marker, tmp_path, capsys):
    folders = []
    for name, change in CONFIGURATIONS.items():
        folder = tmp_path / "runs" / name
        shutil.copytree(made, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        change(config)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        folders.append(folder)
    for name, tag in TAGS.items():
        folder = tmp_path / "runs" / name.replace("/", " ")
        shutil.copytree(made, folder)
        with open(folder / "config.yaml", "a") as config_file:
            config_file.write(f"planted: {tag.format(marker)}\n")
        folders.append(folder)
    for folder in folders:
        capsys.readouterr()
        assert command_lines(folder) == [2, 2], folder.name
        error = capsys.readouterr().err
        assert error.count("\n") == 2, folder.name
        assert "Traceback" not in error
        assert not marker.exists(), folder.name
        assert MODULE not in sys.modules, folder.name
    compare.main([f"runs={tmp_path / 'runs'}"])
    assert not marker.exists()
    assert MODULE not in sys.modules


@pytest.mark.parametrize("name", ["module:Env", "mapping"])
def test_what_the_command_line_names_as_trusted_is_imported(made, marker, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    CONFIGURATIONS[name](config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate.main([f"run={folder}", "episodes=1", f"trust=[{MODULE}]"]) == 0
    assert marker.exists()
    os.remove(marker)
