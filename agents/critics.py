"""Action-value critics Q(s, a) over one-hot actions, all members of an ensemble in one call.

Contract: `embed(x)` reads the observation once; `q(embedding, one_hot)` scores any number of
actions for it and is differentiable in the one-hot.

| call | shapes |
|---|---|
| `embed(x)` | [B, D] -> embedding [C, B, ·] |
| `q(embedding, one_hot)` | one_hot [..., B, ΣK] -> [C, ..., B] |
| `table(embedding)` (Discrete) | -> every action's value [C, B, K] |
| `per_factor(embedding, one_hot)` | one_hot [..., B, ΣK] -> [C, ..., B, ΣK] |

Entry (m, k) of `per_factor` is Q with factor m set to k, the others as given. Heads and
multilinear offer it; `action_in` would need ΣK forwards, which enumerating estimators make anyway.
`layer_norm=True` normalises the hidden layers, before their activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from gumbelrl.agents.networks import (
    EnsembleLayerNorm,
    EnsembleLinear,
    check_net_arch,
    ensemble_mlp,
    make_activation,
)
from gumbelrl.gumbel.choices import DoesNotApply
from gumbelrl.gumbel.factors import FactorLayout
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
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(nvec) != 1:
            raise DoesNotApply(
                f"critic='heads' needs a Discrete action space, got {len(nvec)} factors; "
                "use critic='multilinear' or critic='action_in'"
            )
        self.net = ensemble_mlp(
            n_critics, n_inputs, check_net_arch(net_arch), nvec[0], activation, layer_norm
        )

    @property
    def embed(self) -> Callable[[Tensor], Tensor]:
        return self.net  # (C, B, K): the table itself

    def q(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        for _ in range(one_hot.dim() - 2):
            embedding = embedding.unsqueeze(1)
        return (embedding * one_hot).sum(-1)  # (C, ..., B)

    def slope_in_embedding(self, one_hot: Tensor, slope: Tensor) -> Tensor:
        """From a loss's slope in q [C, B] at one-hots [B, K], that in the embedding [C, B, K]."""
        return slope.unsqueeze(-1) * one_hot

    def table(self, embedding: Tensor) -> Tensor:
        return embedding

    def per_factor(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        table = embedding.view(len(embedding), *[1] * (one_hot.dim() - 2), *embedding.shape[1:])
        return table.expand(len(embedding), *one_hot.shape)


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
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        first, *rest = check_net_arch(net_arch)
        self.nvec = tuple(nvec)
        self.first = EnsembleLinear(n_critics, n_inputs + sum(nvec), first)
        self.n_inputs = n_inputs
        self.rest = nn.Sequential(
            *([EnsembleLayerNorm(n_critics, first)] if layer_norm else []),
            make_activation(activation),
            ensemble_mlp(n_critics, first, rest, 1, activation, layer_norm),
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


class MultilinearCritic(nn.Module):
    """Linear in each factor's one-hot given the others', with interactions of pairs.

        Q(s, D) = b(s) + (1/√M) Σ_m <u_m(s), D_m> + (1/√(R P)) Σ_r g_r(s) Σ_{m<n} e_mr e_nr,
        e_m = V_m D_m ∈ R^R,    P = M (M − 1) / 2 pairs,    R = 32

    A perceptron writes b, u [ΣK] and the gates g [R] of a state; the vectors V [R, ΣK] are shared
    by all states. Pairs are summed by Σ_{m<n} e_m e_n = ½ ((Σ_m e_m)² − Σ_m e_m²), so the cost is
    that of ΣK x R (factorisation machines, Rendle 2010). With M = 1 it is `heads` plus b.

    ∂Q/∂D_m[k] = Q(D₋ₘ, e_k) up to a constant in k, at every action and between them: the slope is
    fitted by executed actions, unlike `action_in`'s, and straight-through on it is the local
    expectation. What it cannot fit is an interaction of three factors or more.

    Every sum is divided by the square root of its number of terms, so Q starts at one scale
    whatever M. V is stored as small as `nn.Linear(ΣK, R)` would have it and scaled to unit variance
    when used: Adam's steps are absolute, and vectors stored at unit variance learn many times
    slower.
    """

    rank = 32

    def __init__(
        self,
        n_inputs: int,
        nvec: Sequence[int],
        net_arch: Sequence[int],
        n_critics: int = 2,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layout = FactorLayout(tuple(nvec))
        m, total = self.layout.m, self.layout.total
        self.sizes = (1, total, self.rank if m > 1 else 0)  # b, u, g
        self.net = ensemble_mlp(
            n_critics, n_inputs, check_net_arch(net_arch), sum(self.sizes), activation, layer_norm
        )
        self.vectors: nn.Parameter | None = None
        if m > 1:
            bound = 1.0 / math.sqrt(total)
            vectors = torch.empty(n_critics, self.rank, total).uniform_(-bound, bound)
            self.vectors = nn.Parameter(vectors)
            self.vector_scale = math.sqrt(3.0) / bound
            self.pair_scale = math.sqrt(2.0 / (m * (m - 1) * self.rank))

    @property
    def embed(self) -> Callable[[Tensor], Tensor]:
        return self.net  # (C, B, 1 + ΣK + R): b, u and g side by side

    def q(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        *samples, batch, width = one_hot.shape
        flat = one_hot.reshape(-1, batch, width)  # (S, B, ΣK)
        b, u, g = self._parts(embedding)
        value = b.squeeze(-1) + (u * flat).sum(-1)  # (C, S, B)
        if self.vectors is not None:
            e, _ = self._vectors_of(flat)  # (C, S, B, M, R)
            pairs = e.sum(-2).square() - e.square().sum(-2)  # (C, S, B, R)
            value = value + 0.5 * (g * pairs).sum(-1)
        return value.reshape(-1, *samples, batch)

    def per_factor(self, embedding: Tensor, one_hot: Tensor) -> Tensor:
        """Q(D₋ₘ, e_k) = Q(D) − <slope_m, D_m> + slope_m[k], the slope in closed form."""
        *samples, batch, width = one_hot.shape
        flat = one_hot.reshape(-1, batch, width)  # (S, B, ΣK)
        b, u, g = self._parts(embedding)
        slope = u.expand(-1, len(flat), -1, -1)  # (C, S, B, ΣK)
        value = b.squeeze(-1) + (u * flat).sum(-1)  # (C, S, B)
        if self.vectors is not None:
            e, v = self._vectors_of(flat)
            others = g.unsqueeze(-2) * (e.sum(-2, keepdim=True) - e)  # (C, S, B, M, R), n ≠ m
            value = value + 0.5 * (others * e).sum((-2, -1))
            slope = slope + self.layout.flatten(torch.einsum("csbmr,crmk->csbmk", others, v))
        own = self.layout.pad(slope * flat, 0.0).sum(-1)  # (C, S, B, M): <slope_m, D_m>
        rest = self._spread(value.unsqueeze(-1) - own)  # (C, S, B, ΣK)
        return (rest + slope).reshape(-1, *samples, batch, width)

    def table(self, embedding: Tensor) -> Tensor:
        if self.layout.m != 1:
            raise ValueError(f"a table of all actions needs one factor, got {self.layout.m}")
        b, u = embedding.split(self.sizes[:2], -1)
        return b + u  # (C, B, K)

    def _parts(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b [C, 1, B, 1], u / √M [C, 1, B, ΣK] and the scaled g [C, 1, B, R]."""
        b, u, g = embedding.unsqueeze(1).split(self.sizes, -1)
        if self.vectors is None:
            return b, u, g
        return b, u / math.sqrt(self.layout.m), g * self.pair_scale

    def _vectors_of(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """e [C, S, B, M, R] of one-hots [S, B, ΣK], and V [C, R, M, Kmax], of unit variance."""
        assert self.vectors is not None
        v = self.layout.pad(self.vectors * self.vector_scale, 0.0)
        return torch.einsum("sbmk,crmk->csbmr", self.layout.pad(one_hot, 0.0), v), v

    def _spread(self, x: Tensor) -> Tensor:
        """One number per factor [..., M], repeated for each of its categories: [..., ΣK]."""
        return self.layout.flatten(x.unsqueeze(-1).expand(*x.shape, self.layout.k_max))


CRITICS: dict[str, type[HeadsCritic] | type[ActionInCritic] | type[MultilinearCritic]] = {
    "heads": HeadsCritic,
    "action_in": ActionInCritic,
    "multilinear": MultilinearCritic,
}


class CriticObjective:
    """The function of the one-hot that the actor climbs: the critics' mean, or their minimum.

    `mean` leaves every critic's slope as it is. `min` is taken per action (heads), or per factor
    and category with the other factors as sampled (multilinear), which keeps the slope meaningful;
    the minimum at the sampled action alone would pick one critic's off-action values, so it is not
    offered.

    Where the critic has it, `per_factor(one_hot)` is offered too, one-hot [..., B, ΣK] ->
    [..., B, ΣK]: enumerating estimators then need one forward.

    Args:
        critic: a critic of this module.
        embedding: `critic.embed(x)`, detached from the critic's own training.
        reduce: "mean", or "min" (critics with `per_factor`).

    Raises:
        ValueError: "min" of a critic that knows no per-action values.
    """

    def __init__(self, critic: nn.Module, embedding: Tensor, reduce: str = "mean") -> None:
        self.critic = critic
        # Of critics linear in their embedding the mean is that of one with the mean embedding.
        linear = reduce == "mean" and isinstance(critic, HeadsCritic)
        self.embedding = embedding.mean(0, keepdim=True) if linear else embedding
        self.reduce = reduce
        if hasattr(critic, "per_factor"):
            self.per_factor = self._per_factor
        elif reduce == "min":
            raise ValueError(
                "the minimum per action needs critic='heads' or critic='multilinear', got "
                f"{type(critic).__name__}; use the mean"
            )

    def __call__(self, one_hot: Tensor) -> Tensor:
        """One-hot [..., B, ΣK] -> value [..., B]."""
        if self.reduce == "min":
            # The minimum at D, with the minima as its slope: at D, every factor's row holds it.
            here = one_hot.detach()
            values = self._per_factor(here)  # (..., B, ΣK)
            m = here.sum(-1)  # M
            return (values * one_hot).sum(-1) - (1 - 1 / m) * (values * here).sum(-1)
        return self._over_critics(self.critic.q(self.embedding, one_hot))  # type: ignore[operator]

    def table(self) -> Tensor:
        """Values of every action of a Discrete space, [B, K]."""
        return self._over_critics(self.critic.table(self.embedding))  # type: ignore[operator]

    def _per_factor(self, one_hot: Tensor) -> Tensor:
        return self._over_critics(
            self.critic.per_factor(self.embedding, one_hot)  # type: ignore[operator]
        )

    def _over_critics(self, values: Tensor) -> Tensor:
        if self.reduce == "min":
            return values.amin(0)
        return values.mean(0) if len(values) > 1 else values.squeeze(0)
