"""GumbelSAC: off-policy actor-critic whose actor climbs the critics through its action choice."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gumbelrl.agents.action_masks import MaskedPrediction
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.captured import CapturedStep, unless_it_waits
from gumbelrl.agents.checks import check_choice, check_float, check_int, check_schedule
from gumbelrl.agents.critics import CriticObjective, HeadsCritic
from gumbelrl.agents.episode_counter import EpisodeCounter, HostView
from gumbelrl.agents.estimators import build_estimator
from gumbelrl.agents.exploration import Exploration
from gumbelrl.agents.networks import Tape, backward_from
from gumbelrl.agents.optimization import FlatParameters, make_adam, set_learning_rate
from gumbelrl.agents.phases import phase
from gumbelrl.agents.policies import (
    GumbelSACCnnPolicy,
    GumbelSACMultiInputPolicy,
    GumbelSACPolicy,
)
from gumbelrl.agents.replay import TensorReplayBuffer, Transitions, normalized
from gumbelrl.agents.storage import PickleFreeAlgorithm
from gumbelrl.agents.trust_meter import TRUST_EVERY, TrustMeter, check_alignment
from gumbelrl.gumbel import Constant, Estimator, FactoredCategorical, make_schedule
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

LOG_ENT_COEF_RANGE = (-5.0, 2.0)  # log α; beyond it a learned coefficient runs away
METRICS_EVERY = 8  # gradient steps between the updates whose metrics are averaged


class GumbelSAC(MaskedPrediction, PickleFreeAlgorithm, OffPolicyAlgorithm):
    """Soft actor-critic for discrete actions, with any estimator of the policy gradient.

    The critics fit y = r + γ (1 − terminated) (min_c Q'_c(s', a') + α H(π(·|s'))), a' ~ π(·|s'),
    or, over n steps, y = r_0 + … + γ^{n−1} r_{n−1} + γ^n (…) without a correction for actions that
    the present policy would not have taken.
    The actor climbs E_D[Q(s, D)] + α H(π(·|s)), where the estimator decides how the gradient of
    the expectation reaches the logits; the entropy is analytic. Targets are the same whatever the
    estimator. (Haarnoja et al. 2018, arXiv 1812.05905; Christodoulou 2019, arXiv 1910.07207;
    straight-through Gumbel-Softmax: Jang et al. 2016, arXiv 1611.01144.)

    Args:
        policy: "MlpPolicy", "CnnPolicy" (images, grids), "MultiInputPolicy" (dictionaries), or a
            subclass of `GumbelSACPolicy`.
        env: a Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`, with Discrete,
            MultiDiscrete or MultiBinary actions. Where its infos carry "action_mask", a masked
            action is never taken, nor counted in targets and entropies.
        learning_rate: of every optimiser, > 0: a number or a schedule over training progress,
            such as `{"schedule": "linear", "start": 1e-3, "end": 1e-4}`.
        buffer_size: replay capacity in transitions, >= 1.
        learning_starts: environment steps of uniformly random actions before learning, >= 0.
        batch_size: transitions per gradient step, >= 1.
        polyak: weight of the new parameters in the target average, in (0, 1].
        gamma: discount, in [0, 1].
        train_freq: vector steps between updates, >= 1.
        gradient_steps: gradient steps per update, >= 1, or -1 for as many as environment steps.
        n_steps: steps of reward before the value takes over, >= 1.
        reward_scale: rewards are multiplied by it before anything is learned, > 0.
        critic_warmup: gradient steps in which the critics alone learn, >= 0.
        uniform_mix: share of uniformly random actions among those taken in training, in [0, 1], or
            a schedule. The policy that is learned, and evaluated, is left as it is.
        uniform_hold: mean number of steps for which such an action is held, >= 1; the share stays
            `uniform_mix`. Lengths are geometric; at 1 every step draws anew.
        estimator: a name from `gumbelrl.gumbel.ESTIMATORS`, a dict `{"name": ..., **settings}`,
            an `Estimator`, or "auto": exact or the local expectation where actions are few enough
            to enumerate, else straight-through Gumbel-Softmax.
        temperature: τ > 0 of the estimator's backward pass or a schedule; None leaves its own.
        forward_temperature: T > 0 or a schedule: the policy is softmax(logits / T) everywhere.
        ent_coef: entropy coefficient α >= 0, or "auto" to learn it towards `target_entropy`.
        target_entropy: as a fraction of the largest entropy Σ_m log K_m, in [0, 1].
        entropy_reward: count α H(π(·|s')) in the critics' targets. Where episodes can end it pays
            for staying alive; without it the entropy only regularises the actor. (Yu et al. 2022,
            arXiv 2201.12434.)
        actor_objective: "mean" over the critics, or "min" per action (critics "heads" and
                "multilinear").
        max_grad_norm: gradients of actor and critics are clipped to this norm, > 0.
        trust_every: gradient steps between measurements of how far the estimator's gradient can be
            trusted, logged as `estimator/*` (see `TrustMeter`), >= 0; 0 never measures.
        compile: "auto" runs the update as one CUDA graph on CUDA where the estimator allows it;
            "never" runs it operation by operation. The results are the same.
        policy_kwargs: `GumbelSACPolicy`'s: `net_arch`, `activation`, `critic`, `n_critics`,
            `layer_norm`.

    The rest are Stable-Baselines3's. Raises ValueError naming the argument and its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": GumbelSACPolicy,
        "CnnPolicy": GumbelSACCnnPolicy,
        "MultiInputPolicy": GumbelSACMultiInputPolicy,
        "GumbelSACPolicy": GumbelSACPolicy,
    }
    policy: GumbelSACPolicy
    estimator: Estimator
    _reached: Any = None  # the observation that the last step led to
    replay_buffer: TensorReplayBuffer  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[GumbelSACPolicy],
        env: GymEnv | str | None,
        learning_rate: float | dict[str, Any] = 3e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 200,
        batch_size: int = 128,
        polyak: float = 0.01,
        gamma: float = 0.99,
        train_freq: int = 1,
        gradient_steps: int = 1,
        n_steps: int = 1,
        reward_scale: float = 1.0,
        critic_warmup: int = 0,
        uniform_mix: float | dict[str, Any] = 0.0,
        uniform_hold: float = 1.0,
        estimator: str | dict[str, Any] = "st_gumbel",
        temperature: float | dict[str, Any] | None = None,
        forward_temperature: float | dict[str, Any] = 1.0,
        ent_coef: float | str = "auto",
        target_entropy: float = 0.3,
        entropy_reward: bool = True,
        actor_objective: str = "mean",
        max_grad_norm: float = 10.0,
        trust_every: int = TRUST_EVERY,
        compile: str = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self._remember_settings(locals())
        check_int("buffer_size", buffer_size, minimum=1)
        check_int("learning_starts", learning_starts, minimum=0)
        check_int("batch_size", batch_size, minimum=1)
        check_int("train_freq", train_freq, minimum=1)
        if gradient_steps != -1:
            check_int("gradient_steps", gradient_steps, minimum=1)
        if batch_size > buffer_size:
            raise ValueError(
                f"batch_size must be <= buffer_size = {buffer_size}, got {batch_size}: the replay "
                "could never fill a batch"
            )
        check_int("n_steps", n_steps, minimum=1)
        check_int("critic_warmup", critic_warmup, minimum=0)
        check_float("reward_scale", reward_scale, low=0, open_low=True)
        check_float("polyak", polyak, low=0, high=1, open_low=True)
        check_float("gamma", gamma, low=0, high=1)
        check_float("target_entropy", target_entropy, low=0, high=1)
        check_float("max_grad_norm", max_grad_norm, low=0, open_low=True)
        check_choice("actor_objective", actor_objective, ("mean", "min"))
        if ent_coef != "auto":
            if isinstance(ent_coef, str):
                raise ValueError(f"ent_coef must be a number >= 0 or 'auto', got {ent_coef!r}")
            check_float("ent_coef", ent_coef, low=0)
        schedule = check_schedule("learning_rate", learning_rate)
        self.trust_every = check_int("trust_every", trust_every, minimum=0)
        self.compile = check_choice("compile", compile, ("auto", "never"))
        self._estimator_given = estimator, temperature
        self.uniform_mix = make_schedule(uniform_mix, "uniform_mix", unit=True)
        self.forward_temperature = make_schedule(forward_temperature, "forward_temperature")
        self.uniform_hold = check_float("uniform_hold", uniform_hold, low=1)
        self.n_steps = n_steps
        self.reward_scale = reward_scale
        self.critic_warmup = critic_warmup
        self.polyak = polyak
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.entropy_reward = entropy_reward
        self.actor_objective = actor_objective
        self.max_grad_norm = max_grad_norm
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=lambda remaining: schedule(1.0 - remaining),
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=polyak,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=TensorReplayBuffer,  # type: ignore[arg-type]
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
        )
        if env is not None:
            FactoredActions(self.action_space)  # raises for a continuous space, naming the remedy
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self._prepare_device()
        policy = self.policy
        if self.actor_objective == "min" and not hasattr(policy.critic, "per_factor"):
            raise ValueError(
                "actor_objective='min' needs every action's value, so critic='heads' or "
                "'multilinear'; use actor_objective='mean' with critic='action_in'"
            )
        self.estimator = build_estimator(
            *self._estimator_given, policy.actions.nvec, hasattr(policy.critic, "per_factor")
        ).to(self.device)
        check_alignment(self.estimator, self.trust_every)
        if self.device.type == "cuda":
            self.estimator.hold_on(self.device)
            if not isinstance(self.forward_temperature, Constant):
                policy.forward_temperature = torch.ones((), device=self.device)
        self._try_enumeration()
        self.trust = TrustMeter(self.trust_every, seed=self.seed)
        self._actor, self._critic, self._target = (
            FlatParameters([*network.parameters(), *extractor.parameters()])
            for network, extractor in (
                (policy.actor, policy.features_extractor),
                (policy.critic, policy.critic_features_extractor),
                (policy.critic_target, policy.critic_target_features_extractor),
            )
        )
        # What reads the action; the rest of the critic ends in its embedding.
        self._beyond_embedding = [
            p for name, p in policy.critic.named_parameters() if not name.startswith("net.")
        ]
        self._entropy_target = self.target_entropy * policy.actions.max_entropy  # nats
        self._set_progress(0.0)
        initial = 1.0 if self.ent_coef == "auto" else float(self.ent_coef)
        self.log_ent_coef = torch.tensor(initial, device=self.device).log()
        learned: list[Tensor] = [self._actor.values, self._critic.values]
        if self.ent_coef == "auto":
            learned.append(self.log_ent_coef.requires_grad_())
        # One optimiser for all: a step costs one call instead of three.
        self.optimizer = make_adam(learned, self.lr_schedule(1.0), self.device)
        graphs = self.compile == "auto" and self.device.type == "cuda"
        self.exploration = Exploration(policy, self.n_envs, self.uniform_hold, graphs)
        self._captured: CapturedStep[dict[str, Tensor]] | None = (
            CapturedStep([self.generator]) if graphs and self.estimator.capturable else None
        )

    @torch.no_grad()
    def _try_enumeration(self) -> None:
        """Raise here, and not at the first update, where there is too much to enumerate."""
        policy = self.policy
        if self.estimator.evaluations not in ("∏K", "ΣK"):
            return
        features = torch.zeros(1, policy.features_dim, device=self.device)
        dist = FactoredCategorical(policy.actor(features), policy.actions.nvec)
        objective = CriticObjective(
            policy.critic, policy.critic.embed(features), self.actor_objective
        )
        self.estimator(dist, objective, torch.Generator(self.device))

    def _set_progress(self, progress: float) -> None:
        """Move whatever is scheduled, in place where a captured update reads it."""
        self.estimator.set_progress(progress)
        now = self.forward_temperature(progress)
        held = self.policy.forward_temperature
        self.policy.forward_temperature = held.fill_(now) if isinstance(held, Tensor) else now

    def _restore(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._restore(header, tensors)
        self._set_progress(self._progress)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"all": self.optimizer}

    def _extra_tensors(self) -> dict[str, Tensor]:
        trust = {f"trust/{name}": value for name, value in self.trust.state_dict().items()}
        return {"log_ent_coef": self.log_ent_coef, **trust}

    @property
    def _progress(self) -> float:
        """Share of the training that is done; the last vector step may go beyond the budget."""
        return min(max(1.0 - self._current_progress_remaining, 0.0), 1.0)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions of the policy, of uniformly random ones mixed in, or of these alone at first."""
        policy = self.policy
        if self._last_obs is not self._reached:  # from a reset, whoever made it
            self.replay_buffer.cut()
            self.exploration.end()
        mask = self._masks_of_last_obs()
        obs, _ = policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
        indices = self._explore(obs, None if mask is None else mask.to(self.device))  # (N, M)
        actions = policy.actions.to_actions(indices.cpu().numpy())
        return actions, actions

    def _explore(self, obs: Any, mask: Tensor | None) -> Tensor:
        """Actions to train by, int64 [N, M], at observations and their masks [N, ΣK]."""
        warmup = self.num_timesteps < self.learning_starts
        share = 1.0 if warmup else self.uniform_mix(self._progress)
        return self.exploration.choose(obs, mask, share)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        masks = self._masks_of_last_obs()
        reached = self.action_masks.follow(new_obs, dones, infos)  # type: ignore[union-attr]
        self.replay_buffer.step_masks = masks, reached
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.exploration.end(torch.from_numpy(dones).to(self.device))
        self._reached = new_obs

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Stable-Baselines3's, but for on-device environments: there tensors go from environment
        to replay as they are. Wrappers around the environment take the ordinary way."""
        # A wrapper would hand out its inner environment's driver, and be left out.
        driver = None if isinstance(env, VecEnvWrapper) else getattr(env, "driver", None)
        if driver is None or driver.device != self.device:
            rollout = super().collect_rollouts(
                env,
                callback,
                train_freq,
                replay_buffer,
                action_noise,
                learning_starts,
                log_interval,
            )
            if not rollout.continue_training:
                # The step that a callback stopped at was taken and is not stored, so `_last_obs`
                # is not where the environments stand: who learns on begins anew.
                self._last_obs = None
            return rollout
        rollout = self._collect_on_device(env, callback, train_freq.frequency)
        before = self._episode_num
        self._report_episodes(wait=False)
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()
        return rollout

    @torch.no_grad()
    def _collect_on_device(
        self, env: VecEnv, callback: BaseCallback, n_steps: int
    ) -> RolloutReturn:
        policy, n_envs = self.policy, env.num_envs
        policy.set_training_mode(False)
        if self.episodes is None:
            self.episodes = EpisodeCounter((n_envs,), self.device)
        callback.on_rollout_start()  # may make the environments anew
        driver: Any = env.driver  # type: ignore[attr-defined]
        self.episodes.begin_at(driver.elapsed)
        self.replay_buffer.cut(driver.elapsed == 0)
        self.exploration.end(driver.elapsed == 0)
        obs = driver.observe()  # (N, D)
        for step_number in range(1, n_steps + 1):
            indices = self._explore(obs, None).clone()  # (N, M), a graph's own memory before
            step = driver.step(indices)
            done = step.terminated | step.truncated
            dones = HostView(done)
            self.num_timesteps += n_envs
            callback.update_locals(locals())
            if not callback.on_step():
                self.replay_buffer.cut()  # this step is not stored
                return RolloutReturn(step_number * n_envs, 0, continue_training=False)
            self.episodes.add(step.reward, done)
            self.exploration.end(done)
            self.replay_buffer.add_step(
                obs,
                step.final_obs,
                indices,
                step.reward,
                terminated=step.terminated,
                ended=done,
            )
            obs = step.obs
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        callback.on_rollout_end()
        return RolloutReturn(n_steps * n_envs, 0, continue_training=True)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Take `gradient_steps` gradient steps on batches of `batch_size` from the replay."""
        set_learning_rate(self.optimizer, self.lr_schedule(self._current_progress_remaining))
        self._set_progress(self._progress)

        def step(keep_metrics: bool = True) -> dict[str, Tensor]:
            batch = self.replay_buffer.sample(batch_size, self.generator, self.gamma, self.n_steps)
            if self._vec_normalize_env is not None:
                batch = normalized(batch, self._vec_normalize_env, self.n_steps)
            return self._update(batch, keep_metrics)

        for _ in range(gradient_steps):
            self._n_updates += 1
            keep_metrics = self._n_updates % METRICS_EVERY == 0
            if self._captured is None or self._must_run_eagerly():
                metrics = step(keep_metrics)
            else:
                metrics = self._captured.run(self._outside_tensors(batch_size), step)
                self._captured = unless_it_waits(self._captured, "the agent", "updates run")
            if keep_metrics:
                self.metrics.add(metrics)

    def _must_run_eagerly(self) -> bool:
        """Is there work on the host in this update?"""
        return (
            self.trust.due(self._n_updates)
            or self._n_updates <= self.critic_warmup
            or self._vec_normalize_env is not None
        )

    def _outside_tensors(self, batch_size: int) -> Hashable:
        """All that the update depends on and does not find in tensors that stay in place."""
        moments = self.optimizer.state.get(self._actor.values, {}).get("exp_avg")
        temperatures = getattr(self.estimator, "temperature", None), self.policy.forward_temperature
        return (
            batch_size,
            id(moments),  # loading replaces them
            id(self.replay_buffer),
            self.replay_buffer.masks is None,
            *(None if isinstance(t, Tensor) else t for t in temperatures),
        )

    def _update(self, batch: Transitions, keep_metrics: bool) -> dict[str, Tensor]:
        """One gradient step of critics, actor and entropy coefficient, and one of the targets.

        On CUDA it is captured: a fixed sequence of operations on tensors that stay in place, but
        for `trust` and `critic_warmup`, with which it runs eagerly. Returns the metrics, if kept.
        """
        policy, generator = self.policy, self.generator
        ent_coef = self.log_ent_coef.detach().exp()

        phase("actor")
        with torch.no_grad():
            next_features = policy.features(batch.next_obs)
        logits = Tape(policy.actor, policy.features(batch.obs), beside=next_features)
        dist = policy.dist_of(logits.output, batch.masks)

        phase("targets")
        with torch.no_grad():
            next_dist = policy.dist_of(logits.beside, batch.next_masks)
            next_one_hot = next_dist.one_hot(next_dist.sample(generator))  # (B, ΣK)
            target_embedding = policy.critic_target.embed(policy.target_features(batch.next_obs))
            next_value = policy.critic_target.q(target_embedding, next_one_hot).amin(0)  # (B,)
            if self.entropy_reward:
                next_value = torch.addcmul(next_value, ent_coef, next_dist.entropy())
            # Only `terminated` stops the bootstrap; a truncated episode's value lives on.
            target = torch.addcmul(self.reward_scale * batch.rewards, batch.discounts, next_value)

        phase("critic")
        self._critic.grad.zero_()
        embedding = Tape(policy.critic.embed, policy.critic_features(batch.obs))
        one_hot, critic = dist.one_hot(batch.actions), policy.critic  # (B, ΣK)
        with torch.set_grad_enabled(not isinstance(critic, HeadsCritic)):
            q = critic.q(embedding.output, one_hot)  # (C, B)
        error = q.detach() - target
        slope = error / len(target)  # of the loss ½ Σ_c mean_b (q − y)², in q
        if isinstance(critic, HeadsCritic):
            embedding.backward(critic.slope_in_embedding(one_hot, slope))
        else:
            backward_from(q, slope, [embedding.output, *self._beyond_embedding])
            embedding.backward()

        phase("actor")
        self._actor.grad.zero_()
        # The actor climbs the critics as they were when this batch was scored: their embedding is
        # at hand, so the trunk is not evaluated twice.
        objective = CriticObjective(policy.critic, embedding.output.detach(), self.actor_objective)
        actor_loss, slope, entropy = self._climb(dist, objective, ent_coef, logits.output)
        logits.backward(slope)
        if self.trust.due(self._n_updates):
            self.trust.measure(dist, objective, self.estimator)
        if self.ent_coef == "auto":
            # d/d log α of log α · (H − H_target): α falls while the entropy is above its target.
            self.log_ent_coef.grad = entropy - self._entropy_target

        phase("optimiser")
        actor_norm = self._actor.clip_gradient(self.max_grad_norm)
        critic_norm = self._critic.clip_gradient(self.max_grad_norm)
        warmup = self._n_updates <= self.critic_warmup
        self._actor.skip(warmup)
        if warmup:
            self.log_ent_coef.grad = None
        self.optimizer.step()
        with torch.no_grad():
            if self.ent_coef == "auto":
                self.log_ent_coef.clamp_(*LOG_ENT_COEF_RANGE)
            phase("targets")
            self._target.values.lerp_(self._critic.values, self.polyak)

        if not keep_metrics:
            return {}
        metrics = {
            "train/critic_loss": 0.5 * error.square().mean(1).sum(),
            "train/actor_loss": actor_loss,
            "train/q_mean": q.mean(),
            "train/entropy": entropy,
            "train/ent_coef": ent_coef,
            "train/actor_grad_norm": actor_norm,
            "train/critic_grad_norm": critic_norm,
        }
        # Without their graphs, whose nodes would tie the next update to this one's CUDA stream.
        return {name: value.detach() for name, value in metrics.items()}

    def _climb(
        self,
        dist: FactoredCategorical,
        objective: CriticObjective,
        ent_coef: Tensor,
        logits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The actor's loss −mean(f(D) + α H), its slope in the logits [B, ΣK], and mean H."""
        found = None
        if isinstance(self.policy.critic, HeadsCritic):
            found = self.estimator.on_table(dist, objective.table(), self.generator)
        if found is None:
            value = self.estimator(dist, objective, self.generator)  # (B,)
            entropies = dist.entropy()  # (B,)
            loss = -torch.addcmul(value, ent_coef, entropies).mean()
            loss.backward(inputs=[logits])
            assert logits.grad is not None
            return loss, logits.grad, entropies.detach().mean()
        with torch.no_grad():
            value, slope = found
            entropies, entropy_slope = dist.entropy_and_slope()
            loss = -torch.addcmul(value, ent_coef, entropies).mean()
            slope = torch.addcmul(slope, ent_coef, entropy_slope.squeeze(-2))
            # θ' = θ / T; what is forbidden has the slope 0.
            slope /= -len(value) * self.policy.forward_temperature
            return loss, slope, entropies.mean()

    def dump_logs(self) -> None:
        """Write one row of metrics: means since the last row, and the schedules' positions."""
        self._record_metrics()
        for name, mean in self.trust.take().items():
            self.logger.record(name, mean)
        self._report_episodes()
        remaining = self._current_progress_remaining
        self.logger.record("train/learning_rate", self.lr_schedule(remaining))
        self.logger.record("train/n_updates", self._n_updates)
        self.logger.record("train/uniform_mix", self.uniform_mix(self._progress))
        temperature = getattr(self.estimator, "temperature", None)
        if temperature is not None:
            self.logger.record("train/temperature", float(temperature))
        super().dump_logs()

    def save_replay_buffer(  # type: ignore[override]
        self, path: str | Path, earlier: Path | None = None
    ) -> dict[str, str]:
        """Write the replay into a folder, see `TensorReplayBuffer.save`."""
        return self.replay_buffer.save(path, earlier)

    def load_replay_buffer(  # type: ignore[override]
        self, path: str | Path, truncate_last_traj: bool = True
    ) -> None:
        """Read a replay written by `save_replay_buffer`; ValueError when it does not fit."""
        self.replay_buffer.load(path)
