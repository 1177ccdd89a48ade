"""What the user sees while training goes on."""

import sys
import time
from collections import deque
from datetime import timedelta

from gumbelrl.tracking.evaluation import EvaluationCallback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from stable_baselines3.common.callbacks import BaseCallback

_SECONDS_PER_DRAW = 0.2
_SECONDS_PER_LINE = 10.0
_WINDOW_SECONDS = 20.0


class ProgressCallback(BaseCallback):
    """A bar on a terminal; elsewhere a plain line per evaluation and at most every 10 seconds.

    Shows env steps, steps/s, the last evaluation, the last training return and the time left.
    Between two updates, at most 5 a second, a step costs one look at the clock.

    Args:
        total_steps: env steps of the whole run; None takes the agent's own figure.
        evaluation: where the last evaluation is read from; place this callback after it.
        console: where to print; None is standard error.

    Raises:
        ValueError: `total_steps` below 1.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        evaluation: EvaluationCallback | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be >= 1 env step, got {total_steps}")
        self.total_steps = total_steps
        self.evaluation = evaluation
        self.console = console or Console(file=sys.stderr)
        self._progress: Progress | None = None
        self._due = 0.0
        self._seen_evaluation: object = None
        # (time, env steps) of the last while: the speed now, not that of the warm-up
        self._past: deque[tuple[float, int]] = deque()

    def close(self) -> None:
        """Take the bar off the terminal; call it in a `finally`, twice does nothing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _on_training_start(self) -> None:
        now = time.monotonic()
        self._past = deque([(now, self.num_timesteps)])
        self._seen_evaluation = self.evaluation.last if self.evaluation else None
        if self.console.is_terminal:
            self._due = now
            self._progress = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.description}"),
                console=self.console,
                auto_refresh=False,  # no thread: this callback draws
            )
            self._progress.add_task("", total=self._total(), completed=self.num_timesteps)
            self._progress.start()
        else:
            self._due = now + _SECONDS_PER_LINE

    def _on_step(self) -> bool:
        now = time.monotonic()
        evaluated = self.evaluation is not None and (
            self.evaluation.last is not self._seen_evaluation
        )
        if now >= self._due or evaluated:
            self._show(now)
        return True

    def _on_training_end(self) -> None:
        if self._progress is not None:
            self._show(time.monotonic())
        self.close()

    def _show(self, now: float) -> None:
        if self.evaluation is not None:
            self._seen_evaluation = self.evaluation.last
        self._past.append((now, self.num_timesteps))
        while len(self._past) > 2 and now - self._past[0][0] > _WINDOW_SECONDS:
            self._past.popleft()
        if self._progress is None:
            self._due = now + _SECONDS_PER_LINE
            self.console.print(self._line(), soft_wrap=True, markup=False, highlight=False)
        else:
            self._due = now + _SECONDS_PER_DRAW
            task = self._progress.task_ids[0]
            self._progress.update(
                task, completed=self.num_timesteps, total=self._total(), description=self._line()
            )
            self._progress.refresh()

    def _total(self) -> int:
        return self.total_steps or self.model._total_timesteps

    def _line(self) -> str:
        (then, steps_then), (now, steps_now) = self._past[0], self._past[-1]
        speed = (steps_now - steps_then) / (now - then) if now > then else 0.0
        parts = [f"{self.num_timesteps:,}/{self._total():,} steps", f"{speed:,.0f} steps/s"]
        if self.evaluation is not None and self.evaluation.last is not None:
            last = self.evaluation.last
            parts.append(f"eval {last.mean:.4g} ± {last.std:.3g} ({last.episodes} episodes)")
        if episodes := self.model.ep_info_buffer:
            mean = sum(episode["r"] for episode in episodes) / len(episodes)
            parts.append(f"training {float(mean):.4g}")
        if speed > 0:
            left = max(self._total() - self.num_timesteps, 0) / speed
            parts.append(f"{timedelta(seconds=round(left))} left")
        return " · ".join(parts)
