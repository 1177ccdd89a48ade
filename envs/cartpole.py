"""CartPole-v1, on the device and differentiable."""

from __future__ import annotations

import math

import torch
from gumbelrl.envs.on_device import OnDeviceEnv, columns
from torch import Tensor


class CartPole(OnDeviceEnv):
    """Balance a pole on a cart that is pushed left or right; +1 per step, 500 steps at most.

    State and observation: (x [m], x' [m/s], θ [rad], θ' [rad/s]). The force is linear in the
    one-hot: <one_hot, (-10, 10)> N. The reward is constant, so a pathwise gradient reaches the
    policy through a value function alone.

    Equations and constants are those of Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983,
    in the form of Florian 2007), explicit Euler at 0.02 s.
    """

    state_dim = 4
    observation_dim = 4
    nvec = (2,)
    n_initial_noise = 4
    max_episode_steps = 500

    gravity = 9.8  # m/s²
    mass_pole = 0.1  # kg
    mass_total = 1.1  # kg, with the cart
    half_length = 0.5  # m, of the pole
    accelerations = (-10.0 / mass_total, 10.0 / mass_total)  # m/s², pushes of 10 N
    tau = 0.02  # s per step
    x_limit = 2.4  # m
    theta_limit = 12 * 2 * math.pi / 360  # rad

    observation_low = (-2 * x_limit, -math.inf, -2 * theta_limit, -math.inf)
    observation_high = (2 * x_limit, math.inf, 2 * theta_limit, math.inf)

    def initial(self, noise: Tensor) -> Tensor:
        return noise * 0.1 - 0.05

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        x, x_dot, theta, theta_dot = state.unbind(-1)
        acceleration = one_hot @ self.constant("accelerations", state)  # (...) force / mass
        cos, sin = theta.cos(), theta.sin()
        leverage = self.mass_pole * self.half_length / self.mass_total  # m

        # push = (F + m l θ'² sin θ) / M;  θ'' = (g sin θ - cos θ push) / (l (4/3 - m/M cos² θ));
        # x'' = push - m l / M θ'' cos θ. Fused operations: half the time goes into launching them.
        push = acceleration.addcmul(theta_dot.square(), sin, value=leverage)
        inertia = torch.rsub(cos.square(), self.half_length * 4 / 3, alpha=leverage)
        theta_acc = (sin * self.gravity).addcmul(cos, push, value=-1) / inertia
        x_acc = push.addcmul(theta_acc, cos, value=-leverage)
        return columns(
            x.add(x_dot, alpha=self.tau),
            x_dot.add(x_acc, alpha=self.tau),
            theta.add(theta_dot, alpha=self.tau),
            theta_dot.add(theta_acc, alpha=self.tau),
        )

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return torch.ones_like(next_state[..., 0])

    def terminated(self, state: Tensor) -> Tensor:
        return (state[..., 0].abs() > self.x_limit) | (state[..., 2].abs() > self.theta_limit)

    def reference(self) -> tuple[float, str]:
        return float(self.max_episode_steps), "the time limit: a balanced pole never falls"
