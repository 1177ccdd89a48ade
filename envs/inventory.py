"""Ordering many products into one warehouse, with random demand and lost sales."""

from __future__ import annotations

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.references import nearest_bin
from gumbelrl.envs.simulation import StatePolicy, mean_return
from torch import Tensor


class Inventory(OnDeviceEnv):
    """Choose an order quantity for each of P products; it arrives one step later.

        available = stock + arriving,  lost = (demand - available)⁺
        stock' = 0.9 (available - demand)⁺, the rest has perished
        arriving' = order
        reward = -mean_p (stock'_p + 5 lost_p) - 2 (Σ_p (stock'_p + order_p) - capacity)⁺ / P

    What will lie in the warehouse when the order has arrived, above the capacity of 6 units per
    product, must be stored elsewhere: that couples the products. Demand has a Rayleigh
    distribution, mean 2 to 6 from the first product to the last, drawn by its inverse distribution
    function; it does not depend on state or order, in which everything is piecewise linear.
    Product p's orders are K bins, evenly from 0 to twice its mean demand, linear in the one-hots.
    Stock starts uniform in [0, 2 mean], nothing arriving. 50 steps.

    State: (stock, arriving, lost) [P] each, in units; observation: (stock, arriving) / 10. Lost
    sales with a lead time: Zipkin 2008 ("Old and new methods for lost-sales inventory systems");
    the figures are this project's own.

    Args:
        n_products: P >= 1.
        n_bins: K >= 2.
    """

    max_episode_steps = 50

    kept = 0.9  # of what is left after a step; the rest perishes
    holding_cost = 1.0  # per unit left and step
    lost_cost = 5.0  # per unit of demand that is not met
    overflow_cost = 2.0  # per unit above the capacity
    capacity_per_product = 6.0  # units

    observation_scale = 10.0  # units
    observation_low = 0.0

    def __init__(self, n_products: int = 4, n_bins: int = 6) -> None:
        if n_products < 1:
            raise ValueError(f"n_products must be >= 1, got {n_products}")
        if n_bins < 2:
            raise ValueError(f"n_bins must be >= 2, got {n_bins}")
        self.n_products = n_products
        self.nvec = (n_bins,) * n_products
        self.state_dim, self.observation_dim = 3 * n_products, 2 * n_products
        self.n_initial_noise = self.n_transition_noise = n_products
        self.mean_demand = np.linspace(2.0, 6.0, n_products) if n_products > 1 else np.array([4.0])
        self.demand_scale = self.mean_demand / np.sqrt(np.pi / 4)  # (P,)
        self.order_unit = 2 * self.mean_demand / (n_bins - 1)  # (P,)
        self.bins = np.arange(n_bins)  # (K,)
        self.capacity = self.capacity_per_product * n_products

    def initial(self, noise: Tensor) -> Tensor:
        stock = 2 * noise * self.constant("mean_demand", noise)
        return torch.cat((stock, torch.zeros_like(stock), torch.zeros_like(stock)), -1)

    def demand(self, noise: Tensor) -> Tensor:
        """Rayleigh quantile function, [..., P] -> [..., P] units."""
        return self.constant("demand_scale", noise) * (-torch.log1p(-noise)).sqrt()

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        stock, arriving, _ = state.chunk(3, -1)  # (..., P)
        bin = one_hot.unflatten(-1, (self.n_products, -1)) @ self.constant("bins", state)
        order = bin * self.constant("order_unit", state)
        left = stock + arriving - self.demand(noise)
        return torch.cat((self.kept * left.relu(), order, (-left).relu()), -1)

    def observe(self, state: Tensor) -> Tensor:
        return state[..., : self.observation_dim] / self.observation_scale

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        stock, arriving, lost = next_state.chunk(3, -1)  # (..., P)
        overflow = ((stock + arriving).sum(-1) - self.capacity).relu()
        cost = (self.holding_cost * stock + self.lost_cost * lost).mean(-1)
        return -(cost + overflow * (self.overflow_cost / self.n_products))

    def reference(self) -> tuple[float, str]:
        if self.n_products == 1:
            return mean_return(self, self.one_product_policy()), (
                "dynamic programming over (stock, arriving), its stationary policy simulated"
            )
        levels = self.best_levels()
        return mean_return(self, lambda state: self.order_up_to(state, levels)), (
            "base-stock policy, its levels found by cross-entropy search, simulated (achievable)"
        )

    def order_up_to(self, state: Tensor, levels: Tensor) -> Tensor:
        """Bins [..., P] nearest to what lifts stock + arriving to `levels` [..., P]."""
        stock, arriving, _ = state.chunk(3, -1)
        return nearest_bin(
            (levels - stock - arriving) / self.constant("order_unit", state), self.bins
        )

    @torch.no_grad()
    def best_levels(
        self, n_candidates: int = 128, n_episodes: int = 64, n_iterations: int = 40, seed: int = 0
    ) -> Tensor:
        """Base-stock levels [P] by the cross-entropy method; all candidates see the same demand."""
        generator = torch.Generator().manual_seed(seed)
        mean = 2.5 * torch.as_tensor(self.mean_demand, dtype=torch.float32)
        spread = 0.3 * mean
        eye = torch.eye(self.nvec[0])
        for _ in range(n_iterations):
            normal = torch.randn(n_candidates, 1, self.n_products, generator=generator)
            levels = mean + spread * normal  # (C, 1, P)
            shape = (n_episodes, self.n_products)
            state = self.initial(torch.rand(shape, generator=generator)).expand(
                n_candidates, -1, -1
            )  # (C, E, 3 P)
            returns = torch.zeros(n_candidates, n_episodes)
            for _ in range(self.max_episode_steps):
                one_hot = eye[self.order_up_to(state, levels)].flatten(-2)
                next_state = self.transition(state, one_hot, torch.rand(shape, generator=generator))
                returns += self.reward(state, one_hot, next_state)
                state = next_state
            elite = levels[returns.mean(-1).topk(n_candidates // 8).indices, 0]  # (C / 8, P)
            mean, spread = elite.mean(0), elite.std(0) + 0.01
        return mean

    @torch.no_grad()
    def one_product_policy(self, n_stock: int = 301, n_demand: int = 128) -> StatePolicy:
        """Stationary policy of value iteration over stock (a grid on 0 .. 30) and arriving bin."""
        assert self.n_products == 1
        n_bins = self.nvec[0]
        stock = torch.linspace(0, 30, n_stock)
        orders = torch.as_tensor(self.bins * self.order_unit, dtype=torch.float32)
        quantiles = (torch.arange(n_demand) + 0.5) / n_demand
        demand = self.demand(quantiles.unsqueeze(-1)).squeeze(-1)  # (U,)
        left = stock[:, None, None] + orders[:, None] - demand  # (I, arriving, U)
        next_stock, lost = self.kept * left.relu(), (-left).relu()
        overflow = (next_stock.unsqueeze(-1) + orders - self.capacity).relu()  # (I, a, U, order)
        cost = (self.holding_cost * next_stock + self.lost_cost * lost).mean(-1)  # (I, a)
        cost = cost.unsqueeze(-1) + self.overflow_cost * overflow.mean(2)  # (I, a, order)
        at = next_stock * ((n_stock - 1) / 30)
        cell = at.floor().long().clamp(max=n_stock - 2)
        weight = (at - cell).clamp(max=1).unsqueeze(-1)
        value = torch.zeros(n_stock, n_bins)
        for _ in range(self.max_episode_steps):
            ahead = value[cell] * (1 - weight) + value[cell + 1] * weight  # (I, a, U, order)
            action_value = -cost + ahead.mean(2)
            value = action_value.amax(-1)
        table = action_value.argmax(-1)  # (I, arriving)

        def policy(state: Tensor) -> Tensor:
            row = (state[..., 0] * ((n_stock - 1) / 30)).round().long().clamp(max=n_stock - 1)
            return table[row, nearest_bin(state[..., 1], orders)].unsqueeze(-1)

        return policy
