"""What REINFORCE collects: the steps of its environments, and their returns-to-go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

ROLLOUTS = ("episodes", "steps")


@dataclass(frozen=True)
class Rollout:
    """The B steps of one update, in the order of time.

    A trajectory is one episode, or, in rollouts of fixed length, what one environment did.
    """

    obs: PyTorchObs  # (B, ...)
    actions: Tensor  # (B, M)
    masks: Tensor | None  # (B, ΣK), True where allowed
    returns: Tensor  # (B,) rewards-to-go inside the episode, with γV(s') where it was cut
    positions: Tensor  # (B,) int64: the step's number in its trajectory, from 0
    trajectories: Tensor  # (B,) int64: the trajectory's number
    n_trajectories: int


class StepStore:
    """Arrays [T, N, ...] that double when they are full.

    Args:
        capacity: vector steps to make room for at first, >= 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, **values: np.ndarray) -> None:
        """Keep one vector step: arrays [N, ...], the same names from call to call."""
        if self.length == 0:
            self._arrays = {
                name: np.empty((self.capacity, *value.shape), value.dtype)
                for name, value in values.items()
            }
        elif self.length == self.capacity:
            self.capacity *= 2
            for name, array in self._arrays.items():
                self._arrays[name] = np.concatenate([array, np.empty_like(array)])
        for name, value in values.items():
            self._arrays[name][self.length] = value
        self.length += 1

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self.length]  # (T, N, ...)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays


def episode_numbers(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which episode of its environment each step belongs to, and which step of it it is.

    Args:
        ends: bool [T, N], true where an episode ended with this step.

    Returns:
        Two int64 [T, N], both counting from 0 at the first row.
    """
    begins = np.zeros(ends.shape, bool)
    begins[1:] = ends[:-1]
    time = np.arange(len(ends))[:, None]
    began = np.maximum.accumulate(np.where(begins, time, 0), axis=0)
    return begins.cumsum(axis=0), time - began


def rewards_to_go(
    rewards: np.ndarray, ends: np.ndarray, bootstraps: np.ndarray, gamma: float
) -> np.ndarray:
    """Discounted reward-to-go inside each episode, G_t = r_t + γ (G_{t+1}, or the bootstrap).

    Args:
        rewards: [T, N].
        ends: [T, N], true where the episode ended or was cut with this step.
        bootstraps: [T, N], V of the last observation where it was not terminated, else 0.
        gamma: discount.

    Returns:
        [T, N] float64. Steps after a column's last end count from a value of 0.
    """
    returns = rewards + gamma * np.where(ends, bootstraps, 0.0)  # float64
    go_on = np.where(ends, 0.0, gamma)
    for t in reversed(range(len(returns) - 1)):
        returns[t] += go_on[t] * returns[t + 1]
    return returns


def observation_arrays(obs: Any) -> dict[str, np.ndarray]:
    """An observation, an array or a dictionary of them, as arrays under names of a `StepStore`."""
    if isinstance(obs, dict):
        return {f"obs/{key}": value for key, value in obs.items()}
    return {"obs": obs}
