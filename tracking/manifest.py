"""`checkpoint.json`: what a checkpoint holds, with the size and digest of every file.

It is written last, into the folder that is still unfinished, and checked before anything else is
read. A checkpoint without one was written before there were manifests (format version 1), which
its `state.json` shows by naming no version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gumbelrl.tracking.error_text import brief
from gumbelrl.tracking.report import environment_versions
from gumbelrl.tracking.run_folder import RunFolderError
from gumbelrl.tracking.sealed_json import seal, unseal

FORMAT, VERSION = "gumbelrl-checkpoint", 2
MANIFEST, STATE, REPLAY = "checkpoint.json", "state.json", "replay"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are what was written.

    Only what the manifest lists is read: another file in the folder does not matter.
    """

    path: Path
    files: frozenset[str] | None  # None: from before there were manifests, so nobody knows
    remedy: Callable[[], str]  # what to do where it is damaged after all

    def holds(self, name: str) -> bool:
        """Whether there is this file, or folder."""
        if self.files is None:
            return (self.path / name).exists()
        return any(listed == name or listed.startswith(f"{name}/") for listed in self.files)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The path of a file; whatever goes wrong while it is read ends in one line.

        Raises:
            RunFolderError: there is no such file, or from any exception within.
        """
        path = self.path / name
        if not self.holds(name):
            raise damaged(path, "it is missing", self.remedy())
        with reading(path, self.remedy):
            yield path


@contextmanager
def reading(file: Path, remedy: str | Callable[[], str]) -> Iterator[None]:
    """Whatever goes wrong while a file is read, in one line with what to do.

    Raises:
        RunFolderError: from any exception within.
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:  # a damaged file can raise anything
        said = remedy if isinstance(remedy, str) else remedy()
        raise damaged(file, brief(error), said) from error


def damaged(file: Path, why: str, remedy: str) -> RunFolderError:
    """The error for a file that cannot be used: which one, what is wrong, what to do."""
    return RunFolderError(f"cannot go on from {file} ({why}); {remedy}")


def write_manifest(
    folder: Path, name: str, env_steps: int, agent: str | None, known: Mapping[str, str]
) -> None:
    """Write `checkpoint.json` for everything that stands in a folder.

    Args:
        folder: a checkpoint that is otherwise complete.
        name: the one that it will have.
        agent: the class of its agent.
        known: sha256 of files whose writer has computed it, by path within the folder; the others
            are read again.
    """
    files = {}
    for path in files_in(folder):
        relative = path.relative_to(folder).as_posix()
        digest = known.get(relative) or file_digest(path)
        files[relative] = {"size": path.stat().st_size, "sha256": digest}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "gumbelrl": environment_versions()["gumbelrl"],
        "name": name,
        "agent": agent,
        "env_steps": env_steps,
        "files": files,
    }
    (folder / MANIFEST).write_bytes(seal(content))


def read_checkpoint(
    path: Path, name: str | None, remedy: Callable[[], str], replay: bool = True
) -> Checkpoint:
    """Check the files of a checkpoint against its manifest, before anything is used.

    Args:
        path: the folder.
        name: that of the checkpoint; None takes any.
        remedy: says what to do where it is damaged.
        replay: check the replay too.

    Raises:
        RunFolderError: a file is missing or not what was written, or a later version wrote it.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        if _names_a_version(path / STATE):
            raise damaged(manifest, "it is missing", remedy())
        return Checkpoint(path, None, remedy)
    try:
        content = unseal(manifest.read_bytes(), FORMAT, VERSION)
        stored_name = str(content["name"])
        files = {
            file: (int(of["size"]), str(of["sha256"])) for file, of in content["files"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(manifest, "it lists no files of a checkpoint", remedy()) from error
    except (OSError, ValueError) as error:
        raise damaged(manifest, str(error), remedy()) from error
    if name is not None and stored_name != name:
        raise damaged(manifest, f"it is that of {stored_name}", remedy())
    for file, (size, digest) in files.items():
        if replay or not file.startswith(f"{REPLAY}/"):
            difference = _difference(path / file, size, digest)
            if difference is not None:
                raise damaged(path / file, difference, remedy())
    return Checkpoint(path, frozenset(files), remedy)


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def file_digest(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(path: Path, size: int, digest: str) -> str | None:
    """How a file differs from what the manifest says of it; None if it does not."""
    try:
        holds = path.stat().st_size
        if holds != size:
            return "it is empty" if holds == 0 else f"it holds {holds} bytes of the {size} written"
        found = file_digest(path)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if found != digest:
        return f"it is not what was written: its sha256 is {found[:12]}…, not {digest[:12]}…"
    return None


def _names_a_version(state: Path) -> bool:
    """Whether a state.json says that it stands beside a manifest."""
    try:
        return "version" in json.loads(state.read_bytes())
    except (OSError, ValueError, TypeError):  # whoever reads it says so
        return False
