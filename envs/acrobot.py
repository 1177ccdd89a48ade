"""Acrobot-v1, on the device and differentiable."""

from __future__ import annotations

import math

from gumbelrl.envs.on_device import OnDeviceEnv, columns
from torch import Tensor

Columns = tuple[Tensor, ...]  # θ1, θ2, θ1', θ2'


class Acrobot(OnDeviceEnv):
    """Swing the tip of a two-link arm above the line by torque on its elbow; −1 per step.

    State: (θ1, θ2 [rad], θ1', θ2' [rad/s]); observation: (cos θ1, sin θ1, cos θ2, sin θ2, θ1',
    θ2'). The torque is linear in the one-hot: <one_hot, (-1, 0, 1)> N m. The reward is sparse and
    has no slope: a pathwise gradient reaches the policy through a value function alone.

    Equations and constants are those of Gymnasium's Acrobot-v1 (the "book" variant of Sutton and
    Barto 2018, section 11.3): every mass, length and moment of inertia is 1, centres of mass at
    0.5, one Runge-Kutta step of 0.2 s.
    """

    state_dim = 4
    observation_dim = 6
    nvec = (3,)
    n_initial_noise = 4
    max_episode_steps = 500

    gravity = 9.8  # m/s²
    torques = (-1.0, 0.0, 1.0)  # N m
    dt = 0.2  # s per step
    max_velocity_1 = 4 * math.pi  # rad/s
    max_velocity_2 = 9 * math.pi

    observation_low = (-1, -1, -1, -1, -max_velocity_1, -max_velocity_2)
    observation_high = (1, 1, 1, 1, max_velocity_1, max_velocity_2)

    def initial(self, noise: Tensor) -> Tensor:
        return noise * 0.2 - 0.1

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        y0 = state.unbind(-1)
        torque = one_hot @ self.constant("torques", state)  # (...)
        k1 = self._derivative(y0, torque)
        k2 = self._derivative(_advance(y0, k1, self.dt / 2), torque)
        k3 = self._derivative(_advance(y0, k2, self.dt / 2), torque)
        k4 = self._derivative(_advance(y0, k3, self.dt), torque)
        theta1, theta2, dtheta1, dtheta2 = (
            y.add(a + 2 * (b + c) + d, alpha=self.dt / 6)
            for y, a, b, c, d in zip(y0, k1, k2, k3, k4, strict=True)
        )
        return columns(
            _wrap(theta1),
            _wrap(theta2),
            dtheta1.clamp(-self.max_velocity_1, self.max_velocity_1),
            dtheta2.clamp(-self.max_velocity_2, self.max_velocity_2),
        )

    def _derivative(self, y: Columns, torque: Tensor) -> Columns:
        theta1, theta2, dtheta1, dtheta2 = y
        cos2, sin2 = theta2.cos(), theta2.sin()
        d1 = cos2 + 3.5
        d2 = 0.5 * cos2 + 1.25
        phi2 = 0.5 * self.gravity * (theta1 + theta2).sin()
        phi1 = 1.5 * self.gravity * theta1.sin() - (0.5 * dtheta2 + dtheta1) * dtheta2 * sin2 + phi2
        ratio = d2 / d1
        ddtheta2 = (torque + ratio * phi1 - 0.5 * dtheta1.square() * sin2 - phi2) / (
            1.25 - ratio * d2
        )
        return dtheta1, dtheta2, -(ratio * ddtheta2 + phi1 / d1), ddtheta2

    def observe(self, state: Tensor) -> Tensor:
        theta1, theta2, dtheta1, dtheta2 = state.unbind(-1)
        return columns(theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), dtheta1, dtheta2)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return self.terminated(next_state).to(state.dtype) - 1

    def terminated(self, state: Tensor) -> Tensor:
        theta1, theta2 = state[..., 0], state[..., 1]
        return theta1.cos() + (theta1 + theta2).cos() < -1  # the tip's height is minus this sum

    def energy(self, state: Tensor) -> Tensor:
        """Mechanical energy [J], [...]; what a swing-up has to pump in."""
        theta1, theta2, dtheta1, dtheta2 = state.unbind(-1)
        cos2 = theta2.cos()
        kinetic = 0.5 * (
            (3.5 + cos2) * dtheta1.square()
            + 2 * (1.25 + 0.5 * cos2) * dtheta1 * dtheta2
            + 1.25 * dtheta2.square()
        )
        height = -1.5 * theta1.cos() - 0.5 * (theta1 + theta2).cos()
        return kinetic + self.gravity * height

    def reference(self) -> tuple[float, str]:
        from gumbelrl.envs.references import beam_search

        value = beam_search(self, self.energy, n_starts=32, width=1024, max_steps=150)
        return value, "beam search from 32 starts, 1,024 states wide, ranked by energy (achievable)"


def _advance(y: Columns, slope: Columns, dt: float) -> Columns:
    return tuple(number.add(rate, alpha=dt) for number, rate in zip(y, slope, strict=True))


def _wrap(angle: Tensor) -> Tensor:
    """The same angle in (-π, π]; slope 1."""
    turns = ((angle - math.pi) / (2 * math.pi)).ceil()
    return angle.sub(turns, alpha=2 * math.pi)
