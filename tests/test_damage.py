"""Five hundred damages to checkpoints: every one is found, named, and answered with a way on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_lines import QUICK, SAC
from gumbelrl import evaluate, train
from gumbelrl.agents import replay_files
from gumbelrl.tracking import RunFolderError, latest, open_checkpoint, previous

FAST = [*QUICK, "total_steps=300", "checkpoint_every=100", "eval_every=150", "eval_episodes=1"]
FAST += ["checkpoint_keep=3", "log_every=50"]
RUNS = {
    "gumbel_sac": [*SAC, "agent.learning_starts=280", "env.normalize_obs=true"],
    "reinforce": ["agent=reinforce", "agent.rollout=steps", "agent.n_steps=50"],
    "gumbel_shac": ["agent=gumbel_shac", "agent.n_envs=2", "agent.horizon=5"],
}
DAMAGES = 500


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One run per agent, with checkpoints near 100, 200 and 300 steps and the best."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(replay_files, "CHUNK_BYTES", 2500)  # a replay of several chunks, most linked
        for name, arguments in RUNS.items():
            folder = tmp_path_factory.mktemp(name) / "run"
            assert train.main([*FAST, f"run_dir={folder}", *arguments]) == 0
            folders[name] = folder / "checkpoints"
    return folders


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


class Damage:
    """One damage to files of checkpoints, which can be undone."""

    def __init__(self, rng: np.random.Generator, target: Path, others: list[Path]) -> None:
        self.rng, self.target, self.others = rng, target, others
        self.before: dict[Path, bytes] = {}

    def write(self, path: Path, content: bytes) -> None:
        self.before[path] = path.read_bytes()
        if self.rng.random() < 0.5:
            path.unlink()  # else in place, and so in every checkpoint that shares the file
        path.write_bytes(content)

    def flip(self) -> None:
        content = bytearray(self.target.read_bytes())
        content[self.rng.integers(len(content))] ^= int(self.rng.integers(1, 256))
        self.write(self.target, bytes(content))

    def truncate(self) -> None:
        content = self.target.read_bytes()
        self.write(self.target, content[: self.rng.integers(1, len(content))])

    def empty(self) -> None:
        self.write(self.target, b"")

    def delete(self) -> None:
        self.before[self.target] = self.target.read_bytes()
        self.target.unlink()

    def swap(self) -> None:
        mine = self.target.read_bytes()
        other = self.rng.choice([p for p in self.others if p.read_bytes() != mine])  # type: ignore[arg-type]
        theirs = other.read_bytes()
        self.write(self.target, theirs)
        self.write(other, mine)

    def undo(self) -> None:
        for path, content in self.before.items():
            path.write_bytes(content)  # in place where it still stands, as the damage was


def test_every_damage_is_found_and_the_whole_checkpoint_before_is_offered(runs):
    rng = np.random.default_rng(7)
    kinds: list[Callable[[Damage], None]] = [
        Damage.flip,
        Damage.truncate,
        Damage.empty,
        Damage.delete,
        Damage.swap,
    ]
    pristine_of = {
        folder: {path: path.read_bytes() for path in files_of(folder)} for folder in runs.values()
    }
    offered = 0
    touched: set[str] = set()
    for number in range(DAMAGES):
        folder = runs[list(RUNS)[number % len(RUNS)]]
        *_, best, _, second, third = sorted(folder.iterdir())
        checkpoint = best if number % 7 == 0 else (second, third)[rng.integers(2)]
        pristine = pristine_of[folder]
        target = rng.choice(files_of(checkpoint))  # type: ignore[arg-type]
        others = [path for path in pristine if path != target]
        damage = Damage(rng, target, others)
        kinds[number // len(RUNS) % len(kinds)](damage)
        touched.add(target.suffix if target.parent.name == "replay" else target.name)

        said = f"damage {number}: {target}"
        for replay in (True, False):
            if not replay and target.parent.name == "replay":
                continue
            with pytest.raises(RunFolderError) as error:
                open_checkpoint(checkpoint, replay=replay)
            message = str(error.value)
            named = [path for path in damage.before if path.is_relative_to(checkpoint)]
            assert any(f"cannot go on from {path} (it " in message for path in named), said
            assert "\n" not in message
        whole = previous(checkpoint)
        if whole is None:
            assert "there is no earlier checkpoint that is whole" in message, said
        else:
            offered += 1
            assert message.endswith(f"to go on from {whole.name}, remove {checkpoint}"), said
            assert all(
                path.read_bytes() == content
                for path, content in pristine.items()
                if path.is_relative_to(whole)
            ), said
        damage.undo()
    assert touched >= {"agent.zip", "checkpoint.json", "state.json", "normalization.safetensors"}
    assert touched >= {".json", ".safetensors"}  # of the replay
    assert offered > DAMAGES * 0.6
    for folder, pristine in pristine_of.items():
        assert {path: path.read_bytes() for path in files_of(folder)} == pristine
        assert [open_checkpoint(p).path for p in folder.iterdir()] == list(folder.iterdir())


@pytest.mark.parametrize("agent", RUNS)
def test_the_command_lines_refuse_what_is_damaged(runs, agent, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs[agent].parent, folder)
    *_, before, last = sorted((folder / "checkpoints").iterdir())
    path = last / "agent.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    metrics = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main([f"resume={folder}", "total_steps=400"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path} (it is not what was written" in error
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert evaluate.main([f"run={folder}", "episodes=1"]) == 2
    assert f"take checkpoint={before.name}" in capsys.readouterr().err
    assert evaluate.main([f"run={folder}", "episodes=1", f"checkpoint={before.name}"]) == 0


def test_a_checkpoint_under_another_name_is_found(runs, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(runs["gumbel_sac"], folder)
    os.replace(folder / "step-000000300", folder / "step-000000700")
    with pytest.raises(RunFolderError, match=r"that of step-0+300\); to go on from step-0+200,"):
        open_checkpoint(folder / "step-000000700")
    shutil.copytree(folder / "step-000000200", folder / "mine")
    assert open_checkpoint(folder / "mine").holds("agent.zip")


def test_files_that_nobody_wrote_do_not_matter(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["gumbel_shac"].parent, folder)
    last = latest(folder / "checkpoints")
    (last / "normalization.safetensors").write_bytes(b"planted")
    (last / "replay").mkdir()
    (last / "replay" / "replay.json").write_bytes(b"planted")
    checkpoint = open_checkpoint(last)
    assert checkpoint.holds("agent.zip")
    assert not checkpoint.holds("replay")
    with (
        pytest.raises(RunFolderError, match=r"normalization\.safetensors \(it is missing\)"),
        checkpoint.reading("normalization.safetensors"),
    ):
        pass
    assert train.main([f"resume={folder}", "total_steps=320"]) == 0
