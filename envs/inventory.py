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
        price = self.best_price()
        return mean_return(self, self.priced_policy(price)), (
            f"dynamic programming for each product at a shared price of space, {price:g} per unit, "
            "found by search, simulated (achievable)"
        )

    def best_price(self, seed: int = 1) -> float:
        """The price of space whose policies cost least together, to 1/16 per unit."""

        def simulated(price: float) -> float:
            return mean_return(self, self.priced_policy(price), n_episodes=1024, seed=seed)

        values = {price: simulated(price) for price in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)}
        for step in (0.125, 0.0625):
            best = max(values, key=lambda price: values[price])
            near = (max(best - step, 0.0), best + step)
            values |= {price: simulated(price) for price in near if price not in values}
        return max(values, key=lambda price: values[price])

    @torch.no_grad()
    def priced_policy(
        self, price: float, n_stock: int = 101, n_demand: int = 16, n_iterations: int = 20
    ) -> StatePolicy:
        """Each product by itself, paying `price` per unit and step instead of for the overflow.

        Value iteration over (stock, arriving bin), stock on a grid up to six times the mean demand,
        demand at its mid-quantiles.
        """
        n_products, n_bins = self.n_products, self.nvec[0]
        scale = 6 * torch.as_tensor(self.mean_demand, dtype=torch.float32) / (n_stock - 1)  # (P,)
        stock = torch.arange(n_stock) * scale.unsqueeze(1)  # (P, I)
        unit = torch.as_tensor(self.order_unit, dtype=torch.float32)
        orders = torch.arange(n_bins) * unit.unsqueeze(1)  # (P, K)
        quantiles = ((torch.arange(n_demand) + 0.5) / n_demand).unsqueeze(1)  # (U, 1)
        demand = self.demand(quantiles.expand(-1, n_products)).T  # (P, U)

        available = stock[:, :, None] + orders[:, None]  # (P, I, arriving)
        left = available.unsqueeze(-1) - demand[:, None, None]  # (P, I, arriving, U)
        next_stock = self.kept * left.relu()
        cost = (self.holding_cost + price) * next_stock + self.lost_cost * (-left).relu()
        cost = cost.mean(-1).unsqueeze(-1) + price * orders[:, None, None]  # (P, I, a, order)

        at = next_stock / scale[:, None, None, None]
        cell = at.floor().long().clamp(max=n_stock - 2)
        weight = (at - cell).clamp(max=1).unsqueeze(-1)
        product = torch.arange(n_products)[:, None, None, None]
        value = torch.zeros(n_products, n_stock, n_bins)
        for _ in range(n_iterations):
            low, high = value[product, cell], value[product, cell + 1]  # (P, I, a, U, order)
            action_value = low.lerp(high, weight).mean(3) - cost
            value = action_value.amax(-1)
        table = action_value.argmax(-1)  # (P, I, a)

        def policy(state: Tensor) -> Tensor:
            stock, arriving, _ = state.chunk(3, -1)  # (N, P)
            row = (stock / scale).round().long().clamp(max=n_stock - 1)
            return table[torch.arange(n_products), row, nearest_bin(arriving / unit, self.bins)]

        return policy
