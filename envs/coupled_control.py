"""Many coupled joints driven by binned torques: what pathwise gradients through actions are for."""

from __future__ import annotations

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.references import nearest_bin
from torch import Tensor


class CoupledControl(OnDeviceEnv):
    """Bring a chain of M joints to rest; each has K torques, so there are K^M joint actions.

    Joint m is a double integrator, coupled by springs to its neighbours (the ends to one only):

        v_m' = v_m + dt (u_m + stiffness (p_{m-1} - 2 p_m + p_{m+1})),    p_m' = p_m + dt v_m'
        reward = -mean_m (p_m'² + 0.1 v_m'² + 0.01 u_m²)

    State and observation: positions, then velocities, 2 M numbers; positions start uniform in
    [-1, 1], velocities at 0. Torque and its cost are linear in the one-hots; u are the bins,
    evenly in [-2, 2]. 50 steps. The mean over joints makes returns comparable across M. The task
    is this project's own.

    Args:
        n_factors: M >= 1.
        n_bins: K >= 2.
    """

    max_episode_steps = 50

    dt = 0.1
    stiffness = 1.0
    max_torque = 2.0
    velocity_weight = 0.1
    torque_weight = 0.01

    def __init__(self, n_factors: int = 8, n_bins: int = 5) -> None:
        if n_factors < 1:
            raise ValueError(f"n_factors must be >= 1, got {n_factors}")
        if n_bins < 2:
            raise ValueError(f"n_bins must be >= 2, got {n_bins}")
        self.n_factors = n_factors
        self.nvec = (n_bins,) * n_factors
        self.state_dim = self.observation_dim = 2 * n_factors
        self.n_initial_noise = n_factors
        self.torques = np.linspace(-self.max_torque, self.max_torque, n_bins)  # (K,)
        self.torque_costs = self.torque_weight * self.torques**2

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat((noise * 2 - 1, torch.zeros_like(noise)), -1)

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        position, velocity = state.chunk(2, -1)  # (..., M)
        torque = self._per_joint(one_hot) @ self.constant("torques", state)  # (..., M)
        pull = position.diff(dim=-1)  # (..., M - 1), towards the right neighbour
        spring = torch.nn.functional.pad(pull, (0, 1)) - torch.nn.functional.pad(pull, (1, 0))
        velocity = velocity.add(torque + self.stiffness * spring, alpha=self.dt)
        return torch.cat((position.add(velocity, alpha=self.dt), velocity), -1)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        position, velocity = next_state.chunk(2, -1)
        torque_cost = self._per_joint(one_hot) @ self.constant("torque_costs", state)  # (..., M)
        cost = position.square() + self.velocity_weight * velocity.square() + torque_cost
        return -cost.mean(-1)

    def _per_joint(self, one_hot: Tensor) -> Tensor:
        return one_hot.unflatten(-1, (self.n_factors, -1))  # (..., M, K)

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(A, B, Q, R), float64: x' = A x + B u, reward -(x'ᵀ Q x' + uᵀ R u)."""
        m, eye = self.n_factors, torch.eye(self.n_factors, dtype=torch.float64)
        difference = eye[1:] - eye[:-1]  # (M - 1, M)
        spring = -self.stiffness * difference.T @ difference
        velocity = torch.cat((self.dt * spring, eye), 1)  # rows of A that give v'
        position = torch.cat((eye, torch.zeros_like(eye)), 1) + self.dt * velocity
        a = torch.cat((position, velocity))
        b = torch.cat((self.dt**2 * eye, self.dt * eye))
        q = torch.cat((torch.ones(m), torch.full((m,), self.velocity_weight))).double().diag() / m
        return a, b, q, eye * self.torque_weight / m

    def lqr(self) -> tuple[list[Tensor], float]:
        """Costs-to-go P_0 .. P_T (xᵀ P_t x before step t) with free torques, and the mean return.

        Riccati's recursion. Any real number as torque is allowed there, so no policy of the binned
        task has a higher expected return.
        """
        a, b, q, r = self.matrices()
        costs = [torch.zeros_like(q)]
        for _ in range(self.max_episode_steps):
            p = q + costs[0]
            gain = torch.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
            costs.insert(0, a.T @ p @ (a - b @ gain))
        start = costs[0].diagonal()[: self.n_factors].sum() / 3  # E[p²] = 1/3
        return costs, -float(start)

    def reference(self) -> tuple[float, str]:
        bound = self.lqr()[1]
        value = float(self.greedy_return().mean())
        return value, (
            f"greedy in the bins on the regulator's cost-to-go, simulated (no policy can pass "
            f"the linear-quadratic regulator's {bound:.3f}, whose torques are free)"
        )

    def greedy_return(self, n_episodes: int = 512, sweeps: int = 3, seed: int = 0) -> Tensor:
        """Returns [n_episodes] of the policy that minimises step cost + xᵀ P x over the bins.

        Coordinate descent from the rounded regulator; each torque's best bin is the one nearest to
        its free minimum, because the cost is quadratic in it.
        """
        a, b, q, r = self.matrices()
        costs = self.lqr()[0]
        bins = torch.as_tensor(self.torques)

        def nearest(u: Tensor) -> Tensor:
            return bins[nearest_bin(u, self.torques)]

        noise = torch.rand(
            n_episodes, self.n_factors, generator=torch.Generator().manual_seed(seed)
        )
        x = self.initial(noise.double())  # (N, 2 M)
        returns = torch.zeros(n_episodes, dtype=torch.float64)
        for t in range(self.max_episode_steps):
            p = q + costs[t + 1]
            h, g = r + b.T @ p @ b, x @ a.T @ p @ b  # the cost is uᵀ H u + 2 gᵀ u + const
            u = nearest(-torch.linalg.solve(h, g.T).T)  # (N, M)
            for _ in range(sweeps):
                for m in range(self.n_factors):
                    slope = g[:, m] + u @ h[m] - u[:, m] * h[m, m]
                    u[:, m] = nearest(-slope / h[m, m])
            x = x @ a.T + u @ b.T
            returns -= (x @ q * x).sum(-1) + (u @ r * u).sum(-1)
        return returns
