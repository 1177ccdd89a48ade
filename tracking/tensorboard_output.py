"""TensorBoard's event files, with env steps as the x-axis."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import TensorBoardOutputFormat


class TensorBoardWriter(TensorBoardOutputFormat):
    """Stable-Baselines3's log output for TensorBoard, for runs that go on.

    Args:
        folder: where the event files lie, those of earlier segments among them.
        first_step: what those hold at this many env steps and beyond is taken back, as the rows of
            `metrics.jsonl` are; 0 for a run that begins, or begins anew.
    """

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        self._is_closed = False
