"""Train one agent on one environment: python train.py agent=gumbel_sac env=cartpole seed=0

    python train.py env=LunarLander-v3 total_steps=300000     any Gymnasium environment by its id
    python train.py agent.estimator=exact agent.gamma=0.98    any argument of the agent
    python train.py agent.temperature='{schedule: linear, start: 2, end: 0.5}'
    python train.py resume=runs/NAME                          go on from the last checkpoint

Overrides are key=value in Hydra's grammar. The keys and their defaults:
"""

from __future__ import annotations

import json
import random
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

# A resumed run is the same run; these are the only keys that may change.
RESUMABLE = ("total_steps", "stop_at_return", "trust", "tracking")


def help_text() -> str:
    """What `--help` prints, from config.yaml itself."""
    from gumbelrl.configs.compose import CONFIG_DIR, GROUPS, group_options

    lines = (CONFIG_DIR / "config.yaml").read_text().splitlines()
    keys = [f"  {line}" for line in lines[lines.index("") + 1 :] if line]
    groups = [f"  {group}=  {', '.join(group_options(group))}" for group in GROUPS]
    return "\n".join([__doc__ or "", *keys, "", "Groups:", *groups])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(help_text())
        return 0
    from gumbelrl.configs.compose import ConfigError, compose

    try:
        config = compose(arguments)
        if config["resume"] is not None:
            config = resumed_config(config, arguments)
    except ConfigError as error:
        return _refuse(str(error))
    return Run(config).execute()


def _refuse(message: str) -> int:
    print(f"train.py: {message}", file=sys.stderr)
    return 2


def resumed_config(config: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run folder named by `resume`, with what may change changed.

    Raises:
        ConfigError: not a run, a key that may not change, or code that is not trusted.
    """
    from gumbelrl.configs.compose import ConfigError, check_config, check_trusted
    from gumbelrl.tracking import RunFolder, RunFolderError

    given = {argument.lstrip("+~").split("=")[0].split(".")[0] for argument in arguments}
    fixed = sorted(given - {"resume", *RESUMABLE})
    if fixed:
        raise ConfigError(
            f"a resumed run keeps its configuration: {', '.join(fixed)} cannot change, "
            f"only {', '.join(RESUMABLE)} can. Start a new run for the rest"
        )
    try:
        folder = RunFolder.open(config["resume"])
        stored = folder.read_config()
    except RunFolderError as error:
        raise ConfigError(f"resume: {error}") from error
    check_trusted(stored, config["trust"])
    changed = {key: config[key] for key in RESUMABLE if key in given}
    return check_config({**stored, **changed, "resume": str(folder.path), "run_dir": None})


def select_device(name: str) -> str:
    """`auto` is CUDA where there is one; ConfigError for a device that torch does not have."""
    import torch
    from gumbelrl.configs.compose import ConfigError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is unknown: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if (device.index or 0) >= n_devices:
            raise ConfigError(
                f"device={name}, but this torch sees {n_devices} CUDA devices: use device=auto or "
                "device=cpu, or install a CUDA build of torch"
            )
    return name


class Run:
    """One training run: build, learn, evaluate, write the run folder, print the table.

    Args:
        config: what `compose` returned: the settings of config.yaml and the three groups.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.interrupted = False
        self.failure: str | None = None

    def execute(self) -> int:
        """Run to the end; returns the exit code. Bad input ends in one line, nothing half done."""
        from gumbelrl.tracking import RunFolderError

        self.started = time.perf_counter()
        try:
            self._build()
        except (ValueError, TypeError, RunFolderError) as error:
            if isinstance(error, TypeError) and "unexpected keyword" not in str(error):
                raise
            return _refuse(str(error).splitlines()[0])
        self._announce()
        try:
            self._learn()
            summary = self._summarise()
        finally:
            self.progress.close()
            exit_code = 130 if self.interrupted else 2 if self.failure else 0
            self.wandb.close(exit_code)
            self.logger.close()
            self.env.close()
        self._print_end(summary)
        if self.failure:
            return _refuse(self.failure)
        return exit_code

    def _build(self) -> None:
        """Everything that can refuse its input, before anything is written but the folder."""
        import torch
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import RunFolder, WandbSettings, default_run_dir, latest

        config = self.config
        torch.set_num_threads(config["threads"])
        device = select_device(config["device"])
        self.agent_name = agent_name(config["agent"]["_target_"])
        self.env_id = str(config["env"].get("id", config["env"]["_target_"]))
        checkpoint = None
        if config["resume"] is not None:
            self.folder = RunFolder.open(config["resume"])
            checkpoint = latest(self.folder.checkpoints)
            if checkpoint is None:
                raise ConfigError(
                    f"resume: {self.folder.path} has no checkpoint yet; start a new run"
                )
        self.tracking = WandbSettings(
            **{key: value for key, value in config["tracking"].items() if key[0] != "_"}
        )
        self.make_env = env_factory(config["env"])
        self.env = self.make_env(int(config["env"].get("n_envs", 1)), config["seed"])
        self.agent = build_agent(config["agent"], self.env, config["seed"], device, checkpoint)
        if self.agent.num_timesteps >= config["total_steps"]:
            raise ConfigError(
                f"this run is finished: it has made {self.agent.num_timesteps} of "
                f"{config['total_steps']} steps. To go on, add a larger total_steps="
            )
        if checkpoint is None:
            path = config["run_dir"] or default_run_dir(
                "runs", self.agent_name, self.env_id, config["seed"]
            )
            self.folder = RunFolder.create(path)
        config["device"] = device  # a resumed run goes on where this one decided to run
        self.folder.write_config({**config, "resume": None})
        self._build_callbacks(checkpoint)

    def _build_callbacks(self, checkpoint: Path | None) -> None:
        from gumbelrl.tracking import (
            CheckpointCallback,
            EvaluationCallback,
            JsonlWriter,
            ProgressCallback,
            start_wandb,
        )
        from stable_baselines3.common.logger import Logger

        config, folder = self.config, self.folder
        best = CheckpointCallback(1, folder.checkpoints, self._save_weights)
        self.evaluation = EvaluationCallback(
            self.make_env,
            eval_every=config["eval_every"],
            seed=config["seed"],
            episodes=config["eval_episodes"],
            stop_at_return=config["stop_at_return"],
            save_best=best.save_best,
        )
        self.checkpoints = CheckpointCallback(
            config["checkpoint_every"], folder.checkpoints, self._save_state
        )
        self.earlier_seconds = 0.0
        if checkpoint is not None:
            self._load_state(checkpoint)
        self.wandb = start_wandb(self.tracking, folder.path, config)
        metrics = JsonlWriter(folder.metrics_path, append=checkpoint is not None)
        self.logger = Logger(str(folder.path), [metrics, self.wandb])
        self.agent.set_logger(self.logger)
        self.progress = ProgressCallback(config["total_steps"], self.evaluation)

    def _announce(self) -> None:
        config = self.config
        name = f"{self.agent_name} on {self.env_id}, seed {config['seed']}, {self.agent.device}"
        print(f"{name}\nrun folder: {self.folder.path}\n{self.wandb.reason}")

    def _learn(self) -> None:
        from gumbelrl.envs import NonFiniteError
        from gumbelrl.tracking import LogCallback, ResetAtCheckpoints

        config = self.config
        callbacks = [
            LogCallback(config["log_every"]),
            self.evaluation,
            self.checkpoints,
            ResetAtCheckpoints(config["checkpoint_every"], config["seed"]),
            self.progress,
        ]

        def stop(signum: int, frame: Any) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGTERM, stop)
        try:
            self.agent.learn(
                config["total_steps"] - self.agent.num_timesteps,
                callback=callbacks,  # type: ignore[arg-type]
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=False,
            )
        except KeyboardInterrupt:
            self.interrupted = True
        except NonFiniteError as error:
            self.failure = str(error)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _summarise(self) -> dict[str, Any]:
        """The final evaluation where training came to its end, and summary.json."""
        from dataclasses import asdict

        from gumbelrl.tracking import (
            environment_versions,
            evaluate,
            git_commit,
            latest,
            log_evaluation,
        )

        config, env_steps = self.config, self.agent.num_timesteps
        train_seconds = self._seconds()
        result = self.evaluation.last
        complete = not self.interrupted and not self.failure
        if complete and (result is None or self.evaluation.reached is None):
            from gumbelrl.tracking import derive_seed

            result = evaluate(
                self.agent,
                self.make_env,
                config["eval_episodes"],
                derive_seed(config["seed"], "final evaluation"),
            )
            log_evaluation(self.logger, result, env_steps)
        summary: dict[str, Any] = {
            "agent": self.agent_name,
            "env": self.env_id,
            "seed": config["seed"],
            "env_steps": env_steps,
            "wall_seconds": round(train_seconds, 3),
            "steps_per_second": round(env_steps / train_seconds, 1),
            "complete": complete,
            "device": str(self.agent.device),
            "versions": environment_versions(),
            "git_commit": git_commit(),
            "command": shlex.join(["python", *sys.argv]),
        }
        if result is not None:
            summary["eval"] = {
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
        if self.failure:
            summary["failure"] = self.failure
        self.folder.write_summary(summary)
        self.wandb.summarise(summary)
        self.last_checkpoint = latest(self.folder.checkpoints)
        return summary

    def _print_end(self, summary: Mapping[str, Any]) -> None:
        from gumbelrl.tracking import best, end_table
        from rich.console import Console

        table = end_table(
            summary,
            run_dir=self.folder.path,
            interrupted=self.interrupted or self.failure is not None,
            last_checkpoint=self.last_checkpoint,
            best_checkpoint=best(self.folder.checkpoints),
            url=self.wandb.url,
            sync_command=self.wandb.sync_command,
        )
        Console().print(table)

    def _seconds(self) -> float:
        """Wall time of the run so far, earlier segments included."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def _save_weights(self, path: Path) -> None:
        self.agent.save(path / "agent.zip")

    def _save_state(self, path: Path) -> None:
        """Fill a checkpoint with everything that training goes on from."""
        import numpy as np
        import torch

        self._save_weights(path)
        if hasattr(self.agent, "save_replay_buffer"):
            self.agent.save_replay_buffer(path / "replay.safetensors")
        version, keys, position, *gauss = np.random.get_state(legacy=True)  # noqa: NPY002
        python = random.getstate()
        state = {
            "env_steps": self.agent.num_timesteps,
            "wall_seconds": self._seconds(),
            "evaluation": self.evaluation.state_dict(),
            "episodes": list(self.agent.ep_info_buffer or ()),
            "rng": {
                "python": [python[0], list(python[1]), python[2]],
                "numpy": [version, keys.tolist(), position, *gauss],  # type: ignore[union-attr]
                "torch": torch.get_rng_state().tolist(),
            },
        }
        (path / "state.json").write_text(json.dumps(state))

    def _load_state(self, checkpoint: Path) -> None:
        """Put back what `_save_state` wrote beside the agent, and cut later rows of metrics."""
        import numpy as np
        import torch
        from gumbelrl.tracking import cut_metrics

        state = json.loads((checkpoint / "state.json").read_text())
        self.earlier_seconds = state["wall_seconds"]
        self.evaluation.load_state_dict(state["evaluation"])
        cut_metrics(self.folder.metrics_path, state["env_steps"])
        python, numpy = state["rng"]["python"], state["rng"]["numpy"]
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state((numpy[0], np.array(numpy[1], np.uint32), *numpy[2:]))  # noqa: NPY002
        torch.set_rng_state(torch.tensor(state["rng"]["torch"], dtype=torch.uint8))
        window = self.agent._stats_window_size
        self.agent.ep_info_buffer = deque(state["episodes"], maxlen=window)
        self.agent.ep_success_buffer = deque(maxlen=window)


def agent_name(target: str) -> str:
    """The registry's name of an agent class, or the class's own."""
    from gumbelrl.agents import AGENTS

    for name, cls in AGENTS.items():
        if target.rpartition(".")[2] == cls.__name__:
            return name
    return target.rpartition(".")[2]


def env_factory(node: Mapping[str, Any]) -> Callable[[int, int], VecEnv]:
    """`make_env(n_envs, seed)` from the `env` group."""
    from hydra.utils import instantiate

    settings = {key: value for key, value in node.items() if key != "n_envs"}
    factory = instantiate({**settings, "_partial_": True, "_convert_": "all"})
    return lambda n_envs, seed: factory(n_envs=n_envs, seed=seed)


def agent_class(node: Mapping[str, Any]) -> Any:
    """The class that the `agent` group names."""
    from hydra.utils import get_class

    return get_class(node["_target_"])


def build_agent(
    node: Mapping[str, Any], env: VecEnv, seed: int, device: str, checkpoint: Path | None = None
) -> BaseAlgorithm:
    """The agent of the `agent` group, new or as a checkpoint holds it."""
    from hydra.utils import instantiate

    if checkpoint is not None:
        agent = agent_class(node).load(checkpoint / "agent.zip", env=env, device=device)
        if (checkpoint / "replay.safetensors").exists():
            agent.load_replay_buffer(checkpoint / "replay.safetensors")
        return agent
    factory = instantiate({**node, "_partial_": True, "_convert_": "all"})
    return factory(env=env, seed=seed, device=device)


if __name__ == "__main__":
    sys.exit(main())
