"""The rhythm of a run: rows of metrics, and fresh environments at checkpoints."""

from __future__ import annotations

from gumbelrl.tracking.seeds import derive_seed
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


class ResetAtCheckpoints(BaseCallback):
    """Starts the training environments anew at every scheduled checkpoint.

    Environments cannot all be stored, so a checkpoint is where they begin again, seeded from the
    run's seed and the step; a resumed run does the same, and both then see the same thing. The
    episodes that are cut stay out of the statistics, and their last transition bootstraps like
    any other. Place it after the `CheckpointCallback` of the same `checkpoint_every`.
    """

    def __init__(self, checkpoint_every: int, seed: int) -> None:
        super().__init__()
        self.checkpoint_every = checkpoint_every
        self.seed = seed
        self._number = 0

    def _on_training_start(self) -> None:
        self._number = self.model.num_timesteps // self.checkpoint_every
        if self.model.num_timesteps > 0:
            self.reset_environments()

    def _on_rollout_start(self) -> None:
        number = self.model.num_timesteps // self.checkpoint_every
        if number > self._number:
            self._number = number
            self.reset_environments()

    def reset_environments(self) -> None:
        """Seed by (run seed, env steps), reset, and hand the agent the first observations."""
        env = self.training_env
        seed = derive_seed(self.seed, "training environments", self.model.num_timesteps)
        env.seed(seed)
        self.model.action_space.seed(seed)
        self.model._last_obs = env.reset()  # type: ignore[assignment]
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            self.model._last_original_obs = normalize.get_original_obs()

    def _on_step(self) -> bool:
        return True
