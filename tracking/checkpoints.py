"""Checkpoints: complete or absent, the last few and the best, checked before they are used."""

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from gumbelrl.tracking.manifest import (
    MANIFEST,
    Checkpoint,
    files_in,
    read_checkpoint,
    write_manifest,
)
from gumbelrl.tracking.run_folder import RunFolderError, sync_folder, sync_tree
from stable_baselines3.common.callbacks import BaseCallback

Save = Callable[[Path], Mapping[str, str] | None]
"""`save(folder)` fills an empty folder with everything a checkpoint holds. It may return the sha256
of files by their path within it, where it knows them already."""

_NAME = re.compile(r"(step|best)-(\d+)")
_TEMPORARY = ".unfinished-"

_log = logging.getLogger(__name__)


class CheckpointCallback(BaseCallback):
    """Writes `step-000012000/` every `checkpoint_every` env steps and keeps the last `keep`.

    A checkpoint is made between a gradient update and the next rollout (`on_rollout_start`), where
    no collected step is half used, so it falls on the first such moment at or after each multiple,
    and once more when training ends. It is filled under a temporary name, synced and renamed; older
    ones go only after that. A write that fails leaves what stands, prints one warning, and
    training goes on. What writing takes is in the metrics, `time/checkpoint_seconds` since the last
    row, and in `totals()`.

    Args:
        checkpoint_every: env steps between checkpoints, >= 1.
        folder: where checkpoints live; made when the first is written.
        save: `save(path)`, which fills the folder it is given.
        save_weights: likewise for the best, which only evaluates; None stores there what `save`
            does.
        keep: how many of the last to keep, >= 1.
        after_scheduled: called after each scheduled checkpoint, whether or not its write succeeded.

    Attributes:
        written: how many were written, the best ones among them.
        failures: how many writes failed.
        seconds: wall time of all writes.
        last_bytes: size of the last one of a schedule; chunks that it shares with the one before
            count.

    Raises:
        ValueError: `checkpoint_every` or `keep` below 1.
    """

    def __init__(
        self,
        checkpoint_every: int,
        folder: str | Path,
        save: Save,
        save_weights: Save | None = None,
        keep: int = 2,
        after_scheduled: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be >= 1 env step, got {checkpoint_every}")
        if keep < 1:
            raise ValueError(f"keep must be >= 1 checkpoint, got {keep}")
        self.checkpoint_every = checkpoint_every
        self.folder = Path(folder)
        self.save = save
        self.save_weights = save_weights or save
        self.keep = keep
        self.after_scheduled = after_scheduled
        self.written = 0
        self.failures = 0
        self.seconds = 0.0
        self.last_bytes = 0
        self._number = 0
        self._saved_at = -1

    def save_now(self, env_steps: int) -> Path | None:
        """Write `step-<env_steps>` now; None if it failed."""
        path = self._write("step", env_steps, self.save, keep=self.keep)
        if path is not None:
            self.last_bytes = sum(file.stat().st_size for file in files_in(path))
        return path

    def save_best(self, env_steps: int, evaluation: object = None) -> Path | None:
        """Write `best-<env_steps>` in place of the earlier best; None if it failed.

        Fits `EvaluationCallback(save_best=...)`.
        """
        return self._write("best", env_steps, self.save_weights, keep=1)

    def totals(self) -> dict[str, Any]:
        """What was written and what it took, for `summary.json`."""
        return {
            "written": self.written,
            "failed": self.failures,
            "seconds": round(self.seconds, 3),
            "last_bytes": self.last_bytes,
        }

    def _write(self, kind: str, env_steps: int, save: Save, keep: int) -> Path | None:
        model = getattr(self, "model", None)  # there is one once training has begun
        agent = None if model is None else type(model).__name__
        began = time.perf_counter()
        try:
            path = write_checkpoint(self.folder, f"{kind}-{env_steps:09d}", save, agent)
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                kept = latest(self.folder)
                _log.warning(
                    "cannot write the checkpoint at %d env steps in %s (%s: %s). "
                    "Training goes on; %s.",
                    env_steps,
                    self.folder,
                    type(error).__name__,
                    error,
                    f"the last good one is {kept}" if kept else "there is none yet",
                )
            return None
        finally:
            self._count_seconds(time.perf_counter() - began)
        self.written += 1
        for old in _complete(self.folder, kind):
            # Those beyond this one were written before the run went back to an earlier step.
            if checkpoint_steps(old) > env_steps:
                shutil.rmtree(old, ignore_errors=True)
        for old in _complete(self.folder, kind)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _count_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        if hasattr(self, "model"):
            key = "time/checkpoint_seconds"
            self.logger.record(key, self.logger.name_to_value.get(key, 0.0) + seconds)

    def _on_training_start(self) -> None:
        self._number = self.model.num_timesteps // self.checkpoint_every
        self._saved_at = self.model.num_timesteps  # what begins here is known already
        if self.folder.is_dir():
            for litter in self.folder.glob(f"{_TEMPORARY}*"):  # of a run that was killed
                shutil.rmtree(litter, ignore_errors=True)

    def _on_rollout_start(self) -> None:
        env_steps = self.model.num_timesteps
        number = env_steps // self.checkpoint_every
        if number > self._number:
            self._number = number
            self._saved_at = env_steps
            self.save_now(env_steps)
            if self.after_scheduled is not None:
                self.after_scheduled()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps != self._saved_at:
            self._saved_at = self.model.num_timesteps
            self.save_now(self.model.num_timesteps)


def write_checkpoint(folder: str | Path, name: str, save: Save, agent: str | None = None) -> Path:
    """Let `save` fill a folder, add its manifest, give it its name: it is complete or absent.

    A checkpoint of the same name is replaced; it stands until the new one is complete.

    Args:
        folder: where checkpoints live; made if missing.
        name: `step-000012000` or `best-000012000`.
        save: `save(path)`, which fills the empty folder `path`.
        agent: the class of the agent in it, for the manifest.

    Returns:
        The complete checkpoint.

    Raises:
        OSError: the disk refused. Whatever `save` raises is passed on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    temporary = folder / f"{_TEMPORARY}{name}-{token}"
    replaced = folder / f"{_TEMPORARY}replaced-{name}-{token}"
    path = folder / name
    try:
        temporary.mkdir()
        known = save(temporary)
        write_manifest(temporary, name, checkpoint_steps(name), agent, known or {})
        sync_tree(temporary)
        if path.exists():  # a folder cannot be renamed onto one that holds something
            os.replace(path, replaced)
        try:
            os.replace(temporary, path)
        except BaseException:
            if replaced.exists():
                os.replace(replaced, path)
            raise
    except BaseException:  # Ctrl-C too must leave no half checkpoint
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def latest(folder: str | Path) -> Path | None:
    """The complete checkpoint with the most env steps in `checkpoints/`, or None."""
    found = _complete(folder, "step")
    return found[-1] if found else None


def best(folder: str | Path) -> Path | None:
    """The best checkpoint in `checkpoints/`, or None."""
    found = _complete(folder, "best")
    return found[-1] if found else None


def previous(path: str | Path) -> Path | None:
    """The scheduled checkpoint before this one that is whole, or None."""
    path = Path(path)
    if _NAME.fullmatch(path.name) is None:
        return None
    for earlier in reversed(_complete(path.parent, "step")):
        if checkpoint_steps(earlier) < checkpoint_steps(path):
            with suppress(RunFolderError):
                return read_checkpoint(earlier, earlier.name, str).path
    return None


def open_checkpoint(
    path: str | Path,
    remedy: Callable[[Path], str] | None = None,
    *,
    replay: bool = True,
) -> Checkpoint:
    """A checkpoint whose files have been checked against its manifest, before any is used.

    Args:
        path: its folder.
        remedy: says what to do where it is damaged; None: what to do to go on with the run.
        replay: check the replay too, which is large; whoever only evaluates does not read it.

    Raises:
        RunFolderError: a file is missing or not what was written, or a later version wrote it.
    """
    path = Path(path)
    name = path.name if _NAME.fullmatch(path.name) else None  # else a copy, with a name of its own
    checkpoint = read_checkpoint(path, name, partial(remedy or _go_on_without, path), replay)
    if checkpoint.files is None:
        _log.warning(
            "%s carries no checksums (it has no %s, as those written before there were any): "
            "damage in it can go unnoticed",
            path,
            MANIFEST,
        )
    return checkpoint


def _go_on_without(checkpoint: Path) -> str:
    earlier = previous(checkpoint)
    if earlier is None:
        return "there is no earlier checkpoint that is whole: start a new run"
    return f"to go on from {earlier.name}, remove {checkpoint}"


def checkpoint_steps(path: str | Path) -> int:
    """Env steps that a checkpoint's name stands for.

    Raises:
        ValueError: not the name of a checkpoint.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(
            f"{path} is not a checkpoint; its name would be like step-000012000 or best-000012000"
        )
    return int(match[2])


def _complete(folder: str | Path, kind: str) -> list[Path]:
    """Checkpoints of one kind, fewest env steps first (by number: names may differ in width)."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((path for path in named if path.name.startswith(kind)), key=checkpoint_steps)
