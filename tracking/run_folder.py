"""The folder of one run, and the one way files in it are written."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any


class RunFolderError(ValueError):
    """A run folder that cannot be made, read or written; the message says what to do."""


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        content: text is encoded as UTF-8.

    Raises:
        OSError: the write failed; what stood at `path` still stands there.
    """
    raise NotImplementedError


class RunFolder:
    """Everything one run knows, on disk.

    `config.yaml` (resolved), `metrics.jsonl`, `summary.json`, `checkpoints/`, `videos/`, `wandb/`;
    the folders appear when something is put into them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> "RunFolder":
        """Make the folder, or take the one that stands there if it is empty or `resume`.

        Raises:
            RunFolderError: the location cannot be written, or the folder holds something.
        """
        raise NotImplementedError

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Take the folder of an existing run.

        Raises:
            RunFolderError: there is no folder, or no `config.yaml` in it.
        """
        raise NotImplementedError

    @property
    def config_path(self) -> Path:
        """`config.yaml`."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """`summary.json`."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """`checkpoints/`, which the first checkpoint makes."""
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        """`videos/`, which the first video makes."""
        return self.path / "videos"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration (plain data, or an OmegaConf node) to `config.yaml`.

        Raises:
            RunFolderError: the file cannot be written.
        """
        raise NotImplementedError

    def read_config(self) -> dict[str, Any]:
        """Read `config.yaml` as plain data.

        Raises:
            RunFolderError: it is missing, unreadable, or not a mapping.
        """
        raise NotImplementedError

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`; NaN and infinities become strings.

        Raises:
            RunFolderError: the file cannot be written.
        """
        raise NotImplementedError

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`.

        Raises:
            RunFolderError: it is missing (the run has not ended) or damaged.
        """
        raise NotImplementedError


def default_run_dir(
    root: str | Path, agent: str, env: str, seed: int, now: datetime | None = None
) -> Path:
    """Name a folder that does not exist yet: `<root>/<env>-<agent>-seed<seed>-<YYYYmmdd-HHMMSS>`.

    Characters that do not belong in a file name (`ALE/Pong-v5`, `module:Env-v0`) become `_`.
    """
    raise NotImplementedError
