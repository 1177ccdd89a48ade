"""What the user sees while training goes on."""

from gumbelrl.tracking.evaluation import EvaluationCallback
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback


class ProgressCallback(BaseCallback):
    """A bar on a terminal; elsewhere a plain line per evaluation and at most every 10 seconds.

    Shows env steps, steps/s, the last evaluation, the last training return and the time left.

    Args:
        total_steps: env steps of the whole run; None takes the agent's own figure.
        evaluation: where the last evaluation is read from; place this callback after it.
        console: where to print; None is standard error.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        evaluation: EvaluationCallback | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def close(self) -> None:
        """Take the bar off the terminal; call it in a `finally`, twice does nothing."""
        raise NotImplementedError

    def _on_step(self) -> bool:
        raise NotImplementedError
