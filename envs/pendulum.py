"""Pendulum-v1 with binned torque, on the device and differentiable."""

from __future__ import annotations

import math

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv, columns
from torch import Tensor


class Pendulum(OnDeviceEnv):
    """Swing up and balance a pendulum with K torques; minus a quadratic cost, 200 steps.

    State: (θ [rad, 0 upright], θ' [rad/s]); observation: (cos θ, sin θ, θ'). Torque and its cost
    are linear in the one-hot: <one_hot, u> and <one_hot, u²> with u the bins, evenly in [-2, 2].

    Equations and constants are those of Gymnasium's Pendulum-v1, whose torque is continuous.

    Args:
        n_bins: K >= 2.
    """

    state_dim = 2
    observation_dim = 3
    n_initial_noise = 2
    max_episode_steps = 200

    gravity = 10.0  # m/s²
    max_speed = 8.0  # rad/s
    max_torque = 2.0  # N m
    dt = 0.05  # s per step

    observation_low = (-1, -1, -max_speed)
    observation_high = (1, 1, max_speed)

    def __init__(self, n_bins: int = 5) -> None:
        if n_bins < 2:
            raise ValueError(f"n_bins must be >= 2, got {n_bins}")
        self.nvec = (n_bins,)
        self.torques = np.linspace(-self.max_torque, self.max_torque, n_bins)  # (K,) N m
        self.torque_costs = 0.001 * self.torques**2

    def initial(self, noise: Tensor) -> Tensor:
        scaled = noise * 2 - 1
        return columns(scaled[..., 0] * math.pi, scaled[..., 1])

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(-1)
        torque = one_hot @ self.constant("torques", state)  # (...)
        theta_acc = 1.5 * self.gravity * theta.sin() + 3 * torque  # 1 kg, 1 m
        theta_dot = theta_dot.add(theta_acc, alpha=self.dt).clamp(-self.max_speed, self.max_speed)
        return columns(theta.add(theta_dot, alpha=self.dt), theta_dot)

    def observe(self, state: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(-1)
        return columns(theta.cos(), theta.sin(), theta_dot)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(-1)
        angle = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        torque_cost = one_hot @ self.constant("torque_costs", state)
        return -(angle.square() + 0.1 * theta_dot.square() + torque_cost)

    def reference(self) -> tuple[float, str]:
        from gumbelrl.envs.references import grid_policy
        from gumbelrl.envs.simulation import mean_return

        policy = grid_policy(
            self,
            (-math.pi, -self.max_speed),
            (math.pi, self.max_speed),
            (181, 161),
            gamma=1.0,
            periodic=True,
        )
        value = mean_return(self, policy, n_episodes=1024)
        return value, "the greedy policy of value iteration on a 181 x 161 grid, simulated"
