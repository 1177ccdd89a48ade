"""The file of an agent: a zip with two members, bound together by a digest.

`agent.json` holds format version, class, constructor settings, spaces, counters, optimiser settings
and the digest of both members; `tensors.safetensors` weights, optimiser moments and the generator's
state. Neither can execute anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from gumbelrl.tracking.run_folder import write_atomically
from gumbelrl.tracking.sealed_json import check_version
from torch import Tensor

FORMAT, VERSION = "gumbelrl-agent", 2  # version 1 had no digest
_HEADER, _TENSORS = "agent.json", "tensors.safetensors"
_KEYS = {"class", "policy", "settings", "observation_space", "action_space", "n_envs"}
_KEYS |= {"counters", "optimizers"}


def _agent_path(path: str | Path) -> Path:
    """Stable-Baselines3's convention: `.zip` is added where there is no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def write_agent_file(
    path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write an agent file: a reader, or a crash, meets what stood there before or the new one.

    Raises:
        OSError: the disk refused; what stood there before still stands.
    """
    content = safetensors.torch.save(
        {name: value.cpu().contiguous() for name, value in tensors.items()}
    )
    # As it will be read: JSON turns tuples into lists and keys into text.
    plain = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **header}))
    plain["sha256"] = _digest(plain, content)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(_HEADER, json.dumps(plain, indent=1))
        archive.writestr(_TENSORS, content)
    path = _agent_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, whole.getvalue())


def read_agent_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and CPU tensors of an agent file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of this format; one with pickles is refused with the way out.
    """
    path = _agent_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no agent file at {path}")
    try:
        names, members = _read_members(path)
        header = json.loads(members.get(_HEADER, b"{}"))
    except Exception as error:  # a damaged zip can raise anything
        raise ValueError(f"{path} is damaged or not a {FORMAT} file: {error}") from error
    if "data" in names or any(name.endswith((".pkl", ".pth")) for name in names):
        raise ValueError(
            f"{path} is a Stable-Baselines3 archive: it holds pickles, which run code when "
            "loaded, so it is refused. Load it with the library that wrote it and train or save "
            "anew with gumbelrl"
        )
    if names != [_HEADER, _TENSORS] or not isinstance(header, dict):
        raise ValueError(f"{path} is not a {FORMAT} file: it holds {names}")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT} file but a {header.get('format')!r}")
    try:
        check_version(header.get("version"), VERSION)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    digest = header.pop("sha256", None)
    if digest != (_digest(header, members[_TENSORS]) if header["version"] > 1 else None):
        raise ValueError(
            f"{path} is damaged: its two parts are not what was written together, by its sha256"
        )
    try:
        tensors = safetensors.torch.load(members[_TENSORS])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {_TENSORS}: {error}") from error
    missing = sorted(_KEYS - header.keys())
    if missing:
        raise ValueError(f"{path} is damaged: {_HEADER} lacks {', '.join(missing)}")
    return header, tensors


def _read_members(path: Path) -> tuple[list[str], dict[str, bytes]]:
    """The names in a zip, sorted, and the content of ours; the zip's own checksums hold."""
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename in (_HEADER, _TENSORS)]
        # As `save` writes them, so that no few bytes unpack into more than memory holds.
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("its parts are compressed")
        return sorted(archive.namelist()), {info.filename: archive.read(info) for info in infos}


def _digest(header: dict[str, Any], tensors: bytes) -> str:
    """The sha256 that binds the two members together; of the header without it."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    found.update(tensors)
    return found.hexdigest()
