"""The rhythm of a run: rows of metrics, and fresh environments at checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gumbelrl.tracking.seeds import derive_seed
from gumbelrl.tracking.stop_signals import StopSignals
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize


class StopCallback(BaseCallback):
    """Ends training at the step after a signal whose KeyboardInterrupt got lost, as it does in
    code that catches everything."""

    def __init__(self, signals: StopSignals) -> None:
        super().__init__()
        self.signals = signals

    def _on_step(self) -> bool:
        if self.signals.received:
            raise KeyboardInterrupt
        return True


class LogCallback(BaseCallback):
    """Writes a row of training metrics every `log_every` env steps, whatever the algorithm.

    Use it with `learn(log_interval=None)`: Stable-Baselines3's own interval counts episodes for
    some algorithms and updates for others.
    """

    def __init__(self, log_every: int) -> None:
        super().__init__()
        if log_every < 1:
            raise ValueError(f"log_every must be >= 1 env step, got {log_every}")
        self.log_every = log_every
        self._number = 0

    def _on_training_start(self) -> None:
        self._number = self.model.num_timesteps // self.log_every

    def _on_step(self) -> bool:
        number = self.model.num_timesteps // self.log_every
        if number > self._number:
            self._number = number
            self.model.dump_logs()
        return True


def restart_environments(
    agent: BaseAlgorithm, env: VecEnv, make_env: Callable[[int, int], VecEnv], seed: int
) -> None:
    """Close the training environments and go on in new ones, seeded from the run's seed and the
    step.

    The states of environments cannot all be stored, so a checkpoint is where they begin again; a
    resumed run does the same, and both then see the same thing. The episodes that are cut stay out
    of the statistics, and their last transition bootstraps like any other.

    Args:
        agent: between an update and a rollout; one that stores its environments is left alone.
        env: what `make_env` made for it, inside any wrapper that the agent has added.
        make_env: `make_env(n_envs, seed) -> VecEnv`.
        seed: the run's.

    Raises:
        MakeEnvError: they cannot be made again.
    """
    from gumbelrl.envs import rebuild

    if getattr(agent, "stores_environments", False):
        return
    derived = derive_seed(seed, "training environments", agent.num_timesteps)
    if hasattr(agent, "cut_episodes"):
        agent.cut_episodes()
    rebuild(env, lambda: make_env(env.num_envs, derived))
    agent.action_space.seed(derived)
    seen = agent.get_env()
    assert seen is not None
    agent._vec_normalize_env = unwrap_vec_normalize(seen)
    agent._last_obs = seen.reset()  # type: ignore[assignment]
    agent._last_episode_starts = np.ones(seen.num_envs, dtype=bool)
    normalize = agent.get_vec_normalize_env()
    if normalize is not None:
        agent._last_original_obs = normalize.get_original_obs()
