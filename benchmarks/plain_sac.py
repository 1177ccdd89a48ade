"""Discrete SAC as single-file implementations have it, to be timed beside: plain, and compiled.

With the critics Q_1 and Q_2, their slow copies Q'_i, and H the entropy of π(·|s) (Christodoulou
2019, arXiv 1910.07207):

    y   = r + γ (1 − terminated) Σ_a π(a|s') (min_i Q'_i(s', a) − α log π(a|s'))
    J_Q = Σ_i ½ E (Q_i(s, a) − y)²
    J_π = E Σ_a π(a|s) (α log π(a|s) − min_i Q_i(s, a))
    J_α = log α (E H − H_target)

`PlainSAC` is in the manner of CleanRL: network by network, loss by loss, torch's Adam as it comes,
the replay in NumPy. `LeanSAC` computes the same in the manner of LeanRL: both critics as one
batched module, losses and policy under `torch.compile`, fused Adam, a replay of tensors. LeanRL's
CUDA graphs have no counterpart on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""obs [B, D], actions int64 [B, 1], rewards [B], next_obs [B, D], γ (1 − terminated) [B]."""


def network(n_inputs: int, width: int, n_outputs: int) -> nn.Sequential:
    """A perceptron of two hidden layers."""
    return nn.Sequential(
        nn.Linear(n_inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_outputs),
    )


class Stacked(nn.Module):
    """Networks of one shape as batched products: [B, D] -> [N, B, K]."""

    def __init__(self, networks: Iterable[nn.Sequential]) -> None:
        super().__init__()
        layers = [[x for x in net if isinstance(x, nn.Linear)] for net in networks]
        together = [*zip(*layers, strict=True)]  # the N first layers, the N second ones, ...
        self.weights = nn.ParameterList(
            [torch.stack([x.weight.detach().T for x in same]).contiguous() for same in together]
        )
        self.biases = nn.ParameterList(
            [torch.stack([x.bias.detach() for x in same]).unsqueeze(1) for same in together]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.biases[0]), *x.shape)  # (N, B, D)
        *hidden, last = zip(self.biases, self.weights, strict=True)
        for bias, weight in hidden:
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(last[0], x, last[1])


class PlainSAC:
    """One network, one loss and one optimiser after the other.

    Args:
        env_id: a Gymnasium environment with flat observations and Discrete actions.
        width: of both hidden layers of every network.
        batch_size: transitions per update.
        learning_starts: steps of random actions before the first update.
        target_entropy: as a fraction of log K.
    """

    def __init__(
        self,
        env_id: str,
        width: int,
        batch_size: int,
        learning_starts: int,
        *,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        tau: float = 0.005,
        target_entropy: float = 0.3,
        buffer_size: int = 100_000,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.env = gymnasium.vector.SyncVectorEnv(
            [lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(env_id))],
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )
        obs_space: Any = self.env.single_observation_space
        self.n_actions = int(self.env.single_action_space.n)  # type: ignore[attr-defined]
        self.actor = network(obs_space.shape[0], width, self.n_actions)
        self.critics: list[Any] = [
            network(obs_space.shape[0], width, self.n_actions) for _ in range(2)
        ]
        self.targets = deepcopy(self.critics)
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.learning_rate, self.gamma, self.tau = learning_rate, gamma, tau
        self.target_entropy = target_entropy * math.log(self.n_actions)
        self.batch_size, self.learning_starts = batch_size, learning_starts
        self.num_timesteps = 0
        self.env.action_space.seed(seed)
        self.obs, _ = self.env.reset(seed=seed)
        self._make_optimizers()
        self._make_replay(buffer_size)

    def _make_optimizers(self, **settings: Any) -> None:
        both = [p for critic in self.critics for p in critic.parameters()]
        actor, rate = self.actor.parameters(), self.learning_rate
        self.critic_optimizer = torch.optim.Adam(both, rate, **settings)
        self.actor_optimizer = torch.optim.Adam(actor, rate, **settings)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], rate, **settings)

    def _make_replay(self, buffer_size: int) -> None:
        from stable_baselines3.common.buffers import ReplayBuffer

        spaces = self.env.single_observation_space, self.env.single_action_space
        self.replay: Any = ReplayBuffer(
            buffer_size, *spaces, device="cpu", handle_timeout_termination=False
        )

    def sample(self, batch_size: int) -> Batch:
        """A batch from the replay."""
        data = self.replay.sample(batch_size)
        discounts = self.gamma * (1 - data.dones.flatten())
        rewards = data.rewards.flatten()
        return data.observations, data.actions, rewards, data.next_observations, discounts

    def act(self, obs: Tensor) -> Tensor:
        """Actions int64 [N], drawn."""
        return torch.distributions.Categorical(logits=self.actor(obs)).sample()

    def learn(self, total_timesteps: int, **settings: Any) -> None:
        """So many further steps, each with an update once `learning_starts` of them are made.

        `settings` are Stable-Baselines3's, and of no effect.
        """
        for _ in range(total_timesteps):
            if self.num_timesteps < self.learning_starts:
                actions = self.env.action_space.sample()
            else:
                with torch.no_grad():
                    actions = self.act(torch.as_tensor(self.obs)).numpy()
            next_obs, rewards, terminated, truncated, infos = self.env.step(actions)
            reached = next_obs.copy()
            for i in np.flatnonzero(terminated | truncated):
                reached[i] = infos["final_obs"][i]
            self.replay.add(self.obs, reached, actions, rewards, terminated, [{}])
            self.obs = next_obs
            self.num_timesteps += 1
            if self.num_timesteps > self.learning_starts:
                self.train(1, self.batch_size)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Updates on batches from the replay."""
        for _ in range(gradient_steps):
            self.update(self.sample(batch_size))

    def critic_values(self, obs: Tensor) -> Sequence[Tensor]:
        """Every action's value [B, K] from each critic."""
        return [critic(obs) for critic in self.critics]

    def target_values(self, obs: Tensor) -> Sequence[Tensor]:
        """Every action's value [B, K] from each slow copy."""
        return [target(obs) for target in self.targets]

    def critic_loss(self, batch: Batch) -> Tensor:
        """J_Q."""
        obs, actions, rewards, next_obs, discounts = batch
        with torch.no_grad():
            log_pi = F.log_softmax(self.actor(next_obs), -1)  # (B, K)
            first, second = self.target_values(next_obs)  # (B, K)
            soft = torch.minimum(first, second) - self.log_alpha.exp() * log_pi
            y = rewards + discounts * (log_pi.exp() * soft).sum(-1)  # (B,)
        first, second = (q.gather(1, actions).squeeze(1) for q in self.critic_values(obs))
        return 0.5 * (F.mse_loss(first, y) + F.mse_loss(second, y))

    def actor_loss(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """J_π, and the mean entropy."""
        log_pi = F.log_softmax(self.actor(obs), -1)  # (B, K)
        pi = log_pi.exp()
        with torch.no_grad():
            first, second = self.critic_values(obs)
            q = torch.minimum(first, second)
            alpha = self.log_alpha.exp()
        loss = (pi * (alpha * log_pi - q)).sum(-1).mean()
        return loss, -(pi * log_pi).sum(-1).mean().detach()

    def update(self, batch: Batch) -> None:
        """One step of critics, actor, α and targets, in this order."""
        loss = self.critic_loss(batch)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()

        loss, entropy = self.actor_loss(batch[0])
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()

        loss = (self.log_alpha * (entropy - self.target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        loss.backward()
        self.alpha_optimizer.step()

        self._move_targets()

    def _move_targets(self) -> None:
        for critic, target in zip(self.critics, self.targets, strict=True):
            for new, slow in zip(critic.parameters(), target.parameters(), strict=True):
                slow.data.copy_(self.tau * new.data + (1 - self.tau) * slow.data)


class LeanSAC(PlainSAC):
    """`PlainSAC` with less between its arithmetic; the arguments are the same.

    `compile=False` leaves out the compiler.
    """

    def __init__(self, *args: Any, compile: bool = True, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if compile:
            for name in ("critic_loss", "actor_loss", "act"):
                setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def _make_optimizers(self, **settings: Any) -> None:
        self.stack, self.slow_stack = Stacked(self.critics), Stacked(self.targets)
        self.critics, self.targets = [self.stack], [self.slow_stack]
        self._new = [p.data for p in self.stack.parameters()]
        self._slow = [p.data for p in self.slow_stack.parameters()]
        super()._make_optimizers(fused=True, **settings)

    def _make_replay(self, buffer_size: int) -> None:
        from gumbelrl.agents.replay import TensorReplayBuffer

        spaces = self.env.single_observation_space, self.env.single_action_space
        self.replay = TensorReplayBuffer(buffer_size, *spaces)

    def sample(self, batch_size: int) -> Batch:
        """A batch from the replay."""
        data = self.replay.sample(batch_size, gamma=self.gamma)
        return data.obs, data.actions, data.rewards, data.next_obs, data.discounts

    def critic_values(self, obs: Tensor) -> Any:
        """Every action's value from each critic, [2, B, K]."""
        return self.stack(obs)

    def target_values(self, obs: Tensor) -> Any:
        """Every action's value from each slow copy, [2, B, K]."""
        return self.slow_stack(obs)

    def _move_targets(self) -> None:
        torch._foreach_lerp_(self._slow, self._new, self.tau)
