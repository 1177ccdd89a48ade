"""Checkpoints: complete or absent, the last few and the best."""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gumbelrl.tracking.error_text import brief
from gumbelrl.tracking.run_folder import RunFolderError, sync_folder
from stable_baselines3.common.callbacks import BaseCallback

Save = Callable[[Path], None]
"""`save(folder)` fills an empty folder with everything a checkpoint holds."""

_NAME = re.compile(r"(step|best)-(\d+)")
_TEMPORARY = ".unfinished-"

_log = logging.getLogger(__name__)


class CheckpointCallback(BaseCallback):
    """Writes `step-000012000/` every `checkpoint_every` env steps and keeps the last `keep`.

    A checkpoint is made between a gradient update and the next rollout (`on_rollout_start`), where
    no collected step is half used, so it falls on the first such moment at or after each multiple,
    and once more when training ends. It is filled under a temporary name, synced and renamed; older
    ones go only after that. A write that fails leaves what stands, prints one warning, and
    training goes on.

    Args:
        checkpoint_every: env steps between checkpoints, >= 1.
        folder: where checkpoints live; made when the first is written.
        save: `save(path)`, which fills the folder it is given.
        keep: how many of the last to keep, >= 1.
        after_scheduled: called after each scheduled checkpoint, whether or not its write succeeded,
            and where a run goes on from an earlier segment: an undisturbed run and a resumed one
            then do the same at the same steps.

    Attributes:
        failures: how many writes failed.

    Raises:
        ValueError: `checkpoint_every` or `keep` below 1.
    """

    failures: int

    def __init__(
        self,
        checkpoint_every: int,
        folder: str | Path,
        save: Save,
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
        self.keep = keep
        self.after_scheduled = after_scheduled
        self.failures = 0
        self._number = 0
        self._saved_at = -1

    def save_now(self, env_steps: int) -> Path | None:
        """Write `step-<env_steps>` now; None if it failed."""
        return self._write("step", env_steps, keep=self.keep)

    def save_best(self, env_steps: int, evaluation: object = None) -> Path | None:
        """Write `best-<env_steps>` in place of the earlier best; None if it failed.

        Fits `EvaluationCallback(save_best=...)`.
        """
        return self._write("best", env_steps, keep=1)

    def _write(self, kind: str, env_steps: int, keep: int) -> Path | None:
        try:
            path = write_checkpoint(self.folder, f"{kind}-{env_steps:09d}", self.save)
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
        for old in _complete(self.folder, kind):
            # Those beyond this one were written before the run went back to an earlier step.
            if checkpoint_steps(old) > env_steps:
                shutil.rmtree(old, ignore_errors=True)
        for old in _complete(self.folder, kind)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _on_training_start(self) -> None:
        self._number = self.model.num_timesteps // self.checkpoint_every
        self._saved_at = self.model.num_timesteps  # what begins here is known already
        if self.folder.is_dir():
            for litter in self.folder.glob(f"{_TEMPORARY}*"):  # of a run that was killed
                shutil.rmtree(litter, ignore_errors=True)
        if self.model.num_timesteps > 0 and self.after_scheduled is not None:
            self.after_scheduled()

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


def write_checkpoint(folder: str | Path, name: str, save: Save) -> Path:
    """Let `save` fill a folder, then give it its name: it is complete or absent.

    A checkpoint of the same name is replaced; it stands until the new one is complete.

    Args:
        folder: where checkpoints live; made if missing.
        name: `step-000012000` or `best-000012000`.
        save: `save(path)`, which fills the empty folder `path`.

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
        save(temporary)
        _sync_tree(temporary)
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
    """The scheduled checkpoint before this one, or None."""
    path = Path(path)
    if _NAME.fullmatch(path.name) is None:
        return None
    earlier = [
        p for p in _complete(path.parent, "step") if checkpoint_steps(p) < checkpoint_steps(path)
    ]
    return earlier[-1] if earlier else None


@contextmanager
def reading(file: Path, remedy: str) -> Iterator[None]:
    """Whatever goes wrong while a file of a checkpoint is read, in one line with what to do.

    Raises:
        RunFolderError: from any exception within.
    """
    try:
        yield
    except Exception as error:  # a damaged file can raise anything
        raise RunFolderError(f"cannot go on from {file} ({brief(error)}); {remedy}") from error


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


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(root) / name, "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(root)
