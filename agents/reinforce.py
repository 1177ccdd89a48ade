"""REINFORCE: the agent that the others are held against."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gumbelrl.agents.action_masks import MaskedPrediction
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.baselines import BASELINES, RunningMean, leave_one_out, of_first_step
from gumbelrl.agents.checks import check_choice, check_float, check_int, check_schedule
from gumbelrl.agents.episodes import (
    ROLLOUTS,
    Rollout,
    StepStore,
    episode_numbers,
    observation_arrays,
    rewards_to_go,
)
from gumbelrl.agents.optimization import Adam, clip_gradients
from gumbelrl.agents.phases import phase
from gumbelrl.agents.policies import (
    ReinforceCnnPolicy,
    ReinforceMultiInputPolicy,
    ReinforcePolicy,
)
from gumbelrl.agents.storage import PickleFreeAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

DEFAULT_STEPS = {"episodes": 10_000, "steps": 64}  # n_steps=None


class REINFORCE(MaskedPrediction, PickleFreeAlgorithm, OnPolicyAlgorithm):
    """Monte-Carlo policy gradient, ĝ = Σ_t (G_t − b_t) ∇ log π(a_t | s_t). (Williams 1992.)

    G_t is the discounted reward-to-go and b_t a baseline that knows nothing of a_t, so it changes
    the variance of ĝ and not its mean:

    | `baseline` | b_t |
    |---|---|
    | `"none"` | 0 |
    | `"running"` | exponentially weighted mean of the returns of earlier updates |
    | `"value"` | a learned V(s_t) |
    | `"leave_one_out"` | mean return of the update's other trajectories at the same step t |

    A trajectory is a whole episode, or what one environment did in a rollout of fixed length.
    Only `terminated` ends a return: where an episode was truncated or a rollout cut, it goes on in
    V of the last observation. Hence every agent learns V, whatever its baseline.

    Each update takes one actor step and `value_steps` regression steps of V on G. With γ = 1,
    whole episodes, no normalisation and no clipping, ĝ over the number of episodes is an unbiased
    estimate of the gradient of the expected return. With γ < 1 and rewards-to-go the weight γ^t of
    step t is left out, as everywhere in the field; `reward_to_go=False` has it.

    Args:
        policy: "MlpPolicy", "CnnPolicy" for images and grids, "MultiInputPolicy" for dictionaries,
            or a subclass of `ReinforcePolicy`.
        env: a Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`, with Discrete,
            MultiDiscrete or MultiBinary actions.
        learning_rate: of the actor, > 0: a number or a schedule (see `GumbelSAC`).
        baseline: "none", "running", "value" or "leave_one_out"; the last needs two trajectories
            per update: environments, or episodes of one.
        rollout: "episodes": every environment plays `n_episodes` whole episodes; those that finish
            early wait, and waiting steps are counted as environment steps but not trained on.
            "steps": all go on for `n_steps`, and unfinished episodes are cut.
        n_episodes: whole episodes per environment and update, >= 1.
        n_steps: vector steps per update, >= 1. Of whole episodes the most, after which those that
            still run are cut (it matters without a time limit). None: 64, and 10,000 for episodes.
        reward_to_go: False weighs every step with the return of its whole episode, from the start;
            it needs rollout="episodes".
        gamma: discount, in [0, 1].
        ent_coef: weight of the analytic entropy bonus, >= 0.
        normalize_advantage: divide the advantages by their root mean square over the update.
        max_grad_norm: the actor's gradient is clipped to this norm, > 0.
        value_learning_rate: of V, > 0.
        value_steps: regression steps of V per update, >= 1.
        policy_kwargs: `ReinforcePolicy`'s: `net_arch`, `activation`.

    The rest are Stable-Baselines3's. Raises ValueError naming the argument and its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ReinforcePolicy,
        "CnnPolicy": ReinforceCnnPolicy,
        "MultiInputPolicy": ReinforceMultiInputPolicy,
        "ReinforcePolicy": ReinforcePolicy,
    }
    policy: ReinforcePolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ReinforcePolicy],
        env: GymEnv | str | None,
        learning_rate: float | dict[str, Any] = 1e-2,
        baseline: str = "value",
        rollout: str = "episodes",
        n_episodes: int = 1,
        n_steps: int | None = None,
        reward_to_go: bool = True,
        gamma: float = 0.99,
        ent_coef: float = 0.0,
        normalize_advantage: bool = True,
        max_grad_norm: float = 1.0,
        value_learning_rate: float = 3e-3,
        value_steps: int = 10,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self._remember_settings(locals())
        schedule = check_schedule("learning_rate", learning_rate)
        self.baseline = check_choice("baseline", baseline, BASELINES)
        self.rollout = check_choice("rollout", rollout, ROLLOUTS)
        self.n_episodes = check_int("n_episodes", n_episodes, minimum=1)
        if n_steps is None:
            n_steps = DEFAULT_STEPS[rollout]
        check_int("n_steps", n_steps, minimum=1)
        for name, flag in (
            ("reward_to_go", reward_to_go),
            ("normalize_advantage", normalize_advantage),
        ):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        if not reward_to_go and rollout == "steps":
            raise ValueError(
                "reward_to_go=False needs the return from the episode's start, which a cut episode "
                "does not have: use rollout='episodes' with it, got rollout='steps'"
            )
        self.reward_to_go = reward_to_go
        check_float("gamma", gamma, low=0, high=1)
        check_float("ent_coef", ent_coef, low=0)
        self.normalize_advantage = normalize_advantage
        check_float("max_grad_norm", max_grad_norm, low=0, open_low=True)
        self.value_learning_rate = check_float(
            "value_learning_rate", value_learning_rate, low=0, open_low=True
        )
        self.value_steps = check_int("value_steps", value_steps, minimum=1)
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=lambda remaining: schedule(1.0 - remaining),
            n_steps=n_steps,
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
        per_env = self.n_episodes if self.rollout == "episodes" else 1
        if self.baseline == "leave_one_out" and self.n_envs * per_env < 2:
            raise ValueError(
                "baseline='leave_one_out' needs at least 2 trajectories per update, got "
                f"{self.n_envs} environment with rollout={self.rollout!r}: use more environments"
                + (", or n_episodes >= 2" if self.rollout == "episodes" else "")
            )
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        self.rollout_buffer = None  # type: ignore[assignment]  # `StepStore` has its place
        self._prepare_device()
        self._running_mean = RunningMean(self.device)
        policy = self.policy
        self._actor_parameters = [
            *policy.actor.parameters(),
            *policy.features_extractor.parameters(),
        ]
        self._value_parameters = [
            *policy.value_net.parameters(),
            *policy.value_features_extractor.parameters(),
        ]
        self.actor_optimizer = Adam(self._actor_parameters, self.lr_schedule(1.0))
        self.value_optimizer = Adam(self._value_parameters, self.value_learning_rate)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "value": self.value_optimizer}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"running_mean": self._running_mean.state}

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer | None,
        n_rollout_steps: int,
    ) -> bool:
        """Play whole episodes or a fixed number of steps, and keep them with their returns.

        Returns False when the callback stops the training.
        """
        n_envs, policy = env.num_envs, self.policy
        whole = self.rollout == "episodes"
        assert self._last_obs is not None
        callback.on_rollout_start()  # may start the environments anew
        if whole and n_envs > 1:  # with one, the last episode's reset is the fresh start
            self._last_obs = env.reset()  # type: ignore[assignment]
        policy.set_training_mode(False)
        steps = StepStore(min(n_rollout_steps, 512))
        truncations: list[tuple[int, int, Any]] = []  # time, environment, last observation
        episodes_left = np.full(n_envs, self.n_episodes)
        while steps.length < n_rollout_steps and (not whole or episodes_left.any()):
            mask = self._masks_of_last_obs()  # (N, ΣK)
            with torch.no_grad():
                obs = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                dist = policy.dist(obs, None if mask is None else mask.to(self.device))
                indices = dist.sample(self.generator).cpu().numpy()  # (N, M)
            new_obs, rewards, dones, infos = env.step(policy.actions.to_actions(indices))
            self.num_timesteps += n_envs
            stored = observation_arrays(self._last_obs)
            self._last_obs = new_obs  # type: ignore[assignment]
            self.action_masks.follow(new_obs, dones, infos)  # type: ignore[union-attr]
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if mask is not None:
                stored["mask"] = mask.numpy()
            steps.add(**stored, action=indices, reward=rewards, end=dones)
            if not dones.any():
                continue
            # Episodes of environments that only wait are not the policy's sample.
            ended = dones & (episodes_left > 0) if whole else dones
            self._update_info_buffer(
                [info if e else {} for e, info in zip(ended, infos, strict=True)], dones
            )
            truncations += [
                (steps.length - 1, i, infos[i]["terminal_observation"])
                for i in np.flatnonzero(ended).tolist()
                if infos[i].get("TimeLimit.truncated", False)
            ]
            episodes_left -= ended
        self._collected = self._finish(steps, truncations)
        callback.on_rollout_end()
        return True

    def _finish(self, steps: StepStore, truncations: list[tuple[int, int, Any]]) -> Rollout:
        """The steps with their returns and places in their trajectories.

        `truncations` are (time, environment, last observation). What still runs is cut at
        `_last_obs`.
        """
        ends = steps["end"].copy()  # (T, N)
        episodes, positions = episode_numbers(ends)
        n_steps, n_envs = ends.shape
        if self.rollout == "episodes":
            keep = episodes < self.n_episodes  # (T, N), not the steps of waiting
            trajectories = episodes * n_envs + np.arange(n_envs)
        else:
            keep = np.ones_like(ends)
            trajectories = np.broadcast_to(np.arange(n_envs), ends.shape)
            positions = np.broadcast_to(np.arange(n_steps)[:, None], ends.shape)

        bootstraps = np.zeros(ends.shape)
        if truncations:
            times, envs, last = zip(*truncations, strict=True)
            if isinstance(last[0], dict):
                obs: Any = {key: np.stack([o[key] for o in last]) for key in last[0]}
            else:
                obs = np.stack(last)
            bootstraps[times, envs] = self._values(obs_as_tensor(obs, self.device))
        running = ~ends[-1] & keep[-1]
        if running.any():  # cut, not ended: V of where they stand stands for the rest
            values = self._values(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
            bootstraps[-1, running] = values[running]
            ends[-1] = True
        returns = rewards_to_go(steps["reward"], ends, bootstraps, self.gamma)  # (T, N)

        def flat(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[keep]).to(self.device)  # (B, ...)

        return Rollout(
            obs={key: flat(steps[f"obs/{key}"]) for key in self._last_obs}  # type: ignore[arg-type]
            if isinstance(self._last_obs, dict)
            else flat(steps["obs"]),
            actions=flat(steps["action"]),
            masks=flat(steps["mask"]) if "mask" in steps else None,
            returns=flat(returns.astype(np.float32)),
            positions=flat(positions),
            trajectories=flat(trajectories),
            n_trajectories=len(np.unique(trajectories[keep])),
        )

    def _values(self, obs: PyTorchObs) -> np.ndarray:
        """V of observations [B, ...], without a graph, [B]."""
        with torch.no_grad():
            return self.policy.predict_values(obs).squeeze(-1).cpu().numpy()

    def train(self) -> None:
        """One actor step on what was collected, then the regression of V."""
        self._n_updates += 1
        self.actor_optimizer.param_groups[0]["lr"] = self.lr_schedule(
            self._current_progress_remaining
        )
        self.value_optimizer.param_groups[0]["lr"] = self.value_learning_rate
        rollout = self._collected
        phase("actor")
        actor_loss, metrics = self._actor_loss(rollout)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_norm = clip_gradients(self._actor_parameters, self.max_grad_norm)
        self.actor_optimizer.step()

        phase("critic")
        value_loss = torch.zeros(())
        for _ in range(self.value_steps):
            value = self.policy.predict_values(rollout.obs).squeeze(-1)
            value_loss = 0.5 * (value - rollout.returns).square().mean()
            self.value_optimizer.zero_grad()
            value_loss.backward()
            self.value_optimizer.step()

        self.metrics.add(
            {
                "train/actor_loss": actor_loss,
                "train/value_loss": value_loss,
                "train/actor_grad_norm": actor_norm,
                **metrics,
            }
        )

    def _actor_loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """−Σ_t (Â_t log π(a_t | s_t) + α H_t) over a constant, and metrics. The running mean takes
        in the returns."""
        with torch.no_grad():
            advantages, explained = self._advantages(rollout)
            if self.normalize_advantage:
                advantages = advantages / (advantages.square().mean().sqrt() + 1e-8)
        dist = self.policy.dist(rollout.obs, rollout.masks)
        log_probs = dist.log_prob(rollout.actions, trusted=True)  # (B,)
        entropy = dist.entropy()  # (B,)
        objective = (advantages * log_probs + self.ent_coef * entropy).sum()
        # Not over the number of steps where episodes choose it: long ones would count for less.
        count = rollout.n_trajectories if self.rollout == "episodes" else len(advantages)
        metrics = {"train/entropy": entropy.mean(), "train/baseline_explained": explained}
        return -objective / count, metrics

    def _advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """G − b of every step, [B], and the share of G's second moment that b takes away."""
        returns, positions = rollout.returns, rollout.positions
        if not self.reward_to_go:
            returns = of_first_step(returns, positions, rollout.trajectories)
        if self.baseline == "value":
            baseline = self.policy.predict_values(rollout.obs).squeeze(-1)  # (B,)
            if not self.reward_to_go:  # V(s_0) is what predicts the whole return
                baseline = of_first_step(baseline, positions, rollout.trajectories)
        elif self.baseline == "leave_one_out":
            baseline = leave_one_out(
                returns, positions, rollout.n_trajectories, whole=not self.reward_to_go
            )
        elif self.baseline == "running":
            baseline = self._running_mean.value.to(returns.dtype).expand_as(returns)
            self._running_mean.add(returns)
        else:
            baseline = torch.zeros_like(returns)
        advantages = returns - baseline
        power = returns.square().mean()
        explained = 1.0 - advantages.square().mean() / power
        return advantages, explained.where(power > 1e-8, 0.0)  # of returns that are 0, nothing

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
