"""Estimators that enumerate: no sampling noise where the sizes allow it."""

from dataclasses import dataclass
from math import prod

import torch
from gumbelrl.gumbel.choices import DoesNotApply, integer
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, check_value
from gumbelrl.gumbel.gradient import attach_gradient, jacobian_product
from torch import Tensor


@dataclass(frozen=True)
class ExactSettings:
    """Largest number of actions (∏K for exact, ΣK for local_expectation) that is enumerated."""

    limit: int = 4096

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", integer("limit", self.limit, 1))


class Exact(Estimator):
    """All actions (discrete SAC; mean actor-critic): value E[f(D)], ĝ = J(π)(f(e_1) … f(e_K)).

    ∏K evaluations; one forward where f offers `table() -> [B, K]` (M = 1).
    """

    name = "exact"
    evaluations = "∏K"
    capturable = True
    Settings = ExactSettings

    def __init__(self, settings: ExactSettings | None = None) -> None:
        super().__init__()
        self.settings = ExactSettings() if settings is None else settings

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """E[f(D)] [B]. Raises ValueError where ∏K is beyond the limit."""
        table = getattr(f, "table", None)
        if dist.layout.m == 1 and callable(table):
            values: Tensor = table()  # [B, K]
            pi = dist.pi.squeeze(-2)
            if values.shape != pi.shape:
                raise ValueError(
                    f"f.table() must give {list(pi.shape)}, got {list(values.shape)}: one value "
                    "per action"
                )
            return _in_dtype_of(values, (pi * values.where(pi > 0, 0.0)).sum(-1))
        actions = all_actions(dist, self.settings.limit)  # [∏K, M]
        n = len(actions)
        lead = actions.view(n, *[1] * len(dist.batch_shape), dist.layout.m)
        lead = lead.expand(n, *dist.batch_shape, dist.layout.m)  # [∏K, ..., M]
        values = check_value(f(dist.one_hot(lead, trusted=True)), dist, (n,))  # [∏K, ...]
        joint = dist.log_prob(lead, trusted=True).exp()
        # f may be anything at a forbidden action: 0 · NaN must not enter.
        return _in_dtype_of(values, (joint * values.where(joint > 0, 0.0)).sum(0))

    @torch.no_grad()
    def on_table(
        self,
        dist: FactoredCategorical,
        table: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        if type(self).forward is not Exact.forward:
            return None  # a subclass does something else
        pi = dist.theta.softmax(-1).squeeze(-2)  # (B, K)
        table = table.where(pi > 0, 0.0)
        return (pi * table).sum(-1), jacobian_product(pi, table)


def _in_dtype_of(values: Tensor, expected: Tensor) -> Tensor:
    """E[f] in f's own dtype, as a value of f would be; of integers it stays a float."""
    return expected.to(values.dtype) if values.is_floating_point() else expected


def all_actions(dist: FactoredCategorical, limit: int) -> Tensor:
    """Every joint action, int64 [∏K, M]. Raises ValueError where ∏K > limit."""
    n = prod(dist.nvec)
    if n > limit:
        raise DoesNotApply(
            f"enumeration of nvec={list(dist.nvec)} is {n} joint actions, the limit is {limit}; "
            "take local_expectation (ΣK evaluations) or rloo, or raise limit="
        )
    ranges = [torch.arange(k, device=dist.theta.device) for k in dist.nvec]
    return torch.cartesian_prod(*ranges).view(n, dist.layout.m)


class LocalExpectation(Estimator):
    """Local expectation gradient (Titsias 2015; COMA's counterfactual, Foerster 2018): for factor m
    ĝ_m = J(π_m)(f(D₋ₘ, e_k))_k, the other factors sampled.

    ΣK evaluations in one batch; one forward where f offers `per_factor(one_hot) -> [B, ΣK]`. With
    M = 1 it is `exact`. Nothing is differentiated, so f may be anything.
    """

    name = "local_expectation"
    evaluations = "ΣK"
    capturable = True
    Settings = ExactSettings

    def __init__(self, settings: ExactSettings | None = None) -> None:
        super().__init__()
        self.settings = ExactSettings() if settings is None else settings

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """f(D) [B]. Raises ValueError where ΣK is beyond the limit."""
        d = dist.one_hot(dist.sample(generator), trusted=True)  # [B, ΣK]
        per_factor = getattr(f, "per_factor", None)
        if callable(per_factor):
            flat: Tensor = per_factor(d)  # [B, ΣK]
            if flat.shape != d.shape:
                raise ValueError(
                    f"f.per_factor(one_hot) must give {list(d.shape)}, got {list(flat.shape)}: "
                    "one value per category of every factor"
                )
        else:
            rows = self._neighbours(dist, d)  # [ΣK, B, ΣK]
            flat = check_value(f(rows), dist, (dist.layout.total,)).movedim(0, -1)
        values = dist.layout.pad(flat, 0.0)  # [B, M, K], entry (m, k) = f(D₋ₘ, e_k)
        pi = dist.pi.detach()
        values = values.where(pi > 0, 0.0)  # f may be anything at a forbidden action
        # f(D) stands in every factor's row at k = D_m.
        value = (values * dist.layout.pad(d, 0.0))[..., 0, :].sum(-1)
        return attach_gradient(
            value, dist.theta, jacobian_product(pi, values.detach().to(pi.dtype))
        )

    def _neighbours(self, dist: FactoredCategorical, d: Tensor) -> Tensor:
        """[ΣK, B, ΣK]: row j is D with the factor that j belongs to set to j's category."""
        total = dist.layout.total
        if total > self.settings.limit:
            raise DoesNotApply(
                f"local_expectation over nvec={list(dist.nvec)} takes {total} evaluations, the "
                f"limit is {self.settings.limit}; take rloo, give f a per_factor(), or raise limit="
            )
        factor = torch.arange(dist.layout.m, device=d.device)
        sizes = torch.tensor(dist.nvec, device=d.device)
        factor = factor.repeat_interleave(sizes, output_size=total)  # [ΣK]
        same = factor[:, None] == factor  # [ΣK, ΣK]
        shape = (total, *[1] * len(dist.batch_shape), total)
        eye = torch.eye(total, dtype=d.dtype, device=d.device)
        return torch.where(same.view(shape), eye.view(shape), d)
