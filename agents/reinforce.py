"""REINFORCE with a learned value baseline: the agent that the others are held against."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.checks import check_float, check_int, check_schedule
from gumbelrl.agents.optimization import clip_gradients
from gumbelrl.agents.policies import ReinforcePolicy
from gumbelrl.agents.storage import PickleFreeAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv


class REINFORCE(PickleFreeAlgorithm, OnPolicyAlgorithm):
    """Monte-Carlo policy gradient, ĝ = Σ_t (G_t − V(s_t)) ∇ log π(a_t | s_t). (Williams 1992.)

    G_t is the discounted reward-to-go of the whole episode. An episode that was truncated rather
    than terminated goes on in the value of its last observation: only `terminated` stops it.
    Each update collects whole episodes with the current policy, takes one step on the actor and
    `value_steps` regression steps on the baseline. With N environments every environment plays an
    equal number of whole episodes; those that finish early wait, and waiting steps are counted as
    environment steps but not trained on.

    Args:
        policy: "MlpPolicy", or a subclass of `ReinforcePolicy`.
        env: a Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`, with Discrete,
            MultiDiscrete or MultiBinary actions.
        learning_rate: of the actor, > 0: a number or a schedule (see `GumbelSAC`).
        value_learning_rate: of the baseline, > 0.
        n_episodes: whole episodes per environment and update, >= 1.
        value_steps: regression steps on the baseline per update, >= 1.
        gamma: discount, in [0, 1].
        ent_coef: weight of the analytic entropy bonus, >= 0.
        normalize_advantage: divide the advantages by their standard deviation over the update.
        max_grad_norm: the actor's gradient is clipped to this norm, > 0.
        max_rollout_steps: vector steps after which an update is made although episodes still
            run, >= 1; they are cut and bootstrapped. It matters without a time limit.
        policy_kwargs: `ReinforcePolicy`'s: `net_arch`, `activation`.

    The rest are Stable-Baselines3's. Raises ValueError naming the argument and its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ReinforcePolicy,
        "ReinforcePolicy": ReinforcePolicy,
    }
    policy: ReinforcePolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ReinforcePolicy],
        env: GymEnv | str | None,
        learning_rate: float | dict[str, Any] = 1e-2,
        value_learning_rate: float = 3e-3,
        n_episodes: int = 1,
        value_steps: int = 10,
        gamma: float = 0.99,
        ent_coef: float = 0.0,
        normalize_advantage: bool = True,
        max_grad_norm: float = 1.0,
        max_rollout_steps: int = 10_000,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self._remember_settings(locals())
        check_float("value_learning_rate", value_learning_rate, low=0, open_low=True)
        check_int("n_episodes", n_episodes, minimum=1)
        check_int("value_steps", value_steps, minimum=1)
        check_float("gamma", gamma, low=0, high=1)
        check_float("ent_coef", ent_coef, low=0)
        check_float("max_grad_norm", max_grad_norm, low=0, open_low=True)
        schedule = check_schedule("learning_rate", learning_rate)
        self.value_learning_rate = value_learning_rate
        self.n_episodes = n_episodes
        self.value_steps = value_steps
        self.normalize_advantage = normalize_advantage
        self.max_rollout_steps = check_int("max_rollout_steps", max_rollout_steps, minimum=1)
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=lambda remaining: schedule(1.0 - remaining),
            n_steps=1,  # the rollout buffer stays unused: episodes have no fixed length
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=1.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        if env is not None:
            FactoredActions(self.action_space)  # raises for a continuous space, naming the remedy
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        self.rollout_buffer = None  # type: ignore[assignment]
        self._prepare_device()
        policy = self.policy
        self._actor_parameters = [
            *policy.actor.parameters(),
            *policy.features_extractor.parameters(),
        ]
        self._value_parameters = [
            *policy.value_net.parameters(),
            *policy.value_features_extractor.parameters(),
        ]
        self.actor_optimizer = torch.optim.Adam(
            self._actor_parameters, self.lr_schedule(1.0), fused=True
        )
        self.value_optimizer = torch.optim.Adam(
            self._value_parameters, self.value_learning_rate, fused=True
        )

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "value": self.value_optimizer}

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer | None,
        n_rollout_steps: int,
    ) -> bool:
        """Play `n_episodes` whole episodes in every environment and keep their returns-to-go.

        Returns False when the callback stops the training.
        """
        n_envs = env.num_envs
        assert self._last_obs is not None
        callback.on_rollout_start()
        if n_envs > 1:  # with one environment the last episode's reset is the fresh start
            self._last_obs = env.reset()  # type: ignore[assignment]
        self.policy.set_training_mode(False)
        rewards: list[np.ndarray] = []
        observations, actions, ends, bootstraps, playing = [], [], [], [], []
        episodes_left = np.full(n_envs, self.n_episodes)
        while episodes_left.any() and len(rewards) < self.max_rollout_steps:
            with torch.no_grad():
                obs = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                dist = self.policy.dist(obs)
                indices = dist.sample(self.generator)  # (N, M)
            env_actions = self.policy.actions.to_actions(indices.cpu().numpy())
            new_obs, reward, dones, infos = env.step(env_actions)
            self.num_timesteps += n_envs
            self._last_obs = new_obs  # type: ignore[assignment]
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            # Episodes of environments that only wait are not the policy's sample.
            waiting = episodes_left == 0
            self._update_info_buffer([{} if w else i for w, i in zip(waiting, infos, strict=True)])
            observations.append(obs)
            actions.append(indices)
            rewards.append(reward)
            ends.append(dones)
            bootstraps.append(self._truncated_values(dones, infos))
            playing.append(episodes_left > 0)
            episodes_left = episodes_left - (dones & (episodes_left > 0))

        if episodes_left.any():  # cut, not ended: the value of where they stand stands for the rest
            obs = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
            with torch.no_grad():
                values = self.policy.predict_values(obs).squeeze(-1).cpu().numpy()
            bootstraps[-1] = np.where(ends[-1], bootstraps[-1], values)
            ends[-1] = np.ones_like(ends[-1])
        returns = rewards_to_go(
            np.array(rewards), np.array(ends), np.array(bootstraps), self.gamma
        )  # (T, N)
        keep = torch.from_numpy(np.array(playing)).to(self.device)  # (T, N)
        self._episodes = (
            torch.stack(observations)[keep],  # type: ignore[arg-type]  # (B, ...)
            torch.stack(actions)[keep],  # (B, M)
            torch.from_numpy(returns).to(self.device, torch.float32)[keep],  # (B,)
        )
        callback.on_rollout_end()
        return True

    def _truncated_values(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """V of the last observation where an episode was truncated, else 0, [N]."""
        values = np.zeros(len(infos))
        for i, info in enumerate(infos):
            if dones[i] and info.get("TimeLimit.truncated", False):
                obs, _ = self.policy.obs_to_tensor(info["terminal_observation"])
                with torch.no_grad():
                    values[i] = self.policy.predict_values(obs).item()
        return values

    def train(self) -> None:
        """One actor step on the collected episodes, then the baseline's regression."""
        self._n_updates += 1
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        self.actor_optimizer.param_groups[0]["lr"] = learning_rate
        self.value_optimizer.param_groups[0]["lr"] = self.value_learning_rate
        obs, actions, returns = self._episodes
        with torch.no_grad():
            advantage = returns - self.policy.predict_values(obs).squeeze(-1)  # (B,)
            if self.normalize_advantage and len(advantage) > 1:
                advantage = advantage / (advantage.std() + 1e-8)
        dist = self.policy.dist(obs)
        entropy = dist.entropy().mean()
        actor_loss = -(advantage * dist.log_prob(actions)).mean() - self.ent_coef * entropy
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_norm = clip_gradients(self._actor_parameters, self.max_grad_norm)
        self.actor_optimizer.step()

        value_loss = torch.zeros(())
        for _ in range(self.value_steps):
            value = self.policy.predict_values(obs).squeeze(-1)
            value_loss = 0.5 * (value - returns).square().mean()
            self.value_optimizer.zero_grad()
            value_loss.backward()
            self.value_optimizer.step()

        self.metrics.add(
            {
                "train/actor_loss": actor_loss,
                "train/value_loss": value_loss,
                "train/entropy": entropy,
                "train/actor_grad_norm": actor_norm,
            }
        )

    def dump_logs(self, iteration: int = 0) -> None:
        """Write one row of metrics: means since the last row."""
        self._record_metrics()
        self.logger.record("train/learning_rate", self.actor_optimizer.param_groups[0]["lr"])
        self.logger.record("train/n_updates", self._n_updates)
        super().dump_logs(iteration)

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 10,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> REINFORCE:
        """Stable-Baselines3's `learn`; `log_interval` counts updates."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )


def rewards_to_go(
    rewards: np.ndarray, ends: np.ndarray, bootstraps: np.ndarray, gamma: float
) -> np.ndarray:
    """Discounted reward-to-go inside each episode, G_t = r_t + γ (G_{t+1}, or the bootstrap).

    Args:
        rewards: [T, N].
        ends: [T, N], true where the episode ended with this step.
        bootstraps: [T, N], V of the last observation where it was truncated, else 0.
        gamma: discount.

    Returns:
        [T, N] float64. Steps after a column's last end count from a value of 0.
    """
    returns = np.zeros(rewards.shape)
    following = np.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * np.where(ends[t], bootstraps[t], following)
        returns[t] = following
    return returns
