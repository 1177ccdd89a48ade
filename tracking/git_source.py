"""Which version of the code a run was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

_DIFF_BYTES = 1_000_000  # a longer diff is left out


def source_checkout() -> Path | None:
    """The repository that this package's files belong to; None where it is installed.

    Another repository around the working folder is not ours to read.
    """
    # An installed copy may lie in a `.venv` inside somebody else's repository.
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    root = _git(here.parent, "rev-parse", "--show-toplevel")
    return Path(root).resolve() if root else None


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit of the repository around `folder`, "-dirty" appended when tracked files differ.

    None outside a repository, or without git.

    Args:
        folder: None takes `source_checkout`.
    """
    folder = source_checkout() if folder is None else folder
    commit = None if folder is None else git_head(folder)
    if folder is None or commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changes else commit


def git_head(folder: str | Path) -> str | None:
    """The commit that is checked out; None outside a repository, or before the first commit."""
    return _git(folder, "rev-parse", "HEAD") or None


def git_diff(folder: str | Path) -> str | None:
    """How tracked files differ from the commit; None where they do not, or by too much to keep."""
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff")
    return f"{diff}\n" if diff and len(diff) <= _DIFF_BYTES else None


def git_remote(folder: str | Path) -> str | None:
    """Address of the remote "origin" without user name, password or token."""
    url = _git(folder, "config", "--get", "remote.origin.url")
    if not url or "://" not in url:  # host:path and local paths carry no password
        return url or None
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            # A lock of the index would stay behind if this process were killed.
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip("\n")  # a diff may end in a line of blanks
