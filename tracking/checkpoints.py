"""Checkpoints: complete or absent, the last few and the best."""

from collections.abc import Callable
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

Save = Callable[[Path], None]
"""`save(folder)` fills an empty folder with everything a checkpoint holds."""


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

    Attributes:
        failures: how many writes failed.
    """

    failures: int

    def __init__(
        self, checkpoint_every: int, folder: str | Path, save: Save, keep: int = 2
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def save_now(self, env_steps: int) -> Path | None:
        """Write `step-<env_steps>` now; None if it failed."""
        raise NotImplementedError

    def save_best(self, env_steps: int, evaluation: object = None) -> Path | None:
        """Write `best-<env_steps>` in place of the earlier best; None if it failed.

        Fits `EvaluationCallback(save_best=...)`.
        """
        raise NotImplementedError

    def _on_step(self) -> bool:
        return True


def latest(folder: str | Path) -> Path | None:
    """The complete checkpoint with the most env steps in `checkpoints/`, or None."""
    raise NotImplementedError


def best(folder: str | Path) -> Path | None:
    """The best checkpoint in `checkpoints/`, or None."""
    raise NotImplementedError


def checkpoint_steps(path: str | Path) -> int:
    """Env steps that a checkpoint's name stands for.

    Raises:
        ValueError: not the name of a checkpoint.
    """
    raise NotImplementedError
