"""Action-value critics Q(s, a) over one-hot actions, all members of an ensemble in one call.

Contract: `embed(x)` reads the observation once; `q(embedding, one_hot)` scores any number of
actions for it and is differentiable in the one-hot.

| call | shapes |
|---|---|
| `embed(x)` | [B, D] -> embedding [C, B, ·] |
| `q(embedding, one_hot)` | one_hot [..., B, ΣK] -> [C, ..., B] |
| `table(embedding)` (Discrete) | -> every action's value [C, B, K] |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gumbelrl.agents.networks import (
    EnsembleLinear,
    check_net_arch,
    ensemble_mlp,
    make_activation,
)
from torch import Tensor, nn


class HeadsCritic(nn.Module):
    """One output per action (Discrete). Q(s, D) = <table(s), D>.

    Linear in the one-hot, so its slope ∂Q/∂D means what it says at every action, and
    straight-through on it is exact.
    """

    def __init__(
        self,
        n_inputs: int,
        nvec: Sequence[int],
        net_arch: Sequence[int],
        n_critics: int = 2,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if len(nvec) != 1:
            raise ValueError(
                f"critic='heads' needs a Discrete action space, got {len(nvec)} factors; "
                "use critic='action_in'"
            )
        self.net = ensemble_mlp(n_critics, n_inputs, check_net_arch(net_arch), nvec[0], activation)

    def embed(self, x: Tensor) -> Tensor:
        return self.net(x)  # (C, B, K): the table itself

    def q(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        for _ in range(one_hot.dim() - 2):
            embedding = embedding.unsqueeze(1)
        return (embedding * one_hot).sum(-1)  # (C, ..., B)

    def table(self, embedding: Tensor) -> Tensor:
        return embedding


class ActionInCritic(nn.Module):
    """A perceptron on observation and one-hot together; any number of factors.

    The first layer is split, W [s, D] = W_s s + W_a D, so that the observation's half is computed
    once however many actions are scored. Only the corners (real one-hots) are ever fitted: the
    slope in D is a by-product.
    """

    def __init__(
        self,
        n_inputs: int,
        nvec: Sequence[int],
        net_arch: Sequence[int],
        n_critics: int = 2,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        first, *rest = check_net_arch(net_arch)
        self.nvec = tuple(nvec)
        self.first = EnsembleLinear(n_critics, n_inputs + sum(nvec), first)
        self.n_inputs = n_inputs
        self.rest = nn.Sequential(
            make_activation(activation), ensemble_mlp(n_critics, first, rest, 1, activation)
        )

    def embed(self, x: Tensor) -> Tensor:
        x = x.expand(self.first.weight.shape[0], *x.shape)  # (C, B, D)
        return torch.baddbmm(self.first.bias, x, self.first.weight[:, : self.n_inputs])

    def q(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        *samples, batch, width = one_hot.shape
        action_weight = self.first.weight[:, self.n_inputs :]  # (C, ΣK, H)
        flat = one_hot.reshape(-1, width)
        flat = flat.expand(action_weight.shape[0], *flat.shape)  # (C, S·B, ΣK)
        hidden = torch.bmm(flat, action_weight).unflatten(1, (-1, batch))  # (C, S, B, H)
        hidden = (hidden + embedding.unsqueeze(1)).flatten(1, 2)  # (C, S·B, H)
        return self.rest(hidden).view(-1, *samples, batch)

    def table(self, embedding: Tensor) -> Tensor:
        if len(self.nvec) != 1:
            raise ValueError(f"a table of all actions needs one factor, got {len(self.nvec)}")
        n_actions, batch = self.nvec[0], embedding.shape[1]
        eye = torch.eye(n_actions, dtype=embedding.dtype, device=embedding.device)
        one_hots = eye.unsqueeze(1).expand(n_actions, batch, n_actions)  # (K, B, K)
        return self.q(embedding, one_hots).transpose(1, 2)  # (C, B, K)


CRITICS: dict[str, type[HeadsCritic] | type[ActionInCritic]] = {
    "heads": HeadsCritic,
    "action_in": ActionInCritic,
}


class CriticObjective:
    """The function of the one-hot that the actor climbs: the critics' mean, or their minimum.

    `mean` leaves every critic's slope as it is. `min` is taken per action over the table, which
    keeps the slope meaningful; the minimum at the sampled action alone would pick one critic's
    off-action values, so it is not offered.

    Args:
        critic: a critic of this module.
        embedding: `critic.embed(x)`, detached from the critic's own training.
        reduce: "mean", or "min" (Discrete: the per-action minimum).
    """

    def __init__(self, critic: nn.Module, embedding: Tensor, reduce: str = "mean") -> None:
        self.critic = critic
        self.embedding = embedding
        self.reduce = reduce

    def __call__(self, one_hot: Tensor) -> Tensor:
        """One-hot [..., B, ΣK] -> value [..., B]."""
        if self.reduce == "min":
            return (self.table() * one_hot).sum(-1)
        return self.critic.q(self.embedding, one_hot).mean(0)  # type: ignore[operator]

    def table(self) -> Tensor:
        """Values of every action of a Discrete space, [B, K]."""
        table = self.critic.table(self.embedding)  # type: ignore[operator]
        return table.amin(0) if self.reduce == "min" else table.mean(0)
