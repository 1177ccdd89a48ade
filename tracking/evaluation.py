"""How good an agent is: fresh environments, whole episodes, nothing of the training touched."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from gumbelrl.tracking.metrics import EpisodesWriter
from gumbelrl.tracking.seeds import derive_seed
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

MakeEnv = Callable[[int, int], VecEnv]
"""`make_env(n_envs, seed) -> VecEnv`; whoever calls it closes what it gets."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (env steps) of whole episodes, in the order they ended.

    `seed` is that of the environments they were played in.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    seed: int | None = None

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns (divides by N, as Stable-Baselines3 does)."""
        return float(np.std(self.returns))

    @property
    def min(self) -> float:
        """Lowest return."""
        return float(np.min(self.returns))

    @property
    def max(self) -> float:
        """Highest return."""
        return float(np.max(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean length in env steps."""
        return float(np.mean(self.lengths))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean return, Student's t; NaN for one episode."""
        n = self.episodes
        if n < 2:
            return math.nan, math.nan
        half = _t_975(n - 1) * float(np.std(self.returns, ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half


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
    back as they were. Where the environments mask actions and `predict` takes `action_masks`, it
    is given them.

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
    _at_least_one(episodes=episodes, n_envs=n_envs)
    with undisturbed(agent):
        env = make_env(min(n_envs, episodes), seed)
        try:
            returns, lengths = evaluate_policy(
                WithMasks(agent, env),  # type: ignore[arg-type]
                env,
                n_eval_episodes=episodes,
                deterministic=deterministic,
                return_episode_rewards=True,
                warn=False,  # without Monitor the rewards that `step` returns are what counts
            )
        finally:
            env.close()
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return Evaluation(tuple(map(float, returns)), tuple(map(int, lengths)), seed)


class WithMasks:
    """An agent that hears which actions its environments allow, where both know of masks."""

    def __init__(self, agent: Any, env: VecEnv) -> None:
        self.agent, self.env = agent, env
        self.masked: bool | None = None

    def predict(self, observation: Any, **kwargs: Any) -> Any:
        if self.masked is None:  # masks that stand in infos are known once episodes have begun
            takes_masks = "action_masks" in signature(self.agent.predict).parameters
            self.masked = takes_masks and self.env.has_attr("action_masks")
        if self.masked:
            kwargs["action_masks"] = np.stack(self.env.env_method("action_masks"))
        return self.agent.predict(observation, **kwargs)


def log_evaluation(
    logger: Logger,
    evaluation: Evaluation,
    env_steps: int,
    extra: Mapping[str, float] | None = None,
) -> None:
    """Write an evaluation as a row of its own to every output of the logger, and its episodes to
    an `EpisodesWriter` among them.

    Values that wait for the logger's next dump are left alone.

    Args:
        logger: Stable-Baselines3's logger of the agent.
        evaluation: what to write.
        env_steps: training steps taken until then.
        extra: further values; those that depend on a clock under `time/`.
    """
    row: dict[str, Any] = {
        "eval/return_mean": evaluation.mean,
        "eval/return_std": evaluation.std,
        "eval/episodes": evaluation.episodes,
        "eval/length_mean": evaluation.length_mean,
        **(extra or {}),
    }
    for output in logger.output_formats:
        if isinstance(output, EpisodesWriter):
            output.write_evaluation(evaluation, env_steps)
        elif isinstance(output, KVWriter):
            output.write(dict(row), dict.fromkeys(row, ("",)), env_steps)


class EvaluationCallback(BaseCallback):
    """Evaluates the agent every `eval_every` env steps, and stops at a confirmed threshold.

    Each evaluation screens with `screen_episodes` episodes. When their mean reaches
    `stop_at_return`, `episodes` other episodes confirm it, and if they do, training ends. The
    screen decides only whether to look closer, so the figure reported is not picked from many.
    Each is a row of its own in the metrics, with its number of episodes.

    Evaluation number n is the one due at n * `eval_every` env steps; its environments are seeded
    from the run's seed and n, so a resumed run evaluates as an undisturbed one does.

    Args:
        make_env: `make_env(n_envs, seed) -> VecEnv`.
        eval_every: env steps between evaluations, >= 1; when `n_envs` does not divide it, the
            first step at or after each multiple.
        seed: the run's seed, >= 0.
        episodes: confirming episodes, >= 1.
        screen_episodes: screening episodes, >= 1.
        n_envs: evaluation environments stepped together, >= 1.
        stop_at_return: mean return at which training ends; None trains on.
        deterministic: evaluate the most likely action.
        around: entered around each evaluation.
        save_best: `save_best(env_steps, evaluation)`, called when the mean return is the best of
            this run so far, or confirmed. It is called between two env steps, not between a
            gradient update and a rollout: for a model to use, not to resume from.

    Attributes:
        after: `after(number, env_steps)`, called when an evaluation's rows are written; its time
            counts as evaluation. None at first.
        last: the last `Evaluation`, or None.
        last_env_steps: env steps at which it was made.
        best: the best `Evaluation` so far, or None.
        best_env_steps: env steps at which that was made.
        reached: a `Reached`, or None.
        evaluation_seconds: wall time spent in evaluations.

    Raises:
        ValueError: a count below 1, or a threshold that is not a number.
    """

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
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
        save_best: Callable[[int, Evaluation], Any] | None = None,
    ) -> None:
        super().__init__()
        _at_least_one(
            eval_every=eval_every,
            episodes=episodes,
            screen_episodes=screen_episodes,
            n_envs=n_envs,
        )
        if stop_at_return is not None and math.isnan(stop_at_return):
            raise ValueError("stop_at_return must be a number or None, got NaN")
        self.make_env = make_env
        self.eval_every = eval_every
        self.seed = seed
        self.episodes = episodes
        self.screen_episodes = screen_episodes
        self.n_envs = n_envs
        self.stop_at_return = stop_at_return
        self.deterministic = deterministic
        self.around = around
        self.save_best = save_best
        self.after: Callable[[int, int], None] | None = None

        self.last: Evaluation | None = None
        self.last_env_steps = 0
        self.best: Evaluation | None = None
        self.best_env_steps = 0
        self.reached: Reached | None = None
        self.evaluation_seconds = 0.0
        self._number = 0
        self._earlier_seconds = 0.0  # of the segments before a resume
        self._started = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Wall time since training began, over all segments of a resumed run."""
        return self._earlier_seconds + time.perf_counter() - self._started

    @property
    def train_seconds(self) -> float:
        """Wall time of training, evaluations left out."""
        return self.total_seconds - self.evaluation_seconds

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON data."""
        return {
            "last": asdict(self.last) if self.last else None,
            "last_env_steps": self.last_env_steps,
            "best": asdict(self.best) if self.best else None,
            "best_env_steps": self.best_env_steps,
            "reached": asdict(self.reached) if self.reached else None,
            "stop_at_return": self.stop_at_return,
            "evaluation_seconds": self.evaluation_seconds,
            "total_seconds": self.total_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.last = _evaluation(state["last"])
        self.last_env_steps = state["last_env_steps"]
        self.best = _evaluation(state["best"])
        self.best_env_steps = state["best_env_steps"]
        same = state["stop_at_return"] == self.stop_at_return  # else it reached another threshold
        self.reached = Reached(**state["reached"]) if same and state["reached"] else None
        self.evaluation_seconds = state["evaluation_seconds"]
        self._earlier_seconds = state["total_seconds"]
        self._started = time.perf_counter()

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._number = self.num_timesteps // self.eval_every

    def _on_step(self) -> bool:
        number = self.num_timesteps // self.eval_every
        if number <= self._number:
            return True
        self._number = number
        return self._evaluate(number)

    def _evaluate(self, number: int) -> bool:
        train_seconds = self.train_seconds
        began = time.perf_counter()
        rows = [self._play(self.screen_episodes, number, "screen")]
        confirmed = False
        if self.stop_at_return is not None and rows[0].mean >= self.stop_at_return:
            rows.append(self._play(self.episodes, number, "confirm"))
            confirmed = rows[1].mean >= self.stop_at_return
        self.last, self.last_env_steps = rows[-1], self.num_timesteps
        self.evaluation_seconds += time.perf_counter() - began

        clocks = {
            "time/train_seconds": train_seconds,
            "time/evaluation_seconds": self.evaluation_seconds,
        }
        for row in rows:
            log_evaluation(self.logger, row, self.num_timesteps, clocks)
        if confirmed and self.reached is None:
            self.reached = Reached(
                env_steps=self.num_timesteps,
                train_seconds=train_seconds,
                total_seconds=self.total_seconds,
                return_mean=self.last.mean,
                episodes=self.last.episodes,
            )
        # The agent that holds the threshold is the best, whatever a lucky screen said before.
        if confirmed or self.last.mean > (self.best.mean if self.best else -math.inf):
            self.best, self.best_env_steps = self.last, self.num_timesteps
            if self.save_best is not None:
                self.save_best(self.num_timesteps, self.last)
        if self.after is not None:
            began = time.perf_counter()
            self.after(number, self.num_timesteps)
            self.evaluation_seconds += time.perf_counter() - began
        return not confirmed

    def _play(self, episodes: int, number: int, purpose: str) -> Evaluation:
        with self.around():
            return evaluate(
                self.model,
                self.make_env,
                episodes,
                derive_seed(self.seed, "evaluation", number, purpose),
                self.n_envs,
                self.deterministic,
            )


def _evaluation(state: Mapping[str, Any] | None) -> Evaluation | None:
    if state is None:
        return None
    return Evaluation(tuple(state["returns"]), tuple(state["lengths"]), state["seed"])


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")


@contextmanager
def undisturbed(agent: Any) -> Iterator[None]:
    """Put back every random stream a prediction or an environment could draw from."""
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 (Stable-Baselines3 draws from it)
    # Asking CUDA for its state would start it where it is not in use.
    cuda_runs = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if cuda_runs else None
    put_back = [_keep(stream) for stream in _streams(agent)]
    policy: Any = getattr(agent, "policy", None)
    training = getattr(policy, "training", None)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for restore in put_back:
            restore()
        if training is not None and hasattr(policy, "set_training_mode"):
            policy.set_training_mode(training)


def _streams(agent: Any) -> Iterator[Any]:
    """Generators that the agent, its networks or its action space hold."""
    for value in list(vars(agent).values()) if hasattr(agent, "__dict__") else []:
        holders = list(value.modules()) if isinstance(value, torch.nn.Module) else [value]
        for holder in holders:
            held = vars(holder).values() if isinstance(holder, torch.nn.Module) else [holder]
            for item in (*held, getattr(holder, "_np_random", None)):
                if isinstance(item, torch.Generator | np.random.Generator):
                    yield item


def _keep(stream: Any) -> Callable[[], Any]:
    if isinstance(stream, torch.Generator):
        return partial(stream.set_state, stream.get_state())
    return partial(setattr, stream.bit_generator, "state", stream.bit_generator.state)


def _t_975(nu: int) -> float:
    """97.5 % quantile of Student's t with `nu` >= 1 degrees of freedom.

    Cornish-Fisher expansion around the normal quantile z (Abramowitz & Stegun, 26.7.5); SciPy
    would be a dependency for this one number. The first three are tabulated: there the expansion is
    off by more than a thousandth.
    """
    if nu <= 3:
        return (12.706205, 4.302653, 3.182446)[nu - 1]
    z = 1.959964
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / nu + g2 / nu**2 + g3 / nu**3 + g4 / nu**4
