"""GumbelSHAC: short-horizon actor-critic that backpropagates through the environment."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.captured import CapturedPair, HeldAttributes, unless_it_waits
from gumbelrl.agents.checks import check_choice, check_float, check_int, check_schedule
from gumbelrl.agents.differentiable_envs import as_differentiable_env, new_driver
from gumbelrl.agents.episode_counter import EpisodeCounter, HostView
from gumbelrl.agents.estimators import build_estimator
from gumbelrl.agents.fault_watch import FaultWatch
from gumbelrl.agents.optimization import (
    clip_gradients_per_member,
    make_adam,
    set_learning_rate,
)
from gumbelrl.agents.phases import phase
from gumbelrl.agents.policies import ShacPolicy
from gumbelrl.agents.storage import PickleFreeAlgorithm
from gumbelrl.agents.windows import Window, lambda_returns
from gumbelrl.gumbel import FactoredCategorical, Pathwise
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

METRICS_EVERY = 8  # updates between those whose metrics are kept


class GumbelSHAC(PickleFreeAlgorithm):
    """First-order policy gradient through environment and discrete actions, over short horizons.

    N copies of the environment are unrolled for H steps on the device, each action a
    straight-through one-hot, and one backward pass goes through actions, dynamics and rewards.
    The actor climbs

        J = (1/H) mean_N Σ_starts R_t + α mean H(π),
        R_t = r_t + γ ((1 − λ_a) V(s_{t+1}) + λ_a R_{t+1}),

    where the starts are the window's first step and every step after an episode's end inside it,
    R beyond the window is V, V stands in for R after a truncation, and nothing does after a
    termination. With `actor_lambda` 1, the default, that is SHAC's objective, the H-step return
    plus the value (Xu et al. 2022, arXiv 2204.07137); below 1 it is the λ-return. The gradient is
    cut at episode ends. Where the reward does not depend on the state, as in CartPole, the
    gradient comes through the value alone. The critic is fitted to λ-returns of a target critic.

    S independent seeds train at once by batching their parameters (`n_seeds`): same horizon, S
    times the environments, S policies. `predict` and `save` then speak for seed number 0, and
    `member(i)` gives any of them as an agent of its own.

    Args:
        policy: "MlpPolicy", or a subclass of `ShacPolicy`.
        env: the id of one of gumbelrl's on-device environments ("gumbelrl/CartPole-v1", or
            "CartPole-v1" for short), or a Stable-Baselines3 `VecEnv` of one.
        learning_rate: of the actor, > 0: a number or a schedule (see `GumbelSAC`).
        value_learning_rate: of the critic, > 0, likewise.
        n_envs: N, copies that are unrolled together, >= 1; the `VecEnv`'s own number is not used.
        horizon: H, steps per window, >= 1.
        gamma: discount, in [0, 1].
        gae_lambda: λ of the critic's targets, in [0, 1].
        actor_lambda: λ_a, in (0, 1].
        value_steps: critic gradient steps per window, >= 1, on batches of `N·H / value_batches`.
        value_batches: >= 1.
        polyak: weight of the new critic in its target, in (0, 1].
        estimator: a pathwise estimator's name, or `{"name": ..., **settings}`.
        temperature: τ > 0 or a schedule; None leaves the estimator's own.
        ent_coef: α >= 0.
        actor_beta2: β₂ of the actor's Adam, in [0, 1). A solved task has a small gradient; once
            Adam has forgotten the larger ones it is scaled up to full steps again, and the policy
            walks off along its noise. 0.99 holds a solved CartPole far better than 0.95 and is
            slower where much is left to refine: docs/gumbel_shac.md.
        max_grad_norm: gradients of actor and critic are clipped to this norm, > 0.
        n_seeds: S, >= 1.
        compile: "auto" runs unrolling and update as two CUDA graphs on CUDA where environment and
            estimator allow it; "never" runs them operation by operation. The results are the same.
        policy_kwargs: `ShacPolicy`'s: `net_arch`, `activation`.

    The rest are Stable-Baselines3's. Raises ValueError naming the argument and its range, or, for
    an environment that cannot be differentiated, those that can; while it trains, naming the
    environment and the step that became NaN or infinite (at that step on the CPU, some windows
    later elsewhere).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ShacPolicy,
        "ShacPolicy": ShacPolicy,
    }
    policy: ShacPolicy
    estimator: Pathwise
    episodes: EpisodeCounter
    needs_on_device_env = True
    stores_environments = True  # their tensors are in its file

    def __init__(
        self,
        policy: str | type[ShacPolicy],
        env: GymEnv | str | None,
        learning_rate: float | dict[str, Any] = 3e-3,
        value_learning_rate: float | dict[str, Any] = 1e-2,
        n_envs: int = 16,
        horizon: int = 16,
        gamma: float = 0.98,
        gae_lambda: float = 0.95,
        actor_lambda: float = 1.0,
        value_steps: int = 8,
        value_batches: int = 1,
        polyak: float = 0.5,
        estimator: str | dict[str, Any] = "st_gumbel",
        temperature: float | dict[str, Any] | None = None,
        ent_coef: float = 0.0,
        actor_beta2: float = 0.95,
        max_grad_norm: float = 1.0,
        n_seeds: int = 1,
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
        for name, count in (
            ("n_envs", n_envs),
            ("horizon", horizon),
            ("value_steps", value_steps),
            ("value_batches", value_batches),
            ("n_seeds", n_seeds),
        ):
            check_int(name, count, minimum=1)
        if value_batches > n_envs * horizon:
            raise ValueError(
                f"value_batches must be <= n_envs * horizon = {n_envs * horizon}, "
                f"got {value_batches}"
            )
        check_float("gamma", gamma, low=0, high=1)
        check_float("gae_lambda", gae_lambda, low=0, high=1)
        check_float("actor_lambda", actor_lambda, low=0, high=1, open_low=True)
        check_float("polyak", polyak, low=0, high=1, open_low=True)
        check_float("ent_coef", ent_coef, low=0)
        check_float("actor_beta2", actor_beta2, low=0, high=1, open_high=True)
        check_float("max_grad_norm", max_grad_norm, low=0, open_low=True)
        self.compile = check_choice("compile", compile, ("auto", "never"))
        schedule = check_schedule("learning_rate", learning_rate)
        self.value_lr_schedule = check_schedule("value_learning_rate", value_learning_rate)
        built = build_estimator(estimator, temperature)
        if not isinstance(built, Pathwise):
            raise ValueError(
                f"GumbelSHAC needs a pathwise estimator, got {estimator!r}: take st_gumbel, "
                "straight_through, gumbel_rao or reinmax; for values alone there is GumbelSAC"
            )
        self.estimator = built
        self.horizon = horizon
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.actor_lambda = actor_lambda
        self.value_steps = value_steps
        self.value_batches = value_batches
        self.polyak = polyak
        self.ent_coef = ent_coef
        self.actor_beta2 = actor_beta2
        self.max_grad_norm = max_grad_norm
        self.n_seeds = n_seeds
        vec_env = None if env is None else as_differentiable_env(env)
        super().__init__(
            policy,
            vec_env,
            learning_rate=lambda remaining: schedule(1.0 - remaining),
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        if _init_setup_model:
            if env is None:
                raise ValueError("env must be an environment or its id, got None")
            self._setup_model()

    def _setup_model(self) -> None:
        self.n_envs = self._settings["n_envs"]  # not the `VecEnv`'s: it is there for the API alone
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.actions = FactoredActions(self.action_space)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            n_members=self.n_seeds,
            **self.policy_kwargs,
        ).to(self.device)
        self.estimator.to(self.device)
        if self.device.type == "cuda":
            self.estimator.hold_on(self.device)
        self._prepare_device()
        policy = self.policy
        self._actor_parameters = list(policy.actor.parameters())
        self._value_parameters = list(policy.value_net.parameters())
        self._target_parameters = list(policy.value_target.parameters())
        self.actor_optimizer = make_adam(
            self._actor_parameters,
            self.lr_schedule(1.0),
            self.device,
            betas=(0.9, self.actor_beta2),
        )
        self.value_optimizer = make_adam(
            self._value_parameters, self.value_lr_schedule(0.0), self.device
        )
        self.episodes = EpisodeCounter((self.n_seeds, self.n_envs), self.device)
        self.driver: Any = None
        self._captured: CapturedPair | None = None
        self._stored_driver: dict[str, Tensor] = {}
        if self.env is not None:
            self._make_driver()

    @classmethod
    def _as_vec_env(cls, env: Any) -> VecEnv:
        return as_differentiable_env(env)

    def _make_driver(self) -> None:
        """The training environments, [S, N] of them, on the agent's device."""
        seed = 0 if self.seed is None else self.seed
        assert self.env is not None
        self.driver = new_driver(self.env, (self.n_seeds, self.n_envs), self.device, seed)
        self._obs = self.driver.reset()  # (S, N, D)
        self._captured = self._new_captured()
        self._place = HeldAttributes(
            (self.driver, "state"),
            (self.driver, "elapsed"),
            (self, "_obs"),
            (self.episodes, "returns"),
            (self.episodes, "lengths"),
        )

    def _new_captured(self) -> CapturedPair | None:
        """What holds the captured window; None where it runs operation by operation."""
        if self.compile == "never" or self.device.type != "cuda" or not self.estimator.capturable:
            return None
        return CapturedPair([self.generator, self.driver.generator])

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Train on another environment of the same spaces."""
        vec_env = as_differentiable_env(env)
        self.n_envs = vec_env.num_envs  # Stable-Baselines3 insists; here any number will do
        super().set_env(vec_env, force_reset)
        self.n_envs = self._settings["n_envs"]
        if self.driver is None or force_reset:
            self._make_driver()
        if not force_reset and self._stored_driver:
            self._obs = self._stored_driver.pop("obs").to(self.device)
            self.driver.load_state_dict(self._stored_driver)
        self._stored_driver = {}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "value": self.value_optimizer}

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 10,
        tb_log_name: str = "GumbelSHAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Stable-Baselines3's `learn`. A step is one step of one environment of one seed, so a
        window is `n_envs * horizon` steps whatever `n_seeds`; `log_interval` counts windows."""
        if self.env is None:
            raise ValueError("the agent has no environment; give one with set_env")
        total_timesteps, callbacks = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callbacks.on_training_start(locals(), globals())
        faults = None if self.driver.validate else FaultWatch(self.device)
        windows = 0
        while self.num_timesteps < total_timesteps:
            window = self._unroll(callbacks)
            if window is None:
                break
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self._update(window)
            windows += 1
            if faults is not None:
                faults.look(window.obs, window.rewards.detach())
                if windows % METRICS_EVERY == 0:
                    faults.tell()
            del window  # its graph, before the next window's is captured
            if log_interval is not None and windows % log_interval == 0:
                self.dump_logs()
        if faults is not None:
            faults.tell()
        self._report_episodes()
        callbacks.on_training_end()
        return self

    def _unroll(self, callback: BaseCallback) -> Window | None:
        """H steps of every environment with a graph; None when a callback ends the training.

        The callbacks hear of the steps when all are taken: the device is not kept waiting between
        them.
        """
        callback.on_rollout_start()  # may make the environments anew
        progress = 1.0 - self._current_progress_remaining
        self.estimator.set_progress(min(max(progress, 0.0), 1.0))
        if self._captured is None:
            window = self._roll()
        else:
            self._place.hold()
            window = self._captured.first(
                self._outside_tensors(), lambda: self._place.move(self._roll)
            )
            env = type(self.driver.env).__name__
            self._captured = unless_it_waits(self._captured, env, "windows run")
        ended = window.ended
        # Copies: a captured window lies where the next one will.
        self.episodes.keep(ended, window.returns.clone(), window.lengths.clone())
        for step, done in zip(window.steps, ended, strict=True):
            self.num_timesteps += self.n_envs
            callback.update_locals(
                {"obs": step.obs.detach(), "step": step, "dones": HostView(done)}
            )
            if not callback.on_step():
                return None
        callback.update_locals({"step": None})
        callback.on_rollout_end()
        return window

    def _roll(self) -> Window:
        """The steps themselves: nothing here waits for the device."""
        policy, driver = self.policy, self.driver
        driver.detach()
        # A product's last bits depend on how its factors lie in memory, which no file remembers.
        driver.state, obs = driver.state.contiguous(), self._obs.detach().contiguous()
        columns: dict[str, list[Tensor]] = defaultdict(list)
        one_hots, steps = [], []
        for _ in range(self.horizon):
            dist = FactoredCategorical(policy.actor(obs), self.actions.nvec, validate=False)
            one_hot = self.estimator.rsample(dist, self.generator)  # (S, N, ΣK)
            step = driver.step(one_hot)
            returns, lengths = self.episodes.count(step.reward, step.terminated | step.truncated)
            columns["obs"].append(obs.detach())
            columns["rewards"].append(step.reward)
            columns["next_values"].append(policy.value_target(step.final_obs).squeeze(-1))
            columns["terminated"].append(step.terminated)
            columns["truncated"].append(step.truncated)
            columns["entropies"].append(dist.entropy())
            columns["returns"].append(returns)
            columns["lengths"].append(lengths)
            one_hots.append(one_hot)
            steps.append(step)
            obs = self._obs = step.obs
        # The window's graph is not kept beyond its use.
        self._obs = obs.detach()
        driver.detach()
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        return Window(**stacked, one_hots=one_hots, steps=steps)

    def _outside_tensors(self) -> Hashable:
        """All that a window and its update depend on and do not find in tensors that stay put."""
        moments = self.actor_optimizer.state.get(self._actor_parameters[0], {}).get("exp_avg")
        temperature = getattr(self.estimator, "temperature", None)
        # Loading replaces the moments.
        return id(moments), None if isinstance(temperature, Tensor) else temperature

    def _update(self, window: Window) -> None:
        """One actor step through the window, then `value_steps` critic steps on its λ-returns."""
        self._n_updates += 1
        keep_metrics = self._n_updates % METRICS_EVERY == 0
        progress = 1.0 - self._current_progress_remaining
        set_learning_rate(self.actor_optimizer, self.lr_schedule(1.0 - progress))
        set_learning_rate(self.value_optimizer, self.value_lr_schedule(progress))
        if self._captured is None:
            metrics = self._learn_from(window, keep_metrics)
        else:
            metrics = self._captured.second(lambda: self._learn_from(window, True))
        if keep_metrics:
            self.metrics.add(metrics)

    def _learn_from(self, window: Window, keep_metrics: bool) -> dict[str, Tensor]:
        """The steps of the optimisers; returns the metrics, if kept."""
        phase("actor")
        returns = lambda_returns(window, self.gamma, self.actor_lambda)  # (H, S, N)
        ended = window.ended
        starts = torch.cat([torch.ones_like(ended[:1]), ended[:-1]])
        # Sums over seeds, means over the rest: each seed's gradient is its own.
        value = (returns * starts).sum(0).mean(-1)  # (S,)
        entropy = window.entropies.mean((0, 2))  # (S,)
        actor_loss = -(value / self.horizon + self.ent_coef * entropy).sum()
        inputs: list[Tensor] = [*self._actor_parameters]
        if keep_metrics:
            for one_hot in window.one_hots:
                one_hot.retain_grad()
            inputs += window.one_hots
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=inputs)
        actor_norm = clip_gradients_per_member(self._actor_parameters, self.max_grad_norm)
        self.actor_optimizer.step()

        phase("targets")
        with torch.no_grad():
            targets = lambda_returns(window, self.gamma, self.gae_lambda)
        phase("critic")
        value_loss = self._fit_value(window.obs, targets)
        if not keep_metrics:
            return {}
        metrics = {
            "train/actor_loss": actor_loss / self.n_seeds,
            "train/value_loss": value_loss / self.n_seeds,
            "train/value_mean": targets.mean(),
            "train/entropy": entropy.mean(),
            "train/actor_grad_norm": actor_norm.mean(),
            **self._gradient_norms_by_depth(window.one_hots),
        }
        # Without their graphs, whose nodes would tie the next update to this one's CUDA stream.
        return {name: metric.detach() for name, metric in metrics.items()}

    def _gradient_norms_by_depth(self, one_hots: Sequence[Tensor]) -> dict[str, Tensor]:
        """‖∂J/∂D_t‖ at the window's first, middle and last action: it grows where unrolls explode.

        The first action's gradient has gone through H − 1 steps of dynamics, the last one's
        through none.
        """
        depths = {"first": 0, "middle": self.horizon // 2, "last": self.horizon - 1}
        norms = {}
        for name, t in depths.items():
            gradient = one_hots[t].grad
            if gradient is not None:
                norms[f"train/action_grad_norm_{name}"] = gradient.norm()
        return norms

    def _fit_value(self, obs: Tensor, targets: Tensor) -> Tensor:
        """Regression of V on the targets; returns the last loss, summed over seeds."""
        obs = obs.transpose(0, 1).flatten(1, 2)  # (S, H·N, D)
        targets = targets.transpose(0, 1).flatten(1, 2)  # (S, H·N)
        n_rows = targets.shape[1]
        size = math.ceil(n_rows / self.value_batches)
        loss = targets.new_zeros(())
        for step in range(self.value_steps):
            batch_obs, batch_targets = obs, targets
            if self.value_batches > 1:
                if step % self.value_batches == 0:
                    order = torch.randperm(n_rows, generator=self.generator, device=self.device)
                index = order[(step % self.value_batches) * size :][:size]
                batch_obs, batch_targets = obs[:, index], targets[:, index]
            value = self.policy.value_net(batch_obs).squeeze(-1)
            loss = 0.5 * (value - batch_targets).square().mean(-1).sum()
            self.value_optimizer.zero_grad()
            loss.backward()
            clip_gradients_per_member(self._value_parameters, self.max_grad_norm)
            self.value_optimizer.step()
        phase("targets")
        with torch.no_grad():
            torch._foreach_lerp_(
                self._target_parameters,  # type: ignore[arg-type]
                self._value_parameters,  # type: ignore[arg-type]
                self.polyak,
            )
        phase("training")
        return loss.detach()

    def dump_logs(self) -> None:
        """Write one row of metrics: means since the last row, and the schedules' positions."""
        record = self.logger.record
        self._record_metrics()
        self._report_episodes()
        if self.ep_info_buffer:
            record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        record("train/learning_rate", self.lr_schedule(self._current_progress_remaining))
        record("train/n_updates", self._n_updates)
        temperature = getattr(self.estimator, "temperature", None)
        if temperature is not None:
            record("train/temperature", float(temperature))
        record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(step=self.num_timesteps)

    def _extra_tensors(self) -> dict[str, Tensor]:
        tensors = {
            "episode_returns": self.episodes.returns,
            "episode_lengths": self.episodes.lengths,
        }
        if self.driver is not None:
            tensors |= {f"driver/{k}": v for k, v in self.driver.state_dict().items()}
            tensors["driver/obs"] = self._obs.detach()
        return tensors

    def _restore(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._restore(header, tensors)
        if self._captured is not None:
            self._captured.forget()
        # The environments come after the agent: `set_env(env, force_reset=False)` goes on in them.
        prefix = "extra/driver/"
        self._stored_driver = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    def evaluate_seeds(self, episodes: int, seed: int = 0, deterministic: bool = True) -> Tensor:
        """Mean undiscounted return of each seed's policy over whole episodes, [S], on the device.

        Every seed plays `episodes` environments at once, from the same starts, one episode each.

        Raises:
            ValueError: no environment, one without a time limit, or episodes < 1.
        """
        check_int("episodes", episodes, minimum=1)
        if self.env is None or self.driver.max_episode_steps is None:
            raise ValueError("evaluate_seeds needs an environment with a time limit")
        generator = torch.Generator(self.device).manual_seed(seed)
        driver = new_driver(self.env, (self.n_seeds, episodes), self.device, seed)
        obs = driver.reset()
        total = torch.zeros(self.n_seeds, episodes, device=self.device)
        playing = torch.ones_like(total, dtype=torch.bool)
        with torch.no_grad():
            for _ in range(driver.max_episode_steps):
                logits = self.policy.actor(obs)
                dist = FactoredCategorical(logits, self.actions.nvec, validate=False)
                step = driver.step(dist.mode() if deterministic else dist.sample(generator))
                total += step.reward * playing
                playing &= ~(step.terminated | step.truncated)
                obs = step.obs
        return total.mean(1)

    def member(self, index: int) -> GumbelSHAC:
        """Seed number `index` as an agent of its own: its weights, a fresh optimiser.

        Raises:
            ValueError: no such seed.
        """
        if check_int("index", index, minimum=0) >= self.n_seeds:
            raise ValueError(f"index must be in [0, {self.n_seeds}), got {index}")
        settings = deepcopy({**self._settings, "n_seeds": 1})
        agent = type(self)(
            self.policy_class,  # type: ignore[arg-type]
            None,
            device=self.device,
            _init_setup_model=False,
            **settings,
        )
        agent._policy_name = self._policy_name
        agent.observation_space, agent.action_space = self.observation_space, self.action_space
        agent._setup_model()
        if self.env is not None:
            agent.set_env(self.env)
        weights = {k: v[index : index + 1] for k, v in self.policy.state_dict().items()}
        agent.policy.load_state_dict(weights)
        return agent
