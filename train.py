"""Train one agent on one environment: python train.py agent=gumbel_sac env=cartpole seed=0

    python train.py env=LunarLander-v3 total_steps=300000     any Gymnasium environment by its id
    python train.py agent.estimator=exact agent.gamma=0.98    any argument of the agent
    python train.py agent.temperature='{schedule: linear, start: 2, end: 0.5}'
    python train.py resume=runs/NAME                          go on from the last checkpoint
    python train.py env=taxi seed=3 resume=auto               begin, or go on with the same run

Overrides are key=value in Hydra's grammar. The keys and their defaults:
"""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gumbelrl.tracking import Checkpoint
    from gumbelrl.tracking.checkpoints import Save

DOES_NOT_APPLY = 3  # exit code: the agent does not serve such an environment


def help_text() -> str:
    """What `--help` prints, from config.yaml itself."""
    from gumbelrl.configs.compose import CONFIG_DIR, GROUPS, group_options

    lines = (CONFIG_DIR / "config.yaml").read_text().splitlines()
    keys = [f"  {line}" for line in lines[lines.index("") + 1 :] if line]
    groups = [f"  {group}=  {', '.join(group_options(group))}" for group in GROUPS]
    return "\n".join([__doc__ or "", *keys, "", "Groups:", *groups])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 the environment or the agent failed, 2 bad input, 3 the agent does not serve such an
    environment, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(help_text())
        return 0
    try:
        from gumbelrl.configs.compose import ConfigError, compose, given_values
        from gumbelrl.configs.resume import AUTO, auto_config, resumed_config

        try:
            given = given_values(arguments)
            see_working_folder(given)
            config = compose(arguments)
            auto = config["resume"] == AUTO
            if auto:
                config, line = auto_config(config)
                print(line)
            elif config["resume"] is not None:
                config = resumed_config(config, given)
        except ConfigError as error:
            return _refuse(str(error))
        return Run(config, auto=auto).execute()
    except KeyboardInterrupt:
        return _refuse("interrupted before training began", 130)


def _refuse(message: str, exit_code: int = 2, program: str = "train.py") -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return exit_code


def see_working_folder(given: Mapping[str, Any]) -> None:
    """Let a command line name modules of the working folder, as `python train.py` there would.

    Not for the sake of a run folder's content, which must not choose what is imported: with
    `resume` or `run` only where `trust` names modules too. `resume=auto` is no such folder: there
    the command line is the whole configuration.

    Args:
        given: what the command line sets.
    """
    from gumbelrl.configs.resume import AUTO

    by_folder = "run" in given or given.get("resume", AUTO) != AUTO
    if "trust" in given or not by_folder:
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)  # last, so that it hides nothing that is installed


class Run:
    """One training run: build, learn, evaluate, write the run folder, print the table.

    Args:
        config: what `compose` returned: the settings of config.yaml and the three groups.
        auto: a run that is finished already is no mistake.
    """

    program = "train.py"  # what messages begin with

    def __init__(self, config: dict[str, Any], auto: bool = False) -> None:
        self.config = config
        self.auto = auto
        self.interrupted = False
        self.failure: Exception | None = None

    def execute(self) -> int:
        """Run to the end; returns the exit code. Bad input ends in one line, nothing half done.

        Once it is built, a run writes its end whatever happens: an interrupt and a failure are kept
        in `interrupted` and `failure`.
        """
        from gumbelrl.configs.resume import RunFinished
        from gumbelrl.tracking import RunFolderError, StopSignals, first_line

        self.started = time.perf_counter()
        with StopSignals() as self.signals, ExitStack() as self.closing:
            try:
                self._build()
            except RunFinished as error:
                if not self.auto:
                    return self._refuse(str(error))
                print(error)
                return 0
            except (ValueError, TypeError, RunFolderError) as error:
                if isinstance(error, TypeError) and "unexpected keyword" not in str(error):
                    raise
                from gumbelrl.gumbel.choices import DoesNotApply

                code = DOES_NOT_APPLY if isinstance(error, DoesNotApply) else 2
                return self._refuse(first_line(error), code)
            except KeyboardInterrupt:
                return self._refuse("interrupted before training began", 130)
            self.heartbeat.start()
            try:
                self._attempt(self._train)
                self.signals.defer()
            except KeyboardInterrupt:  # between the two
                self.interrupted = True
            try:
                return self._end()
            finally:
                failed = "failed" if self.failure else "finished"
                self.heartbeat.stop("interrupted" if self.interrupted else failed)

    def _refuse(self, message: str, exit_code: int = 2) -> int:
        return _refuse(message, exit_code, self.program)

    @property
    def stopped(self) -> bool:
        """Whether the run will not come to its planned end."""
        return self.interrupted or self.failure is not None

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except KeyboardInterrupt:
            self.interrupted = True
        except Exception as error:
            self.failure = self.failure or error

    def _build(self) -> None:
        """Everything that can refuse its input, before anything is written but the folder."""
        import torch
        from gumbelrl.configs.build import (
            agent_name,
            build_agent,
            env_factory,
            env_for_agent,
            evaluating,
            load_agent,
            settings_source,
        )
        from gumbelrl.configs.devices import AUTO, faster_on_cpu, select_device
        from gumbelrl.configs.resume import RUNS
        from gumbelrl.tracking import (
            RunFolder,
            Trackers,
            TrackingSettings,
            default_run_dir,
            resolve_mode,
        )

        config = self.config
        torch.set_num_threads(config["threads"])
        device = select_device(config["device"], resumed=config["resume"])
        tracking = TrackingSettings(
            **{key: value for key, value in config["tracking"].items() if key[0] != "_"}
        )
        resolve_mode(tracking.mode)  # refuses what WANDB_MODE may say
        checkpoint = self._open_folder() if config["resume"] is not None else None
        self.agent_name = agent_name(config["agent"]["_target_"])
        self.settings = settings_source(config)
        config["env"] = env_for_agent(config["env"], config["agent"])
        self.env_id = str(config["env"].get("id", config["env"]["_target_"]))
        make_env = env_factory(config["env"])
        self.env = make_env(int(config["env"].get("n_envs", 1)), config["seed"])
        self.make_training_env = make_env
        self.make_env = evaluating(make_env, self._statistics)
        self.closing.callback(self._close_env)
        if checkpoint is None:
            self.agent = build_agent(config["agent"], self.env, config["seed"], device)
            advice = faster_on_cpu(self.agent, device) if config["device"] == AUTO else None
            if advice is not None:
                print(advice)
        else:
            self.agent = load_agent(config["agent"], self.env, device, checkpoint)
        if config["resume"] is None:
            default = default_run_dir(RUNS, self.agent_name, self.env_id, config["seed"])
            self.folder = RunFolder.create(config["run_dir"] or default)
            self.closing.enter_context(self.folder.locked())
        config["device"] = device  # a resumed run goes on where this one decided to run
        self.trackers = Trackers(tracking, self.folder)
        self._build_callbacks(checkpoint)

    def _open_folder(self) -> Checkpoint | None:
        """Take the folder of the run that goes on; returns the checkpoint to go on from."""
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.configs.resume import refuse_finished
        from gumbelrl.tracking import RunFolder, latest, open_checkpoint

        self.folder = RunFolder.open(self.config["resume"])
        self.closing.enter_context(self.folder.locked())
        refuse_finished(self.folder, self.config)
        last = latest(self.folder.checkpoints)
        if last is not None:
            return open_checkpoint(last)
        if self.folder.is_complete():
            raise ConfigError(
                f"resume: {self.folder.path} holds a finished run without checkpoints, so "
                "there is nothing to go on from; start a new run"
            )
        print(f"no checkpoint was written in {self.folder.path}: the run begins anew there")
        return None

    def _build_callbacks(self, checkpoint: Checkpoint | None) -> None:
        from gumbelrl.tracking import (
            CheckpointCallback,
            EvaluationCallback,
            Heartbeat,
            LogCallback,
            ProgressCallback,
            StopCallback,
            random_state,
        )
        from gumbelrl.tracking.run_state import load_state, restore_waiting, save_weights
        from stable_baselines3.common.logger import Logger

        config, folder = self.config, self.folder
        self.heartbeat = Heartbeat(folder.heartbeat_path, lambda: self.agent.num_timesteps)
        self.checkpoints = CheckpointCallback(
            config["checkpoint_every"],
            folder.checkpoints,
            self._saving(self._save_state),
            save_weights=self._saving(partial(save_weights, self.agent)),
            keep=config["checkpoint_keep"],
            after_scheduled=self._restart_environments,
        )
        self.evaluation = EvaluationCallback(
            self.make_env,
            eval_every=config["eval_every"],
            seed=config["seed"],
            episodes=config["eval_episodes"],
            stop_at_return=config["stop_at_return"],
            around=partial(self.heartbeat.during, "evaluating"),
            save_best=self.checkpoints.save_best,
        )
        self.earlier_seconds = 0.0
        self.tracker_state: Mapping[str, Any] = {}
        waiting: Mapping[str, tuple[Any, int]] = {}
        if checkpoint is not None:
            restored = load_state(self.agent, self.evaluation, config["env"], checkpoint, folder)
            self.earlier_seconds = restored.wall_seconds
            waiting = restored.waiting
            self.tracker_state = restored.tracker
        self.random = random_state()
        self.logger = Logger(str(folder.path), [])
        self.closing.callback(self.logger.close)
        self.agent.set_logger(self.logger)
        self._write_config()
        self._open_records(append=checkpoint is not None)
        restore_waiting(self.logger, waiting)
        self.train_seconds = self.evaluation.train_seconds
        self.progress = ProgressCallback(config["total_steps"], self.evaluation)
        self.callbacks = [
            StopCallback(self.signals),
            LogCallback(config["log_every"]),
            self.evaluation,
            self.checkpoints,
            self.progress,
        ]

    def _save_state(self, path: Path) -> dict[str, str]:
        from gumbelrl.tracking.run_state import save_state

        tracker = self.trackers.state()
        return save_state(self.agent, self.evaluation, self._seconds(), self.folder, path, tracker)

    def _statistics(self) -> dict[str, np.ndarray]:
        """Those by which the training environments normalise."""
        from gumbelrl.envs import read_statistics

        normalize = self.agent.get_vec_normalize_env()
        return {} if normalize is None else read_statistics(normalize)

    def _restart_environments(self) -> None:
        from gumbelrl.tracking import RunFolderError, first_line, latest, restart_environments

        try:
            restart_environments(self.agent, self.env, self.make_training_env, self.config["seed"])
        except ValueError as error:
            last = latest(self.folder.checkpoints)
            remedy = f"{last} is complete: repair the environment, then resume" if last else ""
            raise RunFolderError(
                "the environments cannot be made anew after the checkpoint at "
                f"{self.agent.num_timesteps} steps ({first_line(error)}); {remedy}"
            ) from error

    def _train(self) -> None:
        self._start()
        try:
            self._learn()
        finally:
            self.progress.close()
            self.train_seconds = self.evaluation.train_seconds
        self._evaluate()
        self._check_last_checkpoint()

    def _start(self) -> None:
        """Start the trackers and say so."""
        from gumbelrl.configs.build import env_factory, evaluating

        config, env_steps = self.config, self.agent.num_timesteps
        self._announce()
        lines = self.trackers.start(
            config, env_steps, self.tracker_state, agent_name=self.agent_name
        )
        print("\n".join(lines))
        self.logger.output_formats += self.trackers.outputs
        self.callbacks += self.trackers.histograms(config["log_every"])
        if config["tracking"]["videos_every"]:
            drawing = env_factory({**config["env"], "render_mode": "rgb_array"})
            film_env = evaluating(drawing, self._statistics)
            self.evaluation.after = partial(
                self.trackers.film, self.agent, film_env, config["seed"]
            )

    def _announce(self) -> None:
        seed, device = self.config["seed"], self.agent.device
        print(f"{self.agent_name} on {self.env_id}, seed {seed}, {device}")
        print(f"settings: {self.settings}\nrun folder: {self.folder.path}")

    def _learn(self) -> None:
        from gumbelrl.tracking import set_random_state

        if self._over():
            return
        set_random_state(self.random)  # whatever trackers have drawn while they started
        if self.agent.num_timesteps > 0:
            self._restart_environments()
        with self.heartbeat.during("training"):
            self.agent.learn(
                self.config["total_steps"] - self.agent.num_timesteps,
                callback=self.callbacks,  # type: ignore[arg-type]
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=False,
            )

    def _over(self) -> bool:
        """Whether the checkpoint to go on from is the last: only the end of the run was missing."""
        reached = self.evaluation.reached is not None
        return reached or self.agent.num_timesteps >= self.config["total_steps"]

    def _check_last_checkpoint(self) -> None:
        """Try again where the last one could not be written, and fail if that fails too."""
        from gumbelrl.tracking import RunFolderError, latest
        from gumbelrl.tracking.checkpoints import checkpoint_steps

        env_steps = self.agent.num_timesteps
        last = latest(self.folder.checkpoints)
        if last is not None and checkpoint_steps(last) >= env_steps:
            return
        if self.checkpoints.save_now(env_steps) is None:
            since = f"since {last.name} " if last else ""
            raise RunFolderError(
                f"the last checkpoint could not be written in {self.folder.path}: what was learned "
                f"{since}ends with this process. Free space there, or make it writable, then resume"
            )

    def _evaluate(self) -> None:
        """The final evaluation, unless the last one was made here with as many episodes."""
        from gumbelrl.tracking import evaluate, final_evaluation_seed, log_evaluation

        episodes, env_steps = self.config["eval_episodes"], self.agent.num_timesteps
        last = self.evaluation.last
        if last and last.episodes == episodes and self.evaluation.last_env_steps == env_steps:
            return
        seed = final_evaluation_seed(self.config["seed"])
        with self.heartbeat.during("evaluating"):
            last = evaluate(self.agent, self.make_env, episodes, seed)
        self.evaluation.last, self.evaluation.last_env_steps = last, env_steps
        log_evaluation(self.logger, last, env_steps)

    def _end(self) -> int:
        """summary.json, the tracker's end, the table; returns the exit code."""
        summary = self._summary()
        self._attempt(lambda: self.folder.write_summary(summary))
        exit_code = self._exit_code()
        evaluation = self.evaluation
        self.trackers.finish(
            summary,
            1 if self.failure else exit_code,
            last=(evaluation.last_env_steps, evaluation.last),
            best_one=(evaluation.best_env_steps, evaluation.best),
        )
        self._print_table(summary)
        self._tell_failure()
        return exit_code

    def _exit_code(self) -> int:
        if self._told():
            return 2
        return 130 if self.interrupted else 1 if self.failure else 0

    def _told(self) -> bool:
        """Whether one line says all about the failure."""
        from gumbelrl.envs import NonFiniteError
        from gumbelrl.tracking import RunFolderError

        return isinstance(self.failure, NonFiniteError | RunFolderError)

    def _tell_failure(self) -> None:
        from gumbelrl.tracking import first_line

        if self.failure is None:
            return
        if self._told():
            self._refuse(first_line(self.failure))
        else:
            traceback.print_exception(self.failure)

    def _summary(self) -> dict[str, Any]:
        from dataclasses import asdict

        from gumbelrl.tracking import brief, environment_versions, git_commit

        config, env_steps = self.config, self.agent.num_timesteps
        summary: dict[str, Any] = {
            "agent": self.agent_name,
            "env": self.env_id,
            "seed": config["seed"],
            "settings": self.settings,
            "env_steps": env_steps,
            "wall_seconds": round(self._seconds(), 3),
            "train_seconds": round(self.train_seconds, 3),
            "steps_per_second": round(env_steps / max(self.train_seconds, 1e-9), 1),
            "complete": not self.stopped,
            "checkpoints": self.checkpoints.totals(),
            "device": str(self.agent.device),
            "versions": environment_versions(),
            "git_commit": git_commit(),
            "command": f"{programs()[0]} {shlex.join(sys.argv[1:])}",
        }
        result = self.evaluation.last
        if result is not None:
            summary["eval"] = {
                "env_steps": self.evaluation.last_env_steps,
                "seed": result.seed,
                "episodes": result.episodes,
                "return_mean": result.mean,
                "return_std": result.std,
                "return_min": result.min,
                "return_max": result.max,
                "return_interval": list(result.interval),
            }
        if config["stop_at_return"] is not None:
            reached = self.evaluation.reached
            summary["stop_at_return"] = config["stop_at_return"]
            summary["reached"] = asdict(reached) if reached else None
        if self.failure is not None:
            summary["failure"] = brief(self.failure)
        return summary

    def _print_table(self, summary: Mapping[str, Any]) -> None:
        from gumbelrl.tracking import best, end_table, latest
        from rich.console import Console

        table = end_table(
            summary,
            run_dir=self.folder.path,
            interrupted=self.interrupted,
            last_checkpoint=latest(self.folder.checkpoints),
            best_checkpoint=best(self.folder.checkpoints),
            tracking=self.trackers.report(),
            programs=programs(),
        )
        # In a file or a pipe paths and commands stay on one line, to be copied.
        Console(width=None if sys.stdout.isatty() else 160).print(table)

    def _saving(self, save: Save) -> Save:
        """`save`, in a run folder that is there."""

        def save_in_folder(path: Path) -> Any:
            with self.heartbeat.during("saving"):
                if not self.folder.config_path.exists():
                    self._make_folder_again()
                return save(path)

        return save_in_folder

    def _make_folder_again(self) -> None:
        """Somebody removed it: what is learned from here on is kept all the same."""
        print(
            f"train.py: the run folder {self.folder.path} was removed while the run goes on; it is "
            "made again, with a checkpoint and the metrics from here on",
            file=sys.stderr,
        )
        self.closing.enter_context(self.folder.locked())
        self._write_config()
        self._open_records(append=False)

    def _write_config(self) -> None:
        self.folder.write_config({**self.config, "resume": None})

    def _open_records(self, append: bool) -> None:
        """metrics.jsonl and evaluations.jsonl, the first outputs of the logger."""
        from gumbelrl.tracking import EpisodesWriter, JsonlWriter, RunFolderError

        metrics, episodes = self.folder.records
        try:
            self.logger.output_formats[:2] = [
                JsonlWriter(metrics, append=append),
                EpisodesWriter(episodes, append=append),
            ]
        except OSError as error:
            raise RunFolderError(
                f"cannot write in {self.folder.path}: {error.strerror}; free space there, or make "
                "it writable"
            ) from error

    def _close_env(self) -> None:
        with suppress(Exception):  # nothing more is asked of it
            self.env.close()

    def _seconds(self) -> float:
        """Wall time of the run so far, earlier segments included."""
        return self.earlier_seconds + time.perf_counter() - self.started


def programs() -> tuple[str, str]:
    """How the user starts training and evaluation: installed scripts, or files of a checkout."""
    if Path(sys.argv[0]).name.startswith("gumbelrl-"):
        return "gumbelrl-train", "gumbelrl-evaluate"
    return "python train.py", "python evaluate.py"


if __name__ == "__main__":
    sys.exit(main())
