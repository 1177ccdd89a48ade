"""How a run is tracked: the `tracking` group of a configuration."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gumbelrl.tracking.error_text import first_line
from gumbelrl.tracking.wandb_mode import check_mode


@dataclass(frozen=True)
class TrackingSettings:
    """Which trackers stand behind `metrics.jsonl`, and what they may cost.

    Args:
        mode: of Weights & Biases: "auto", "online", "offline" or "disabled"; see `resolve_mode`.
        project: W&B project; None takes WANDB_PROJECT, else "gumbelrl".
        entity: user or team; None takes WANDB_ENTITY, else the account's default.
        group: name that runs of one comparison share; None takes the run folder's name, so that
            the segments of one resumed run share it.
        job_type: kind of run, to filter on.
        name: display name; None takes the run folder's name.
        notes: what the run is about, shown beside it.
        tags: labels, to filter on.
        tensorboard: write TensorBoard's event files to `tensorboard/`.
        csv: write `metrics.csv`.
        writers: log outputs of the user's own, each `{_target_: module.Class, **arguments}` of a
            Stable-Baselines3 `KVWriter`.
        histograms_every: rows of training metrics between histograms of action probabilities,
            logits and gradient norms (W&B and TensorBoard), >= 0; 0 draws none.
        videos_every: evaluations between videos of an episode in `videos/`, >= 0; 0 makes none.
        artifacts: hand the best and the last checkpoint to W&B when the run ends.
        code: hand the package's Python files to W&B, where it runs from a checkout.
        start_timeout: seconds until a W&B start online is given up in favour of offline, > 0.
        stall_timeout: seconds after which a tracker that does not return is left out, > 0.
        finish_timeout: seconds that the end of a run waits for all trackers together, > 0.

    Raises:
        ValueError: a value out of range, a writer that cannot be imported, or TensorBoard asked
            for and not installed.
    """

    mode: str = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = "train"
    name: str | None = None
    notes: str | None = None
    tags: tuple[str, ...] = ()
    tensorboard: bool = False
    csv: bool = False
    writers: tuple[dict[str, Any], ...] = ()
    histograms_every: int = 10
    videos_every: int = 0
    artifacts: bool = True
    code: bool = False
    start_timeout: float = 15.0
    stall_timeout: float = 60.0
    finish_timeout: float = 30.0

    def __post_init__(self) -> None:
        check_mode(self.mode)
        for field in ("start_timeout", "stall_timeout", "finish_timeout"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be > 0 seconds, got {getattr(self, field)}")
        for field in ("histograms_every", "videos_every"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be >= 0, got {getattr(self, field)}")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "tracking.tensorboard=true needs a package that is missing; run: "
                'pip install "gumbelrl[tensorboard]"'
            )
        if self.videos_every and importlib.util.find_spec("imageio_ffmpeg") is None:
            raise ValueError(
                "tracking.videos_every needs a package that is missing; run: "
                'pip install "gumbelrl[video]"'
            )
        for number, writer in enumerate(self.writers):
            _check_writer(f"tracking.writers[{number}]", writer)


# Its name in the configurations of runs from before there were other trackers.
WandbSettings = TrackingSettings


def _check_writer(key: str, writer: Mapping[str, Any]) -> None:
    path = writer.get("_target_")
    if not isinstance(path, str):
        raise ValueError(f"{key} needs a _target_: the import path of a KVWriter")
    try:
        pkgutil.resolve_name(path)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ValueError(
            f"{key}._target_={path} cannot be imported: {first_line(error)}"
        ) from error
