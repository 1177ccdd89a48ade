import random
from typing import Any

import numpy as np
import pytest
import torch
from gumbelrl.tracking import (
    Evaluation,
    EvaluationCallback,
    JsonlWriter,
    evaluate,
    log_evaluation,
    read_metrics,
)
from scipy import stats
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


class Scripted:
    """Takes action 1 (reward 1 a step) once `good` is set, else action 0 (reward 0)."""

    good = True

    def predict(self, observations: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        return np.full(len(observations), int(self.good)), None


def ppo(envs: Any, n_envs: int = 1, **settings: Any) -> PPO:
    return PPO("MlpPolicy", envs(n_envs, 0), n_steps=64 // n_envs, batch_size=32, n_epochs=1,
               **SMALL, **settings)  # fmt: skip


def dqn(envs: Any, n_envs: int = 1) -> DQN:
    return DQN("MlpPolicy", envs(n_envs, 0), learning_starts=8, buffer_size=1000,
        train_freq=1, **SMALL)  # fmt: skip


def callback(envs: Any, **settings: Any) -> EvaluationCallback:
    settings = {"eval_every": 100, "seed": 5, "episodes": 4, "screen_episodes": 2, **settings}
    return EvaluationCallback(envs, **settings)


def flat_weights(agent: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in agent.policy.state_dict().values()])


def test_the_figures_of_an_evaluation():
    evaluation = Evaluation((1.0, 2.0, 4.0, 9.0), (1, 2, 3, 4))
    assert (evaluation.episodes, evaluation.mean, evaluation.min, evaluation.max) == (4, 4, 1, 9)
    assert evaluation.length_mean == 2.5
    assert evaluation.std == pytest.approx(np.std([1, 2, 4, 9]))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 100, 1000])
def test_the_interval_is_students(n):
    returns = np.random.default_rng(n).normal(3.0, 2.0, n)
    low, high = stats.t.interval(0.95, n - 1, returns.mean(), stats.sem(returns))
    mine = Evaluation(tuple(returns), (1,) * n).interval
    assert mine == pytest.approx((low, high), abs=1e-3 * (high - low))


def test_one_episode_has_no_interval():
    assert np.isnan(Evaluation((1.0,), (1,)).interval).all()


@pytest.mark.parametrize(("episodes", "n_envs", "made"), [(7, 3, 3), (2, 10, 2), (1, 1, 1)])
def test_whole_episodes_in_fresh_environments_that_are_closed(envs, episodes, n_envs, made):
    evaluation = evaluate(Scripted(), envs, episodes, seed=9, n_envs=n_envs)
    assert evaluation.episodes == episodes
    assert evaluation.returns == tuple(map(float, evaluation.lengths))  # reward 1 a step
    assert all(3 <= length <= 9 for length in evaluation.lengths)
    assert envs.made == [(made, 9)]
    assert envs.closed == 1
    assert evaluate(Scripted(), envs, episodes, seed=9, n_envs=n_envs) == evaluation
    assert episodes < 7 or evaluate(Scripted(), envs, episodes, 10, n_envs) != evaluation


def test_environments_are_closed_when_the_agent_fails(envs):
    class Broken:
        def predict(self, *_: Any, **__: Any) -> None:
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        evaluate(Broken(), envs, 2, seed=0)
    assert envs.closed == 1


def test_wrong_counts_are_named(envs):
    with pytest.raises(ValueError, match="episodes must be >= 1, got 0"):
        evaluate(Scripted(), envs, 0, seed=0)
    with pytest.raises(ValueError, match="eval_every must be >= 1, got 0"):
        callback(envs, eval_every=0)
    with pytest.raises(ValueError, match="got NaN"):
        callback(envs, stop_at_return=float("nan"))


def test_every_random_stream_is_put_back(envs):
    class Greedy(Scripted):
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(1)
            self.rng = np.random.default_rng(1)
            self.policy = torch.nn.Dropout()
            self.policy.noise = torch.Generator().manual_seed(2)
            self.policy.set_training_mode = self.policy.train
            self.policy.train()

        def predict(self, observations: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            self.policy.set_training_mode(False)
            torch.rand(1)
            torch.rand(1, generator=self.generator)
            torch.rand(1, generator=self.policy.noise)
            self.rng.random()
            np.random.rand()  # noqa: NPY002
            random.random()
            return super().predict(observations)

    agent = Greedy()

    def streams() -> list[Any]:
        legacy = np.random.get_state()[1:3]  # noqa: NPY002
        return [
            torch.get_rng_state().tolist(), agent.generator.get_state().tolist(),
            agent.policy.noise.get_state().tolist(), agent.rng.bit_generator.state,
            legacy[0].tolist(), legacy[1], random.getstate(), agent.policy.training,
        ]  # fmt: skip

    before = streams()
    evaluate(agent, envs, 3, seed=0, deterministic=False)
    assert streams() == before


@pytest.mark.parametrize("make", [ppo, dqn])
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_does_not_change_what_is_learned(make, deterministic, envs):
    plain = make(envs).learn(400)
    watched = make(envs)
    watch = callback(envs, eval_every=50, deterministic=deterministic)
    watched.learn(400, callback=watch)
    assert watch.last is not None
    assert torch.equal(flat_weights(plain), flat_weights(watched))
    assert not torch.equal(flat_weights(plain), flat_weights(make(envs)))  # it did learn


@pytest.mark.parametrize("make", [ppo, dqn])
@pytest.mark.parametrize(
    ("n_envs", "expected"), [(1, [100, 200, 300]), (8, [104, 200, 304]), (32, [128, 224, 320])]
)
def test_cadence(make, n_envs, expected, envs, tmp_path):
    agent = make(envs, n_envs)
    writer = JsonlWriter(tmp_path / "m")
    agent.set_logger(Logger(None, [writer]))
    watch = callback(envs)
    agent.learn(330, callback=watch, log_interval=1)
    rows = [row for row in read_metrics(tmp_path / "m") if "eval/return_mean" in row]
    assert [row["env_steps"] for row in rows] == expected
    assert all(
        {k for k in row if not k.startswith("time/")}
        == {
            "env_steps", "eval/return_mean", "eval/return_std", "eval/episodes", "eval/length_mean",
        }
        for row in rows
    )  # fmt: skip
    assert envs.closed == len(expected)


def test_several_multiples_in_one_step_are_one_evaluation(envs):
    watch = callback(envs, eval_every=3)
    dqn(envs, 8).learn(32, callback=watch)
    assert len(envs.made) - 1 == 4  # at 8, 16, 24, 32


def test_a_resumed_run_evaluates_in_the_same_environments(envs):
    dqn(envs).learn(300, callback=callback(envs))
    whole = envs.made[1:]
    assert len(set(whole)) == 3
    envs.made.clear()
    agent = dqn(envs)
    first = callback(envs)
    agent.learn(150, callback=first)
    second = callback(envs)
    second.load_state_dict(first.state_dict())
    assert second.best == first.best
    agent.learn(150, callback=second, reset_num_timesteps=False)
    assert envs.made[1:] == whole
    assert second.total_seconds > second.evaluation_seconds > first.evaluation_seconds


class Graded(EvaluationCallback):
    """Plays a script of mean returns instead of environments: (screen, confirmation)."""

    script: list[tuple[float, float]]

    def _play(self, episodes: int, number: int, purpose: str) -> Evaluation:
        mean = self.script[number - 1][purpose == "confirm"]
        self.played.append((number, purpose, episodes))
        return Evaluation((mean,) * episodes, (3,) * episodes)


def graded(envs: Any, script: list[tuple[float, float]], **settings: Any) -> Graded:
    watch = Graded(envs, eval_every=10, seed=0, episodes=100, screen_episodes=10, **settings)
    watch.script, watch.played = script, []
    return watch


def test_training_stops_only_when_the_confirmation_confirms(envs, tmp_path):
    saved: list[tuple[int, float, int]] = []
    nan = float("nan")
    watch = graded(
        envs,
        [(nan, 0), (5, 0), (12, 8), (9, 0), (10, 10), (99, 99)],
        stop_at_return=10.0,
        save_best=lambda steps, e: saved.append((steps, e.mean, e.episodes)),
    )
    agent = dqn(envs)
    writer = JsonlWriter(tmp_path / "m")
    agent.set_logger(Logger(None, [writer]))
    agent.learn(500, callback=watch)
    assert agent.num_timesteps == 50
    assert watch.played == [
        (1, "screen", 10), (2, "screen", 10), (3, "screen", 10), (3, "confirm", 100),
        (4, "screen", 10), (5, "screen", 10), (5, "confirm", 100),
    ]  # fmt: skip
    assert watch.reached is not None
    assert (watch.reached.env_steps, watch.reached.return_mean, watch.reached.episodes) == (
        50,
        10.0,
        100,
    )
    assert 0 < watch.reached.train_seconds <= watch.reached.total_seconds
    # NaN is never best, a lucky screen that was not confirmed counts as its confirmation
    assert saved == [(20, 5, 10), (30, 8, 100), (40, 9, 10), (50, 10, 100)]
    rows = [row for row in read_metrics(tmp_path / "m") if "eval/episodes" in row]
    assert [row["eval/episodes"] for row in rows] == [10, 10, 10, 100, 10, 10, 100]
    again = graded(envs, [], stop_at_return=10.0)
    again.load_state_dict(watch.state_dict())
    assert again.reached == watch.reached
    other = graded(envs, [], stop_at_return=11.0)
    other.load_state_dict(watch.state_dict())
    assert other.reached is None  # that was another threshold
    assert again.best_env_steps == 50


def test_the_confirmed_agent_is_the_best_even_after_a_luckier_screen(envs):
    watch = graded(envs, [(9.7, 0), (10, 9.85)], stop_at_return=9.8)
    watch.best = Evaluation((50.0,), (3,))
    dqn(envs).learn(100, callback=watch)
    assert watch.best.mean == 9.85
    assert watch.reached is not None


def test_without_a_threshold_nothing_is_confirmed_and_training_ends_by_itself(envs):
    watch = graded(envs, [(1e9, 1e9)] * 5)
    agent = dqn(envs)
    agent.learn(50, callback=watch)
    assert agent.num_timesteps == 50
    assert {purpose for _, purpose, _ in watch.played} == {"screen"}
    assert watch.reached is None


def test_an_evaluation_row_takes_nothing_that_waits_with_it(tmp_path):
    writer = JsonlWriter(tmp_path / "m")
    logger = Logger(None, [writer])
    logger.record("train/loss", 1.0)
    log_evaluation(logger, Evaluation((2.0,), (3,)), 7, {"time/train_seconds": 1.5})
    logger.dump(8)
    first, second = read_metrics(tmp_path / "m")
    assert second == {"env_steps": 8, "train/loss": 1.0}
    assert first == {
        "env_steps": 7,
        "eval/return_mean": 2.0,
        "eval/return_std": 0.0,
        "eval/episodes": 1,
        "eval/length_mean": 3.0,
        "time/train_seconds": 1.5,
    }
