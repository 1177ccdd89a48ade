"""Two agents, one discrete channel: a speaker that sees the goal, a listener that can move."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from torch import Tensor

# Where the goals are, in moves from the start.
_LANDMARKS = ((2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, -2), (2, -2), (-2, 2))
_MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class SpeakerListener(OnDeviceEnv):
    """Say which of G landmarks is the goal with one of V symbols, then walk there in four moves.

    An action has two factors: the symbol (V) and the move (5: stay, right, left, up, down; half a
    unit each). In the first step only the symbol counts: it is stored, and the listener stays. In
    the four steps after it only the move counts. The observation shows the goal in the first step
    alone and the message ever after, so that one network plays both parts and the channel is the
    only way from goal to move:

        (speaking?, goal [G] while speaking, message [V] afterwards, position [2])
        reward = -|position' - goal|² in the four moves, 0 for speaking

    State: (steps taken, goal [G], message [V], position [2]). The episode terminates after its
    five steps. Message and move enter linearly. After Lowe et al. 2017 ("Multi-agent actor-critic
    for mixed cooperative-competitive environments"); the lattice is this project's own.

    Args:
        n_goals: G, 2 to 8.
        n_symbols: V >= 2; fewer than G force goals to share a symbol.
    """

    max_episode_steps = 5

    n_moves = 4
    move_length = 0.5

    def __init__(self, n_goals: int = 8, n_symbols: int = 8) -> None:
        if not 2 <= n_goals <= len(_LANDMARKS):
            raise ValueError(f"n_goals must be 2 to {len(_LANDMARKS)}, got {n_goals}")
        if n_symbols < 2:
            raise ValueError(f"n_symbols must be >= 2, got {n_symbols}")
        self.n_goals, self.n_symbols = n_goals, n_symbols
        self.nvec = (n_symbols, len(_MOVES))
        self.state_dim = self.observation_dim = 1 + n_goals + n_symbols + 2
        self.n_initial_noise = 1
        self.landmarks = self.move_length * np.array(_LANDMARKS[:n_goals], float)  # (G, 2)
        self.moves = self.move_length * np.array(_MOVES, float)  # (5, 2)
        self.goal_numbers = np.arange(n_goals)

    def _split(self, state: Tensor) -> tuple[Tensor, ...]:
        return state.split((1, self.n_goals, self.n_symbols, 2), -1)

    def initial(self, noise: Tensor) -> Tensor:
        drawn = (noise * self.n_goals).floor()  # (..., 1)
        goal = (drawn == self.constant("goal_numbers", noise)).to(noise.dtype)  # (..., G)
        empty = noise.new_zeros((*noise.shape[:-1], self.n_symbols + 2))
        return torch.cat((torch.zeros_like(noise), goal, empty), -1)

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        time, goal, message, position = self._split(state)
        symbol, move = one_hot.split(self.nvec, -1)  # (..., V), (..., 5)
        speaking = time == 0  # (..., 1)
        message = torch.where(speaking, symbol, message)
        moved = position + move @ self.constant("moves", state)
        return torch.cat((time + 1, goal, message, torch.where(speaking, position, moved)), -1)

    def observe(self, state: Tensor) -> Tensor:
        time, goal, message, position = self._split(state)
        speaking = (time == 0).to(state.dtype)
        return torch.cat((speaking, goal * speaking, message, position), -1)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        time, goal, _, position = self._split(next_state)
        target = goal @ self.constant("landmarks", state)  # (..., 2)
        moving = (time[..., 0] > 1).to(state.dtype)
        return -(position - target).square().sum(-1) * moving

    def terminated(self, state: Tensor) -> Tensor:
        return state[..., 0] > self.n_moves

    def reference(self) -> tuple[float, str]:
        return self.best_return(), (
            "exact: the best walk for every set of goals that share a symbol (all 625 walks), and "
            "the best way to share (all partitions)"
        )

    def best_return(self) -> float:
        """Optimal expected return of any pair of policies."""
        walks = np.array(list(product(self.moves, repeat=self.n_moves))).cumsum(1)  # (W, 4, 2)
        offsets = walks[:, :, None] - self.landmarks  # (W, 4, G, 2)
        value = -(offsets**2).sum((1, 3))  # (W, G)
        subsets = np.arange(2**self.n_goals)
        members = (subsets[:, None] >> self.goal_numbers) & 1  # (2^G, G)
        # A listener learns nothing on its way, so for a set of goals it walks one fixed walk.
        together = (members @ value.T).max(-1)  # (2^G,)
        best = together.copy()  # with one symbol
        for _ in range(min(self.n_symbols, self.n_goals) - 1):
            shared = best.copy()
            for whole in subsets:
                part = whole
                while part:  # every non-empty subset of `whole` speaks the new symbol
                    shared[whole] = max(shared[whole], together[part] + best[whole ^ part])
                    part = (part - 1) & whole
            best = shared
        return float(best[-1]) / self.n_goals
