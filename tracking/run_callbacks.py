"""The rhythm of a run: rows of metrics, and fresh environments at checkpoints."""

from __future__ import annotations

from gumbelrl.tracking.seeds import derive_seed
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback


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


def restart_environments(agent: BaseAlgorithm, seed: int) -> None:
    """Start the training environments anew, seeded from the run's seed and the step.

    Environments cannot all be stored, so a checkpoint is where they begin again; a resumed run does
    the same, and both then see the same thing. The episodes that are cut stay out of the
    statistics, and their last transition bootstraps like any other.
    """
    env = agent.get_env()
    assert env is not None
    derived = derive_seed(seed, "training environments", agent.num_timesteps)
    if hasattr(agent, "cut_episodes"):
        agent.cut_episodes()
    env.seed(derived)
    agent.action_space.seed(derived)
    agent._last_obs = env.reset()  # type: ignore[assignment]
    normalize = agent.get_vec_normalize_env()
    if normalize is not None:
        agent._last_original_obs = normalize.get_original_obs()
