"""JSON that carries a digest of itself, so that a changed byte is seen.

The frame is kept by every version to come: a reader of today can tell a file of a later format
from a damaged one.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "sha256"


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON of `content` with the digest of the rest under "sha256", which it must not hold."""
    body = json.dumps(content, sort_keys=True).encode()
    sealed = {**content, _DIGEST: hashlib.sha256(body).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=True).encode() + b"\n"


def unseal(raw: bytes, format: str, version: int) -> dict[str, Any]:
    """What was sealed, every byte of it as it was written.

    Args:
        format: what its "format" must be.
        version: the latest that the caller reads.

    Raises:
        ValueError: it is damaged, of another format, or of a later version (says what to do).
    """
    if not raw:
        raise ValueError("it is empty")
    try:
        content = json.loads(raw)
        digest = content.pop(_DIGEST)
        intact = seal(content) == raw
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is damaged: it is no longer what was written") from error
    if not intact:
        raise ValueError(f"it is damaged: its content does not fit its sha256 {str(digest)[:12]}…")
    if content.get("format") != format:
        raise ValueError(f"it is a {content.get('format')!r} file, not {format!r}")
    check_version(content.get("version"), version)
    return content


def check_version(found: Any, latest: int) -> None:
    """Refuse what a later version has written.

    Raises:
        ValueError: says what to do.
    """
    if not isinstance(found, int) or not 1 <= found <= latest:
        raise ValueError(
            f"it has format version {found}, and this gumbelrl reads up to {latest}: "
            "install the gumbelrl that wrote it, or a later one"
        )
