"""Everything behind `metrics.jsonl`, as one: started, told and ended together."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumbelrl.tracking.background import BackgroundWriter
from gumbelrl.tracking.checkpoints import best, checkpoint_steps, latest
from gumbelrl.tracking.csv_output import CsvWriter
from gumbelrl.tracking.error_text import brief
from gumbelrl.tracking.git_source import git_commit
from gumbelrl.tracking.histograms import HistogramCallback
from gumbelrl.tracking.json_values import as_json
from gumbelrl.tracking.metrics import read_metrics
from gumbelrl.tracking.report import environment_versions
from gumbelrl.tracking.run_folder import RunFolder
from gumbelrl.tracking.seeds import derive_seed
from gumbelrl.tracking.settings import TrackingSettings
from gumbelrl.tracking.wandb_mode import resolve_mode
from gumbelrl.tracking.wandb_tracker import VideoFile, WandbTracker
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

if TYPE_CHECKING:
    from gumbelrl.tracking.evaluation import Evaluation, MakeEnv
    from stable_baselines3.common.base_class import BaseAlgorithm

_RESEND = {"W&B": "wandb", "TensorBoard": "tensorboard", "CSV": "csv"}
# What two runs may differ in and still train the same.
_NOT_TRAINING = ("run_dir", "resume", "trust", "tracking", "threads", "tuned")

_log = logging.getLogger(__name__)


class Trackers:
    """The trackers of one run: W&B, TensorBoard, CSV and the user's own, each in its thread.

    None of them can stop or stall training. Build it, `start` it, add `outputs` to the agent's
    logger, and `close` it.

    Args:
        settings: which, and what they may cost.
        folder: the run folder.

    Attributes:
        outputs: one `BackgroundWriter` per tracker; none before `start`.
        wandb: the W&B one among them, or None.

    Raises:
        ValueError: an unknown mode in WANDB_MODE.
    """

    def __init__(self, settings: TrackingSettings, folder: RunFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.choice = resolve_mode(settings.mode)
        self.outputs: list[BackgroundWriter] = []
        self.wandb: WandbTracker | None = None
        self._films = True
        self._digest = ""

    def start(
        self,
        config: Mapping[str, Any],
        env_steps: int = 0,
        earlier: Mapping[str, Any] | None = None,
        *,
        agent_name: str | None = None,
    ) -> list[str]:
        """Start them all; returns at once, with a line for the user about each.

        Args:
            config: the resolved configuration.
            env_steps: steps that the run goes on from; its later rows are cut already.
            earlier: what `state` gave then.
            agent_name: the registry's name of the agent, to filter on.
        """
        settings, path = self.settings, self.folder.path
        self._digest = config_digest(config)
        lines = [self.choice.reason]
        if self.choice.mode != "disabled":
            described = {
                **config,
                "agent": {"name": agent_name, **config.get("agent", {})},
                "run_folder": path.name,
                "config_digest": self._digest,
                "versions": environment_versions(),
                "git_commit": git_commit(),
                "machine": {
                    "system": platform.platform(),
                    "processor": platform.machine(),
                    "cpus": os.cpu_count(),
                },
            }
            self.wandb = WandbTracker(self.choice, settings, path, described, earlier)
            self.outputs.append(self.wandb)
        if settings.tensorboard:
            folder = path / "tensorboard"
            self._add("TensorBoard", lambda: _tensorboard(folder, env_steps))
            lines.append(f"TensorBoard: tensorboard --logdir {folder}")
        if settings.csv:
            # Read here: rows that come while it starts are in its queue.
            rows = read_metrics(self.folder.metrics_path) if env_steps else []
            self._add("CSV", lambda: CsvWriter(path / "metrics.csv", rows))
            lines.append(f"CSV: {path / 'metrics.csv'}")
        for node in settings.writers:
            name = str(node["_target_"]).rpartition(".")[2]
            self._add(name, lambda node=node: _users_own(node))
            lines.append(f"{name}: of your own")
        return lines

    def _add(self, name: str, open_output: Any) -> None:
        writer = BackgroundWriter(
            name,
            open_output,
            start_timeout=self.settings.stall_timeout,
            stall_timeout=self.settings.stall_timeout,
            finish_timeout=self.settings.finish_timeout,
        )
        self.outputs.append(writer)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data; `start` takes it as `earlier`."""
        return self.wandb.state() if self.wandb else {}

    def histograms(self, log_every: int) -> list[HistogramCallback]:
        """The callback that draws them, if anything shows them."""
        shown = self.wandb is not None or self.settings.tensorboard
        if not shown or not self.settings.histograms_every:
            return []
        return [HistogramCallback(log_every * self.settings.histograms_every, self._log_histograms)]

    def _log_histograms(self, histograms: Mapping[str, Tensor], env_steps: int) -> None:
        for output in self.outputs:
            if output.name in ("W&B", "TensorBoard"):
                output.write(dict(histograms), dict.fromkeys(histograms, ("",)), env_steps)

    def film(
        self, agent: BaseAlgorithm, make_env: MakeEnv, seed: int, number: int, env_steps: int
    ) -> None:
        """Record an episode at every `videos_every`-th evaluation; a failure is told once.

        Args:
            make_env: of environments that render as "rgb_array".
            seed: the run's.
            number: of the evaluation.
        """
        from gumbelrl.tracking.videos import record_episode

        every = self.settings.videos_every
        if not every or number % every or not self._films:
            return
        path = self.folder.videos / f"step-{env_steps:09d}.mp4"
        try:
            record_episode(agent, make_env, path, derive_seed(seed, "video", number))
        except Exception as error:
            self._films = False
            _log.warning("no videos of this run: %s. Training goes on.", brief(error))
            return
        if self.wandb:
            row = {"eval/video": VideoFile(path)}
            self.wandb.write(row, dict.fromkeys(row, ("",)), env_steps)

    def finish(
        self,
        summary: Mapping[str, Any],
        exit_code: int,
        last: tuple[int, Evaluation | None] = (0, None),
        best_one: tuple[int, Evaluation | None] = (0, None),
    ) -> None:
        """Hand over what is known at the end, and close all within `finish_timeout` seconds.

        Args:
            summary: of the run.
            exit_code: 0 for a run that ended well, 1 for one that failed, 130 for Ctrl-C.
            last: the last evaluation and its env steps.
            best_one: the best one and its env steps.
        """
        if self.wandb:
            try:
                self.wandb.summarise(summary)
                self._hand_over_episodes(int(summary.get("env_steps", 0)))
                if self.settings.artifacts:
                    self._hand_over_models(last, best_one)
            except Exception as error:  # a run folder that is gone, for one
                _log.warning("W&B does not get all of the run's end: %s.", brief(error))
            self.wandb.end_with(exit_code)
        for output in self.outputs:
            output.end()
        deadline = time.monotonic() + self.settings.finish_timeout
        for output in self.outputs:
            output.wait(deadline)

    def _hand_over_episodes(self, env_steps: int) -> None:
        assert self.wandb is not None
        try:
            evaluations = read_metrics(self.folder.evaluations_path)
        except (OSError, ValueError):
            return  # no evaluation yet, or a disk that failed: the writer said so
        if evaluations:
            self.wandb.log_episodes(evaluations, env_steps)

    def _hand_over_models(
        self, last: tuple[int, Evaluation | None], best_one: tuple[int, Evaluation | None]
    ) -> None:
        assert self.wandb is not None
        found: dict[int, tuple[Path, list[str]]] = {}
        folder = self.folder.checkpoints
        # A best one that is the last one too is one version with both aliases.
        for alias, path in (("best", best(folder)), ("latest", latest(folder))):
            if path is not None:
                steps = checkpoint_steps(path)
                found.setdefault(steps, (path, []))[1].append(alias)
        returns = {steps: evaluation.mean for steps, evaluation in (last, best_one) if evaluation}
        for steps, (path, aliases) in sorted(found.items()):
            metadata = {
                "env_steps": steps,
                "eval_return_mean": returns.get(steps),
                "config_digest": self._digest,
            }
            self.wandb.log_checkpoint(path, [*aliases, f"step-{steps}"], metadata)

    def report(self) -> list[tuple[str, str]]:
        """Rows for the table at the end: where to look, what was not sent and how to send it."""
        rows = []
        if self.wandb and self.wandb.url:
            rows.append(("online", self.wandb.url))
        for output in self.outputs:
            if output.failure is None:
                continue
            missing = f"{output.unsent_rows} of {output.rows} rows"
            if output.unsent_files:
                missing += f" and {output.unsent_files} files"
            rows.append((f"{output.name} failed", f"{output.failure}; {missing} were not sent"))
            resend = _RESEND.get(output.name)
            if resend and not (output is self.wandb and self.wandb.sync_command):
                again = [
                    "python",
                    "-m",
                    "gumbelrl.tracking.resend",
                    resend,
                    str(self.folder.path),
                ]
                rows.append((f"send to {output.name}", shlex.join(again)))
        if self.wandb and (command := self.wandb.sync_command):
            rows.append(("upload to W&B", command))
        return rows


def config_digest(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits, the same for runs that train the same."""
    training = {key: value for key, value in config.items() if key not in _NOT_TRAINING}
    text = json.dumps(as_json(training), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tensorboard(folder: Path, env_steps: int) -> KVWriter:
    from gumbelrl.tracking.tensorboard_output import TensorBoardWriter

    return TensorBoardWriter(folder, first_step=env_steps + 1 if env_steps else 0)


def _users_own(node: Mapping[str, Any]) -> KVWriter:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:  # Hydra's first line names the class, not what is wrong
        raise error.__cause__ or error from None
