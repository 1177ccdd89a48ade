"""Weights & Biases behind `metrics.jsonl`: it may fail, training does not notice."""

import contextlib
import logging
import netrc
import os
import queue
import secrets
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from gumbelrl.tracking.error_text import brief
from gumbelrl.tracking.json_values import as_json
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

Mode = Literal["online", "offline", "disabled"]

_log = logging.getLogger(__name__)

# What WANDB_MODE may say; "dryrun" and "run" are its older spellings.
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_KEY_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_QUEUE_ROWS = 10_000


@dataclass(frozen=True)
class WandbSettings:
    """How a run is tracked.

    Args:
        mode: "auto", "online", "offline" or "disabled"; see `resolve_mode`.
        project: W&B project; None takes WANDB_PROJECT, else "gumbelrl".
        entity: user or team; None takes WANDB_ENTITY, else the account's default.
        group: name that runs of one comparison, and segments of one resumed run, share.
        job_type: kind of run, to filter on.
        name: display name; None takes the run folder's name.
        tags: labels, to filter on.
        start_timeout: seconds until a start online is given up in favour of offline, > 0.
        finish_timeout: seconds that the end of a run waits for uploads, > 0.

    Raises:
        ValueError: an unknown mode, or a timeout that is not positive.
    """

    mode: str = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = "train"
    name: str | None = None
    tags: tuple[str, ...] = ()
    start_timeout: float = 15.0
    finish_timeout: float = 30.0

    def __post_init__(self) -> None:
        _check_mode(self.mode)
        for field in ("start_timeout", "finish_timeout"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be > 0 seconds, got {getattr(self, field)}")


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
    _check_mode(mode)
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


def _check_mode(mode: str) -> None:
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


def start_wandb(
    settings: WandbSettings, folder: str | Path, config: Mapping[str, Any] | None = None
) -> "WandbWriter":
    """Start a W&B run whose files live in `folder/wandb`, and return the log output for it.

    Does not raise for a missing key, a missing network or a failing server: it goes offline, or
    disables itself, with one warning. A start online takes at most `start_timeout` seconds and
    a little.

    Args:
        settings: how the run is tracked.
        folder: the run folder.
        config: the resolved configuration, nested mappings allowed.

    Raises:
        ValueError: an unknown mode in WANDB_MODE.
    """
    choice = resolve_mode(settings.mode)
    if choice.mode == "disabled":
        return WandbWriter(None, choice)
    folder = Path(folder).expanduser().resolve()
    # W&B's reports about itself hold up the end of the process for 22 s when its server hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if os.name == "posix" and "HOME" not in os.environ:
        # Without a place for its own log W&B's service writes it to standard error.
        os.environ.setdefault("XDG_CACHE_HOME", str(folder / "wandb" / "cache"))
    try:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))  # or the login prints a line of its own
        plain = as_json(dict(config or {}))
    except Exception as error:
        return _without(choice, error)
    if choice.mode == "online":
        try:
            return WandbWriter(
                _init(wandb, "online", settings, folder, plain),
                choice,
                finish_timeout=settings.finish_timeout,
            )
        except Exception as error:
            reason = f"W&B is offline: it could not start online ({brief(error)})."
            _log.warning("%s Training goes on.", reason)
            choice = TrackingMode("offline", reason)
    try:
        run = _init(wandb, "offline", settings, folder, plain)
        return WandbWriter(run, choice, finish_timeout=settings.finish_timeout)
    except Exception as error:
        return _without(choice, error)


def _init(
    wandb: Any, mode: Mode, settings: WandbSettings, folder: Path, config: dict[str, Any]
) -> Any:
    run_id = secrets.token_hex(4)
    try:
        run = wandb.init(
            mode=mode,
            id=run_id,
            dir=str(folder),
            project=settings.project or os.environ.get("WANDB_PROJECT") or "gumbelrl",
            entity=settings.entity,
            group=settings.group,
            job_type=settings.job_type,
            name=settings.name or folder.name,
            tags=list(settings.tags) or None,
            config=config,
            reinit="create_new",  # an explicit run, whatever else in the process uses W&B
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=settings.start_timeout,
                login_timeout=settings.start_timeout,
                finish_timeout=settings.finish_timeout,
            ),
        )
        run.define_metric("env_steps")
        run.define_metric("*", step_metric="env_steps")
        return run
    except Exception:
        for started in (folder / "wandb").glob(f"run-*-{run_id}"):  # empty; would only confuse
            shutil.rmtree(started, ignore_errors=True)
        raise


def _without(choice: TrackingMode, error: Exception) -> "WandbWriter":
    reason = f"W&B is disabled: it could not start {choice.mode} ({brief(error)})."
    _log.warning("%s Training goes on; metrics.jsonl has everything.", reason)
    return WandbWriter(None, TrackingMode("disabled", reason))


class WandbWriter(KVWriter):
    """Stable-Baselines3 log output into one explicit W&B run, with `env_steps` as the x-axis.

    Rows go through a queue to a thread of their own, so a slow or hanging tracker never holds up
    training. The first exception, or a full queue, ends tracking with one warning.

    Args:
        run: a W&B run, or None to do nothing.
        choice: its mode, and why.
        finish_timeout: seconds that `close` waits at most.

    Attributes:
        mode: "online", "offline" or "disabled", after every fallback.
        reason: one sentence that says why, for the user.
        run: the W&B run, or None.
        failed: whether the tracker gave up in mid-run.
    """

    def __init__(
        self, run: Any | None, choice: TrackingMode, *, finish_timeout: float = 30.0
    ) -> None:
        self.run = run
        self.mode: Mode = choice.mode
        self.reason = choice.reason
        self.failed = False
        self._exit_code = 0
        self._finish_timeout = finish_timeout
        self._warned = threading.Lock()  # held by the one who warns, and for good
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE_ROWS)
        self._closing = run is None
        self._thread = threading.Thread(target=self._work, name="wandb-writer", daemon=True)
        if run is not None:
            self._thread.start()

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log one row at `step` env steps; keys excluded for "wandb" are left out."""
        if self._closing or self.failed:
            return
        row: dict[str, Any] = {"env_steps": int(step)}
        for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items():
            if isinstance(value, float):
                row[key] = float(value)  # W&B keeps NaN and infinities as they are
                continue
            try:
                row[key] = as_json(value)
            except TypeError:
                continue
        run = self.run
        assert run is not None
        self._submit(lambda: run.log(row))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Set values of the run's W&B summary (final results)."""
        if self._closing or self.failed:
            return
        run, plain = self.run, as_json(dict(summary))
        assert run is not None
        self._submit(lambda: run.summary.update(plain))

    def close(self, exit_code: int = 0) -> None:
        """Finish the run within the settings' `finish_timeout` seconds; twice is once.

        Args:
            exit_code: 0 for a run that ended well, 1 for one that failed, 130 for Ctrl-C.
        """
        if self._closing:
            return
        self._closing = True
        self._exit_code = exit_code
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=1.0)
        # W&B keeps to the same limit by itself; the margin lets it say so first.
        self._thread.join(self._finish_timeout + 2.0)
        if self._thread.is_alive():
            self._give_up(f"it did not finish within {self._finish_timeout:g} s")
            _let_the_process_end()

    @property
    def run_id(self) -> str | None:
        """The W&B id of this segment of the run."""
        return getattr(self.run, "id", None)

    @property
    def url(self) -> str | None:
        """Where to see the run online; None offline."""
        # Asking an offline run prints a warning.
        return getattr(self.run, "url", None) if self.mode == "online" else None

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline or unfinished run; None when all was sent."""
        if self.run is None or (self.mode == "online" and not self.failed):
            return None
        try:
            return f"wandb sync {shlex.quote(_readable(self.run.settings.sync_dir))}"
        except Exception:
            return None

    def _submit(self, job: Callable[[], None]) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._give_up(f"{_QUEUE_ROWS} rows wait to be sent")

    def _work(self) -> None:
        run = self.run
        assert run is not None
        for job in iter(self._jobs.get, None):
            if not self.failed:
                self._attempt(job)
        self._attempt(lambda: run.finish(exit_code=self._exit_code))  # what was sent ends well

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._give_up(brief(error))

    def _give_up(self, why: str) -> None:
        self.failed = True
        if self._warned.acquire(blocking=False):
            _log.warning(
                "W&B failed and is left out from here on (%s). "
                "Training goes on; metrics.jsonl has everything.",
                why,
            )


def _let_the_process_end() -> None:
    """Take back W&B's exit hook, which would wait for its hanging service without limit.

    There is no public way to (wandb 0.31); where this one is gone, the hook stays.
    """
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        if connection is not None and connection._cleanup is not None:
            connection._cleanup()


def _readable(path: str) -> str:
    """A path relative to the working folder where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return relative if len(relative) < len(path) else path
