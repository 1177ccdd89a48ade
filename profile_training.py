"""See where a training second goes: python profile_training.py agent=gumbel_sac env=lunarlander

    steps=2000          environment steps that are measured, >= 1
    warm_up=null        steps before them; null: until learning is under way

and every key of train.py (python train.py --help), with train.py's own defaults but one: nothing is
tracked unless a key of `tracking` is given. The run is train.py's, in a folder that is removed at
the end unless run_dir names one. It is measured from one rollout's start to another's, so whole
updates count, and once more without the clock, which gives the steps/s. On a GPU the clock waits
for it at every change of phase: the shares are right, and how much longer that takes is printed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gumbelrl.agents.phases import PhaseClock, Times
    from gumbelrl.configs.compose import ProfileSettings
    from rich.table import Table

from gumbelrl.train import Run, see_working_folder

PROGRAM = "profile_training.py"
OWN_KEYS = ("steps", "warm_up")
LEARNING = 200  # steps beyond an agent's learning_starts before the first window


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as train.py's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    try:
        from gumbelrl.configs.compose import (
            ConfigError,
            ProfileSettings,
            compose,
            given_values,
            parse_settings,
        )

        try:
            own = [word for word in arguments if word.partition("=")[0] in OWN_KEYS]
            others = [word for word in arguments if word not in own]
            settings = parse_settings(own, ProfileSettings)
            given = given_values(others)
            if "resume" in given:
                raise ConfigError("resume= goes on with a run; a profile makes one of its own")
            if not any(key.split(".")[0] == "tracking" for key in given):
                others.append("tracking=disabled")
            see_working_folder(given)
            config = compose(others)
        except ConfigError as error:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            return 2
        with tempfile.TemporaryDirectory(prefix="gumbelrl-profile-") as folder:
            if config["run_dir"] is None:
                config["run_dir"] = str(Path(folder) / "run")
            return ProfileRun(config, settings).execute()
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted before training began", file=sys.stderr)
        return 130


@dataclass(frozen=True)
class Window:
    """What was measured from one rollout's start to another's.

    Args:
        times: seconds and calls by phase.
        env_steps: environment steps in it.
        updates: updates in it, as the agent counts them.
    """

    times: Times
    env_steps: int
    updates: int

    @property
    def training_seconds(self) -> float:
        """Without evaluations and checkpoints, whose share is a matter of settings."""
        besides = ("evaluation", "checkpoints")
        return self.times.total - sum(self.times.seconds.get(name, 0.0) for name in besides)

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of training."""
        return self.env_steps / max(self.training_seconds, 1e-9)

    @property
    def updates_per_second(self) -> float:
        """Updates per second of training."""
        return self.updates / max(self.training_seconds, 1e-9)


class MeasuredEnough(Exception):
    """Ends a run from inside."""


class ProfileRun(Run):
    """A run of train.py that is measured twice, with the clock and without, and then ends."""

    program = PROGRAM

    def __init__(self, config: dict[str, Any], settings: ProfileSettings) -> None:
        super().__init__(config)
        self.measured: list[Window] = []  # with the clock, then without
        self.asked = settings

    def _build_callbacks(self, checkpoint: Any) -> None:
        from gumbelrl.configs.compose import ConfigError

        learning_starts = getattr(self.agent, "learning_starts", 0)
        given = self.asked.warm_up
        self.warm_up = learning_starts + LEARNING if given is None else given
        wanted, total = self.warm_up + 2 * self.asked.steps, self.config["total_steps"]
        if wanted > total:
            raise ConfigError(
                f"steps={self.asked.steps} with a warm_up of {self.warm_up} are {wanted} in all, "
                "because they are measured twice; use fewer, or a total_steps, now "
                f"{total}, that has room for them"
            )
        super()._build_callbacks(checkpoint)

    def _announce(self) -> None:
        print(f"settings: {self.settings}")
        print(
            f"{self.warm_up:,} steps of warm-up, then {self.asked.steps:,} steps twice: with the "
            "clock and without it"
        )

    def _train(self) -> None:
        self._start()
        with ExitStack() as self.clocked:
            self._next_clock(whole_training=True)
            self.callbacks.append(_window_callback(self))
            try:
                self._learn()
            except MeasuredEnough:
                pass
            else:
                self._close_window()  # training came to its end by itself
            finally:
                if len(self.measured) == 0 and self._began is not None:
                    self._close_window()  # stopped in the midst of it
                self.progress.close()

    _began: tuple[int, int] | None = None  # env steps and updates where the window was opened

    def _next_clock(self, *, whole_training: bool) -> None:
        """Measure with all phases, or with those alone that are no training."""
        from gumbelrl.agents.phases import PhaseClock, TimedMethod, timed_methods
        from gumbelrl.tracking import CheckpointCallback, EvaluationCallback

        self.clocked.close()
        beside = [
            TimedMethod(EvaluationCallback, "_evaluate", "evaluation", whole=True),
            TimedMethod(CheckpointCallback, "_on_rollout_start", "checkpoints", whole=True),
        ]
        self.clock: PhaseClock = PhaseClock(settle=_waiting_for(self.agent.device))
        training = timed_methods(self.agent) if whole_training else []
        self.clocked.enter_context(self.clock.around([*training, *beside]))

    def _at_rollout_start(self) -> None:
        """Open a window, close it, or neither."""
        now = self.agent.num_timesteps
        if self._began is None:
            if now >= self.warm_up:
                self._open_window()
        elif now - self._began[0] >= self.asked.steps:
            self._close_window()
            if len(self.measured) == 2:
                raise MeasuredEnough
            self._next_clock(whole_training=False)
            self._open_window()

    def _open_window(self) -> None:
        self._began = self.agent.num_timesteps, self.agent._n_updates
        self.clock.restart()

    def _close_window(self) -> None:
        if self._began is None:
            return
        steps, updates = self._began
        env_steps = self.agent.num_timesteps - steps
        window = Window(self.clock.read(), env_steps, self.agent._n_updates - updates)
        self.measured.append(window)

    def _end(self) -> int:
        """The table of what was measured; returns the exit code."""
        from rich.console import Console

        exit_code = self._exit_code()
        self.trackers.finish({"env_steps": self.agent.num_timesteps}, exit_code)
        if self.measured and self.measured[0].env_steps:
            title = f"{self.agent_name} on {self.env_id}, {place(self.agent.device)}"
            console = Console(width=None if sys.stdout.isatty() else 100)
            console.print(title, highlight=False)
            console.print(profile_table(self.measured[0]))
            print(speed_lines(self.measured))
        elif self.failure is None:
            self._refuse("stopped in the warm-up: nothing was measured")
        self._tell_failure()
        return exit_code


def place(device: Any) -> str:
    """Where it was measured: the device, its name, and torch's threads."""
    import torch

    threads = torch.get_num_threads()
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device
    return f"{name}, {threads} CPU thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def profile_table(window: Window) -> Table:
    """Share, ms per environment step and calls of each phase that took any time."""
    from gumbelrl.agents.phases import PHASES
    from rich.table import Table

    table = Table(show_footer=True)
    total, steps = window.times.total, window.env_steps
    table.add_column("phase", "whole")
    table.add_column("share", f"{1:.1%}", justify="right")
    table.add_column("ms/step", f"{1e3 * total / steps:.4f}", justify="right")
    table.add_column("calls", justify="right")
    seconds: Mapping[str, float] = window.times.seconds
    for name in sorted(seconds, key=PHASES.index):
        calls = window.times.calls.get(name)
        table.add_row(
            name,
            f"{seconds[name] / total:.1%}",
            f"{1e3 * seconds[name] / steps:.4f}",
            "" if calls is None else f"{calls:,}",
        )
    return table


def speed_lines(measured: Sequence[Window]) -> str:
    """Steps and updates per second, without the clock where that was measured too."""
    names = ("with the clock", "without it")
    speeds = [
        f"{name}: {window.steps_per_second:,.0f} steps/s, "
        f"{window.updates_per_second:,.0f} updates/s over {window.env_steps:,} steps"
        for name, window in zip(names, measured, strict=False)
        if window.env_steps
    ]
    return "\n".join([*speeds, "(evaluations and checkpoints left out)"])


def _window_callback(run: ProfileRun) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class WindowCallback(BaseCallback):
        def _on_rollout_start(self) -> None:
            run._at_rollout_start()

        def _on_step(self) -> bool:
            return True

    return WindowCallback()


def _waiting_for(device: Any) -> Any:
    """What the clock calls before each look at it: a GPU works on while its host measures."""
    import torch

    if device.type != "cuda":
        return None

    def settle() -> None:
        if not torch.cuda.is_current_stream_capturing():  # a graph that is captured must not wait
            torch.cuda.synchronize(device)

    return settle


if __name__ == "__main__":
    sys.exit(main())
