"""MountainCar-v0, on the device and differentiable."""

from __future__ import annotations

import torch
from gumbelrl.envs.on_device import OnDeviceEnv, columns
from torch import Tensor


class MountainCar(OnDeviceEnv):
    """Drive an underpowered car out of a valley; −1 per step until the flag, 200 steps at most.

    State and observation: (position, velocity per step). The force is linear in the one-hot:
    <one_hot, (-1, 0, 1)> · 0.001. The reward is sparse and has no slope: a pathwise gradient
    reaches the policy through a value function alone.

    Equations and constants are those of Gymnasium's MountainCar-v0 (Moore 1990).
    """

    state_dim = 2
    observation_dim = 2
    nvec = (3,)
    n_initial_noise = 1
    max_episode_steps = 200

    min_position = -1.2
    max_position = 0.6
    max_speed = 0.07  # per step
    goal_position = 0.5
    forces = (-0.001, 0.0, 0.001)
    gravity = 0.0025

    observation_low = (min_position, -max_speed)
    observation_high = (max_position, max_speed)

    def initial(self, noise: Tensor) -> Tensor:
        position = noise[..., 0] * 0.2 - 0.6
        return columns(position, torch.zeros_like(position))

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        position, velocity = state.unbind(-1)
        force = one_hot @ self.constant("forces", state)  # (...)
        velocity = velocity + force - self.gravity * (3 * position).cos()
        velocity = velocity.clamp(-self.max_speed, self.max_speed)
        position = (position + velocity).clamp(self.min_position, self.max_position)
        at_wall = (position <= self.min_position) & (velocity < 0)
        return columns(position, velocity.masked_fill(at_wall, 0.0))

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return torch.full_like(next_state[..., 0], -1.0)

    def terminated(self, state: Tensor) -> Tensor:
        return (state[..., 0] >= self.goal_position) & (state[..., 1] >= 0)

    def reference(self) -> tuple[float, str]:
        from gumbelrl.envs.references import grid_policy
        from gumbelrl.envs.simulation import mean_return

        policy = grid_policy(
            self, self.observation_low, self.observation_high, (361, 281), gamma=1.0
        )
        value = mean_return(self, policy, n_episodes=1024)
        return value, "the greedy policy of value iteration on a 361 x 281 grid, simulated"
