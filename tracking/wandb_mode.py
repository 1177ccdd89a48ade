"""Whether Weights & Biases runs online, offline or not at all, and why."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]

# What WANDB_MODE may say; "dryrun" and "run" are its older spellings.
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_KEY_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


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
    check_mode(mode)
    environ = os.environ if environ is None else environ
    if mode != "auto":
        return TrackingMode(mode, f"W&B is {mode}: the configuration says so.")  # type: ignore[arg-type]
    if given := environ.get("WANDB_MODE", "").strip():
        if given not in _ENVIRONMENT_MODES:
            raise ValueError(
                f"WANDB_MODE must be online, offline or disabled, got {given!r}; "
                "change it, or unset it and say tracking.mode=offline"
            )
        chosen = _ENVIRONMENT_MODES[given]
        return TrackingMode(chosen, f"W&B is {chosen}: WANDB_MODE={given}.")
    if source := _key_source(environ, netrc_path):
        return TrackingMode("online", f"W&B is online: an API key was found in {source}.")
    return TrackingMode("offline", "W&B is offline: no API key was found (`wandb login` sets one).")


def check_mode(mode: str) -> None:
    """Raise ValueError for a mode that the configuration cannot say."""
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(
            f"the tracking mode must be auto, online, offline or disabled, got {mode!r}"
        )


def _key_source(environ: Mapping[str, str], netrc_path: str | Path | None) -> str | None:
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environ.get(variable, "").strip():
            return variable
    if netrc_path is None:
        given = environ.get("NETRC")
        candidates = [Path(given)] if given else [Path("~/.netrc"), Path("~/_netrc")]
    else:
        candidates = [Path(netrc_path)]
    own_server = urlsplit(environ.get("WANDB_BASE_URL", "")).netloc
    for path in candidates:
        try:
            keys = netrc.netrc(path.expanduser())
        except (OSError, netrc.NetrcParseError, RuntimeError):
            continue  # missing, unreadable, or no home folder: no key there
        for host in [own_server] if own_server else _KEY_HOSTS:
            entry = keys.authenticators(host)
            if entry and entry[2]:
                return str(path)
    return None
