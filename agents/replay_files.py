"""A replay on disk: a folder of chunks, of which the next write keeps those that did not change.

A chunk is a safetensors file with the same rows of every storage, a few megabytes of them, and is
named by its sha256. So a chunk that stands in the folder of an earlier write under that name is the
same chunk: it is linked, not written again. `replay.json` lists the chunks and is written last.
Reading executes nothing, and memory holds one chunk at a time, whatever the replay's size.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from gumbelrl.tracking.run_folder import sync_tree, write_atomically
from gumbelrl.tracking.sealed_json import seal, unseal
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT, VERSION = "gumbelrl-replay", 2  # version 1 was a single safetensors file
INDEX = "replay.json"
CHUNK_BYTES = 2 * 2**20
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

Storages = Mapping[str, Tensor]
"""Tensors [rows, ...] by name, on any device."""


class ReplayWriter:
    """Writes the rows of a replay, again and again.

    Args:
        row_bytes: bytes of one row of all storages.

    Attributes:
        chunk_rows: rows in one chunk, all but the last.
    """

    def __init__(self, row_bytes: int) -> None:
        self.chunk_rows = max(1, CHUNK_BYTES // max(1, row_bytes))
        self._written: dict[int, tuple[str, int]] = {}  # sha256, bytes of chunks as they still are

    def touch(self, row: int) -> None:
        """Say that a row has changed."""
        self._written.pop(row // self.chunk_rows, None)

    def touch_all(self) -> None:
        """Say that any row may have changed."""
        self._written.clear()

    def write(
        self,
        folder: str | Path,
        storages: Storages,
        rows: int,
        position: Mapping[str, Any],
        earlier: Path | None = None,
    ) -> dict[str, str]:
        """Write the first `rows` rows into a folder; what it held before is replaced at the end.

        Args:
            folder: made if missing.
            position: where the ring stands, as JSON data.
            earlier: a folder of an earlier write, whose chunks may be linked.

        Returns:
            The sha256 of every chunk by its file's name.

        Raises:
            ValueError: `folder` is a file.
            OSError: the disk refused; what the folder held before can still be read.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ValueError(f"{folder} is a file, and a replay is a folder; give another path")
        folder.mkdir(parents=True, exist_ok=True)
        names = []
        for number, start in enumerate(range(0, rows, self.chunk_rows)):
            chunk = self._written.get(number)
            if chunk is None or not _keep(folder, earlier, *chunk):
                stop = min(start + self.chunk_rows, rows)
                content = safetensors.torch.save(
                    {name: part[start:stop].contiguous().cpu() for name, part in storages.items()}
                )
                chunk = hashlib.sha256(content).hexdigest(), len(content)
                if not _keep(folder, earlier, *chunk):
                    _write_chunk(folder, chunk[0], content)
                self._written[number] = chunk
            names.append(_file(chunk[0]))
        sync_tree(folder)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "rows": rows,
            "chunk_rows": self.chunk_rows,
            "position": dict(position),
            "shapes": {name: list(part.shape[1:]) for name, part in storages.items()},
            "chunks": names,
        }
        write_atomically(folder / INDEX, seal(index))
        for stale in folder.iterdir():
            if _NAME.fullmatch(stale.name) and stale.name not in names:
                stale.unlink()
        return {name: name.partition(".")[0] for name in names}


def _file(digest: str) -> str:
    return f"{digest}.safetensors"


def _write_chunk(folder: Path, digest: str, content: bytes) -> None:
    temporary = folder / f".{digest}.tmp"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, folder / _file(digest))  # never a part under this name
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep(folder: Path, earlier: Path | None, digest: str, size: int) -> bool:
    """Whether this chunk stands in the folder, after linking it from the earlier one.

    Where the file system knows no links it is written from memory.
    """
    path = folder / _file(digest)
    if not path.exists() and earlier is not None:
        with suppress(OSError):
            os.link(earlier / path.name, path)
    if not path.exists():
        return False
    if path.stat().st_size != size:  # cut short, by something else than a write of ours
        path.unlink()
        return False
    return True


@dataclass(frozen=True)
class StoredReplay:
    """A replay on disk, its rows still to be read."""

    path: Path
    rows: int
    position: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # of one row
    chunk_rows: int
    chunks: list[str] | None  # None: a single file, of version 1

    def blocks(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """First row and tensors of each chunk, checked against its sha256.

        Raises:
            ValueError: a chunk is missing or not what was written.
        """
        if self.chunks is None:
            yield from self._blocks_of_file()
            return
        for number, name in enumerate(self.chunks):
            path, start = self.path / name, number * self.chunk_rows
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise ValueError(f"{path} is missing") from None
            if _file(hashlib.sha256(content).hexdigest()) != name:
                raise ValueError(f"{path} is damaged: its sha256 is not the one that names it")
            tensors = safetensors.torch.load(content)
            expected = min(self.chunk_rows, self.rows - start)
            for key, shape in self.shapes.items():
                if key not in tensors or tensors[key].shape != (expected, *shape):
                    raise ValueError(f"{path} does not fit {INDEX}: it is of another replay")
            yield start, tensors

    def _blocks_of_file(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        with safe_open(str(self.path), framework="pt") as file:
            for start in range(0, self.rows, self.chunk_rows):
                rows = slice(start, start + self.chunk_rows)
                yield start, {name: file.get_slice(name)[rows] for name in self.shapes}

    def read_into(self, storages: Storages, oldest: int = 0) -> None:
        """Copy the rows into storages, chunk by chunk, the one at `oldest` to the first place.

        Raises:
            ValueError: a chunk is missing, not what was written, or of another dtype.
        """
        for start, tensors in self.blocks():
            for name, own in storages.items():
                part = tensors[name]
                if part.dtype != own.dtype:
                    raise ValueError(
                        f"replay in {self.path} does not fit: its {name} is {part.dtype}, this "
                        f"buffer holds {own.dtype}; use the same environment"
                    )
                if oldest == 0:
                    own[start : start + len(part)] = part
                else:
                    places = (torch.arange(start, start + len(part)) - oldest) % self.rows
                    own[places.to(own.device)] = part.to(own.device)

    def check_fits(self, storages: Storages, max_rows: int) -> None:
        """Refuse it before anything is read, unless these storages take it.

        Raises:
            ValueError: names what does not fit.
        """
        for name, own in storages.items():
            shape = self.shapes.get(name)
            if shape is None:
                raise ValueError(
                    f"replay in {self.path} does not fit: it holds no {name}; it is of another "
                    "observation space, or of an older gumbelrl, whose replays end with it"
                )
            if self.rows > max_rows or shape != own.shape[1:]:
                raise ValueError(
                    f"replay in {self.path} does not fit: its {name} has shape "
                    f"{(self.rows, *shape)}, this buffer holds {tuple(own.shape)}; use the "
                    "same environment, n_envs and a buffer_size at least as large"
                )


def open_replay(path: str | Path) -> StoredReplay:
    """What `ReplayWriter.write` has written, or a single safetensors file of an older gumbelrl.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is damaged, of a later version, or no replay of gumbelrl.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no replay at {path}")
    try:
        index = unseal((path / INDEX).read_bytes(), FORMAT, VERSION)
        shapes = {name: tuple(shape) for name, shape in index["shapes"].items()}
        rows, chunk_rows = int(index["rows"]), int(index["chunk_rows"])
        chunks = list(index["chunks"])
        whole = chunk_rows >= 1 and len(chunks) == math.ceil(rows / chunk_rows)
        if not whole or not all(_NAME.fullmatch(name) for name in chunks):
            raise ValueError("it lists other chunks than its rows need")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no replay: it holds no {INDEX}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / INDEX} cannot be used: {error}") from error
    return StoredReplay(path, rows, index["position"], shapes, chunk_rows, chunks)


def _open_file(path: Path) -> StoredReplay:
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            position = {key: int(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or not a replay of gumbelrl: {error}. A replay that "
            "Stable-Baselines3 has pickled is refused, because a pickle runs code when it is "
            "loaded: collect it anew"
        ) from error
    rows = {shape[0] for shape in shapes.values()}
    if len(rows) != 1 or not {"pos", "full"} <= position.keys():
        raise ValueError(f"{path} is not a replay of gumbelrl")
    row_elements = sum(math.prod(shape[1:]) for shape in shapes.values())
    chunk_rows = max(1, CHUNK_BYTES // (4 * row_elements))
    parts = {name: shape[1:] for name, shape in shapes.items()}
    return StoredReplay(path, rows.pop(), position, parts, chunk_rows, None)
