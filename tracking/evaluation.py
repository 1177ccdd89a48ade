"""How good an agent is: fresh environments, whole episodes, nothing of the training touched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

MakeEnv = Callable[[int, int], VecEnv]
"""`make_env(n_envs, seed) -> VecEnv`; the caller of it closes what it gets."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (env steps) of whole episodes, in the order they ended."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return."""
        raise NotImplementedError

    @property
    def std(self) -> float:
        """Standard deviation of the returns (divides by N, as Stable-Baselines3 does)."""
        raise NotImplementedError

    @property
    def min(self) -> float:
        """Lowest return."""
        raise NotImplementedError

    @property
    def max(self) -> float:
        """Highest return."""
        raise NotImplementedError

    @property
    def length_mean(self) -> float:
        """Mean length in env steps."""
        raise NotImplementedError

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean return, Student's t; NaN for one episode."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reached:
    """The first confirmed arrival at `stop_at_return`.

    Args:
        env_steps: training steps taken until then.
        train_seconds: wall time of training until then, evaluations left out.
        total_seconds: wall time until the confirmation ended.
        return_mean: mean return of the confirming episodes.
        episodes: how many those were.
    """

    env_steps: int
    train_seconds: float
    total_seconds: float
    return_mean: float
    episodes: int


def evaluate(
    agent: Any,
    make_env: MakeEnv,
    episodes: int,
    seed: int,
    n_envs: int = 10,
    deterministic: bool = True,
) -> Evaluation:
    """Play whole episodes in environments made for it, and close them.

    Episodes are dealt to the environments in advance (Stable-Baselines3's `evaluate_policy`), so
    short episodes are not counted more often than long ones. The global random streams of Python,
    NumPy and torch, the generators the agent holds, and the policy's train/eval mode are put
    back as they were.

    Args:
        agent: anything with Stable-Baselines3's `predict`.
        make_env: `make_env(n_envs, seed) -> VecEnv`.
        episodes: number of episodes, >= 1.
        seed: seed of the environments, >= 0.
        n_envs: environments stepped together, >= 1; no more than `episodes` are made.
        deterministic: take the most likely action instead of a sampled one.

    Raises:
        ValueError: `episodes` or `n_envs` below 1.
    """
    raise NotImplementedError


def log_evaluation(logger: Logger, evaluation: Evaluation, env_steps: int, **extra: float) -> None:
    """Write an evaluation as a row of its own to every output of the logger.

    Values that wait for the logger's next dump are left alone.
    """
    raise NotImplementedError


class EvaluationCallback(BaseCallback):
    """Evaluates the agent every `eval_every` env steps, and stops at a confirmed threshold.

    Each evaluation screens with `screen_episodes` episodes. When their mean reaches
    `stop_at_return`, `episodes` other episodes confirm it, and if they do, training ends. The
    screen decides only whether to look closer, so the figure reported is not picked from many.

    Args:
        make_env: `make_env(n_envs, seed) -> VecEnv`.
        eval_every: env steps between evaluations, >= 1; when `n_envs` does not divide it, the
            first step at or after each multiple.
        seed: the run's seed; the environments' seeds derive from it and the evaluation's number.
        episodes: confirming episodes, >= 1.
        screen_episodes: screening episodes, >= 1.
        n_envs: evaluation environments stepped together, >= 1.
        stop_at_return: mean return at which training ends; None trains on.
        deterministic: evaluate the most likely action.
        save_best: `save_best(env_steps, evaluation)`, called when the mean return is the best of
            this run so far.

    Attributes:
        last: the last `Evaluation`, or None.
        last_env_steps: env steps at which it was made.
        best: the best `Evaluation` so far, or None.
        reached: a `Reached`, or None.
        evaluation_seconds: wall time spent in evaluations.
    """

    last: Evaluation | None
    last_env_steps: int
    best: Evaluation | None
    reached: Reached | None
    evaluation_seconds: float

    def __init__(
        self,
        make_env: MakeEnv,
        *,
        eval_every: int,
        seed: int,
        episodes: int = 100,
        screen_episodes: int = 10,
        n_envs: int = 10,
        stop_at_return: float | None = None,
        deterministic: bool = True,
        save_best: Callable[[int, Evaluation], None] | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON data."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        raise NotImplementedError

    def _on_step(self) -> bool:
        raise NotImplementedError
