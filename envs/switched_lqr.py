"""The switched linear-quadratic regulator: a discrete action picks the linear dynamics."""

from __future__ import annotations

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.simulation import StatePolicy, mean_return
from torch import Tensor


class SwitchedLQR(OnDeviceEnv):
    """Keep x small by choosing, at every step, which of K matrices moves it.

        x' = A_k x,    reward = -|x'|² / D

    Mode k shrinks one direction to a third and lets all others grow by 12 %, and turns x by a
    fixed rotation, so no mode is stable alone and the right one depends on x; the switching is the
    whole problem. x' = Σ_k one_hot_k A_k x is linear in the one-hot. State and observation: x, D
    numbers, at first uniform in [-1, 1]. 30 steps. The matrices are drawn once from a fixed seed.
    The setting is that of Zhang, Hu and Abate 2009 ("On the value functions of the discrete-time
    switched LQR problem"); the matrices are this project's own.

    Args:
        n_modes: K >= 2.
        state_dim: D >= 2.
    """

    max_episode_steps = 30

    shrink = 1 / 3
    grow = 1.12

    def __init__(self, n_modes: int = 4, state_dim: int = 4) -> None:
        if n_modes < 2:
            raise ValueError(f"n_modes must be >= 2, got {n_modes}")
        if state_dim < 2:
            raise ValueError(f"state_dim must be >= 2, got {state_dim}")
        self.nvec = (n_modes,)
        self.state_dim = self.observation_dim = self.n_initial_noise = state_dim
        rng = np.random.default_rng(0)
        rotation = np.linalg.qr(rng.standard_normal((state_dim, state_dim)))[0]
        directions = rng.standard_normal((n_modes, state_dim))
        for k in range(min(n_modes, state_dim)):  # the first ones are orthogonal
            directions[k] -= directions[:k].T @ (directions[:k] @ directions[k])
            directions[k] /= np.linalg.norm(directions[k])
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        scale = self.grow * np.eye(state_dim) - (self.grow - self.shrink) * np.einsum(
            "ki,kj->kij", directions, directions
        )
        self.modes = rotation @ scale  # (K, D, D)
        # Column (k, i) of the flat form is row i of A_k: x @ flat gives all A_k x side by side.
        self.flat_modes = self.modes.reshape(-1, state_dim).T  # (D, K D)

    def initial(self, noise: Tensor) -> Tensor:
        return noise * 2 - 1

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        moved = state @ self.constant("flat_modes", state)  # (..., K D)
        moved = moved.unflatten(-1, (self.nvec[0], self.state_dim))  # (..., K, D)
        return (one_hot.unsqueeze(-1) * moved).sum(-2)  # (..., D)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return -next_state.square().mean(-1)

    def reference(self) -> tuple[float, str]:
        return mean_return(self, self.planned_policy(), n_episodes=1024), (
            "greedy on value iteration over quadratic forms, pruned where none of 1,024 sampled "
            "directions wants them, simulated (achievable)"
        )

    @torch.no_grad()
    def planned_policy(self, n_directions: int = 1024, seed: int = 0) -> StatePolicy:
        """The policy that looks one step ahead and then trusts the cost-to-go of real sequences.

        V_t(x) = min over P in H_t of xᵀ P x with H_{t+1} = {A_kᵀ (I/D + P) A_k}: every P is the
        cost of a sequence of modes, so a pruned set gives a cost that can be reached. The steps to
        go are those of a whole episode at every step; far from the end that changes nothing.
        """
        modes = torch.as_tensor(self.modes, dtype=torch.float32)  # (K, D, D)
        generator = torch.Generator().manual_seed(seed)
        # Only directions matter for which form is least; Gaussian samples cover them all.
        sample = torch.randn(n_directions, self.state_dim, generator=generator)
        step_cost = torch.eye(self.state_dim) / self.state_dim
        forms = torch.zeros_like(modes[:1])  # (|H|, D, D)
        for _ in range(self.max_episode_steps):
            forms = torch.einsum("kji,pjl,klm->pkim", modes, forms + step_cost, modes)
            forms = forms.flatten(0, 1)
            forms = forms[_quadratic(sample, forms).argmin(-1).unique()]

        def policy(state: Tensor) -> Tensor:
            moved = torch.einsum("kij,nj->nki", modes, state)  # (N, K, D)
            ahead = _quadratic(moved.flatten(0, 1), forms + step_cost).amin(-1)
            return ahead.reshape(len(state), -1).argmin(-1, keepdim=True)  # (N, 1)

        return policy


def _quadratic(x: Tensor, forms: Tensor) -> Tensor:
    """xᵀ P x for all states [N, D] and forms [P, D, D]: [N, P]."""
    outer = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1)  # (N, D D)
    return outer @ forms.flatten(1).T
