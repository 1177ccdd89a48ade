"""Weights & Biases behind `metrics.jsonl`: it may fail, training does not notice."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stable_baselines3.common.logger import KVWriter

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class WandbSettings:
    """How a run is tracked.

    Args:
        mode: "auto", "online", "offline" or "disabled"; see `resolve_mode`.
        project: W&B project.
        entity: user or team; None takes the account's default.
        group: name that runs of one comparison, and segments of one resumed run, share.
        job_type: kind of run, to filter on.
        name: display name; None takes the run folder's name.
        tags: labels, to filter on.
        start_timeout: seconds until a start online is given up in favour of offline, > 0.
        finish_timeout: seconds that the end of a run waits for uploads, > 0.
    """

    mode: str = "auto"
    project: str = "gumbelrl"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = "train"
    name: str | None = None
    tags: tuple[str, ...] = ()
    start_timeout: float = 15.0
    finish_timeout: float = 30.0


@dataclass(frozen=True)
class TrackingMode:
    """A W&B mode and, in one sentence for the user, why it was chosen."""

    mode: Mode
    reason: str


def resolve_mode(
    mode: str = "auto",
    *,
    environ: Mapping[str, str] | None = None,
    netrc_path: str | Path | None = None,
) -> TrackingMode:
    """Choose the W&B mode: configuration, else WANDB_MODE, else online with a key, else offline.

    Asks no server.

    Args:
        mode: "auto", "online", "offline" or "disabled".
        environ: environment variables; None takes the process's.
        netrc_path: file of keys; None takes $NETRC, else the home folder's.

    Raises:
        ValueError: an unknown mode, in the configuration or in WANDB_MODE.
    """
    raise NotImplementedError


def start_wandb(
    settings: WandbSettings, folder: str | Path, config: Mapping[str, Any] | None = None
) -> "WandbWriter":
    """Start a W&B run whose files live in `folder/wandb`, and return the log output for it.

    Does not raise for a missing key, a missing network or a failing server: it goes offline, or
    disables itself, with one warning.

    Args:
        settings: how the run is tracked.
        folder: the run folder.
        config: the resolved configuration, nested mappings allowed.

    Raises:
        ValueError: an unknown mode.
    """
    raise NotImplementedError


class WandbWriter(KVWriter):
    """Stable-Baselines3 log output into one explicit W&B run, with `env_steps` as the x-axis.

    The first exception of the tracker ends it with one warning; training goes on.

    Attributes:
        mode: "online", "offline" or "disabled", after every fallback.
        reason: one sentence that says why, for the user.
        run: the W&B run, or None.
    """

    mode: Mode
    reason: str
    run: Any | None

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log one row at `step` env steps; keys excluded for "wandb" are left out."""
        raise NotImplementedError

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Set values of the run's W&B summary (final results)."""
        raise NotImplementedError

    def close(self, exit_code: int = 0) -> None:
        """Finish the run within the settings' `finish_timeout` seconds; twice is once.

        Args:
            exit_code: 0 for a run that ended well, 1 for one that failed, 130 for Ctrl-C.
        """
        raise NotImplementedError

    @property
    def run_id(self) -> str | None:
        """The W&B id of this segment of the run."""
        raise NotImplementedError

    @property
    def url(self) -> str | None:
        """Where to see the run online; None offline."""
        raise NotImplementedError

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline run; None when there is nothing to upload."""
        raise NotImplementedError
