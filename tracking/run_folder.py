"""The folder of one run, and the one way files in it are written."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from gumbelrl.tracking.json_values import as_json

HEARTBEAT = "heartbeat.json"


class RunFolderError(ValueError):
    """A run folder that cannot be made, read or written; the message says what to do."""


def sync_folder(path: str | Path) -> None:
    """Make the names in a folder survive a power cut (a rename alone need not).

    Raises:
        OSError: the file system refused.
    """
    if os.name == "nt":  # Windows cannot open a folder, and needs no such sync
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | Path) -> None:
    """Make everything in a folder, its files and their names, survive a power cut.

    Raises:
        OSError: the file system refused.
    """
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(root) / name, "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(root)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        content: text is encoded as UTF-8.

    Raises:
        OSError: the write failed; what stood at `path` still stands there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too must leave no litter
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _is_litter(name: str) -> bool:
    """Whether a killed process may leave a file of that name, with nothing in it to keep."""
    return re.fullmatch(rf"\.lock|{HEARTBEAT}|\.probe-\w+|\..+\.tmp", name) is not None


class RunFolder:
    """Everything one run knows, on disk.

    `config.yaml` (resolved), `metrics.jsonl`, `evaluations.jsonl`, `summary.json`,
    `heartbeat.json`, `checkpoints/`, `videos/`, and what the trackers keep there; the folders
    appear when something is put into them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> "RunFolder":
        """Make the folder, or take the one that stands there if it is empty or `resume`.

        Raises:
            RunFolderError: the location cannot be written, or the folder holds something.
        """
        path = Path(path).expanduser()
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = any(not _is_litter(child.name) for child in path.iterdir())
        except OSError as error:
            raise RunFolderError(
                f"cannot make the run folder {path}: {_why(error)}; "
                "give run_dir=FOLDER somewhere you can write"
            ) from error
        if taken and not resume:
            raise RunFolderError(
                f"the run folder {path} is not empty; give another run_dir, "
                f"or resume={path} to go on with the run in it"
            )
        probe = path / f".probe-{secrets.token_hex(4)}"
        try:  # a full disk or a read-only mount shows itself only when something is written
            probe.write_bytes(b"probe")
        except OSError as error:
            raise RunFolderError(
                f"cannot write in the run folder {path}: {_why(error)}; "
                "free space there, or give run_dir=FOLDER somewhere you can write"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Take the folder of an existing run.

        Raises:
            RunFolderError: there is no folder, or no `config.yaml` in it.
        """
        folder = cls(Path(path).expanduser())
        if not folder.path.is_dir():
            raise RunFolderError(f"there is no run folder {path}; look for one under runs/")
        if not folder.config_path.is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it holds no config.yaml; "
                "give the folder of one run, such as runs/CartPole-v1-..."
            )
        return folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While it lasts no other process writes this run.

        Where the system or the file system knows no locks, nothing is locked.

        Raises:
            RunFolderError: another process does.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            file = open(self.path / ".lock", "ab")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise RunFolderError(
                f"cannot write in the run folder {self.path}: {_why(error)}"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(
                    f"another process is writing the run in {self.path}; "
                    "wait for its end, or stop it"
                ) from error
            except OSError:
                pass  # a file system without locks
            yield

    @property
    def config_path(self) -> Path:
        """`config.yaml`."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations_path(self) -> Path:
        """`evaluations.jsonl`."""
        return self.path / "evaluations.jsonl"

    @property
    def summary_path(self) -> Path:
        """`summary.json`."""
        return self.path / "summary.json"

    @property
    def records(self) -> tuple[Path, Path]:
        """What is appended to row by row, and cut where a run goes on."""
        return self.metrics_path, self.evaluations_path

    @property
    def heartbeat_path(self) -> Path:
        """`heartbeat.json`."""
        return self.path / HEARTBEAT

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
            RunFolderError: the file cannot be written, or a value is not plain data.
        """
        from omegaconf import OmegaConf

        plain = (
            OmegaConf.to_container(config, resolve=True)
            if OmegaConf.is_config(config)
            else {**config}
        )
        try:
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as error:
            raise RunFolderError(
                "the configuration holds something other than numbers, text, lists and mappings: "
                f"{error}"
            ) from error
        self._write(self.config_path, text)

    def read_config(self) -> dict[str, Any]:
        """Read `config.yaml` as plain data.

        Raises:
            RunFolderError: it is missing, unreadable, or not a mapping.
        """
        try:
            config = yaml.safe_load(self._read(self.config_path))
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())  # YAML says where on later lines
            raise RunFolderError(f"{self.config_path} is damaged: {said}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.config_path} is damaged: it holds no mapping")
        return config

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`; NaN and infinities become strings.

        Raises:
            RunFolderError: the file cannot be written.
        """
        self._write(self.summary_path, json.dumps(as_json(dict(summary)), indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`.

        Raises:
            RunFolderError: it is missing (the run has not ended) or damaged.
        """
        try:
            summary = json.loads(self._read(self.summary_path))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{self.summary_path} is damaged: {error}") from error
        if not isinstance(summary, dict):
            raise RunFolderError(f"{self.summary_path} is damaged: it holds no mapping")
        return summary

    def is_complete(self) -> bool:
        """Whether the run in the folder came to its planned end."""
        try:
            return self.read_summary().get("complete") is True
        except RunFolderError:
            return False

    def _write(self, path: Path, text: str) -> None:
        try:
            write_atomically(path, text)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {path}: {_why(error)}; what stood there before is untouched. "
                "Free space, or give another run_dir"
            ) from error

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            hint = " (the run has not ended)" if path == self.summary_path else ""
            raise RunFolderError(f"there is no {path.name} in {self.path}{hint}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"cannot read {path}: {_why(error)}") from error


def default_run_dir(
    root: str | Path, agent: str, env: str, seed: int, now: datetime | None = None
) -> Path:
    """Name a folder that does not exist yet: `<root>/<env>-<agent>-seed<seed>-<YYYYmmdd-HHMMSS>`.

    Characters that do not belong in a file name (`ALE/Pong-v5`, `module:Env-v0`) become `_`.
    """
    moment = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
    stem = f"{run_stem(agent, env, seed)}-{moment}"
    path = Path(root) / stem
    count = 2
    while path.exists():
        path = Path(root) / f"{stem}-{count}"
        count += 1
    return path


def run_stem(agent: str, env: str, seed: int) -> str:
    """The part of a run folder's name that is the same for all runs of an agent on an environment
    from one seed."""
    return f"{_file_name(env)}-{_file_name(agent)}-seed{seed}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("._") or "run"


def _why(error: Exception) -> str:
    # str(OSError) repeats the path; the system's own sentence is enough.
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
