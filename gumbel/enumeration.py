"""Estimators that enumerate: no sampling noise where the sizes allow it."""

from dataclasses import dataclass
from math import prod

import torch
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, check_value
from torch import Tensor


@dataclass(frozen=True)
class ExactSettings:
    """Largest ∏K that is enumerated."""

    limit: int = 4096

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise ValueError(f"limit must be an integer >= 1, got {self.limit!r}")


class Exact(Estimator):
    """All actions (discrete SAC; mean actor-critic): value E[f(D)], ĝ = J(π)(f(e_1) … f(e_K)).

    ∏K evaluations; one forward where f offers `table() -> [B, K]` (M = 1).
    """

    name = "exact"
    evaluations = "∏K"
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
            return (pi * values.where(pi > 0, 0.0)).sum(-1)
        actions = all_actions(dist, self.settings.limit)  # [∏K, M]
        n = len(actions)
        lead = actions.view(n, *[1] * len(dist.batch_shape), dist.layout.m)
        lead = lead.expand(n, *dist.batch_shape, dist.layout.m)  # [∏K, ..., M]
        values = check_value(f(dist.one_hot(lead)), dist, (n,))  # [∏K, ...]
        joint = dist.log_prob(lead).exp()
        # f may be anything at a forbidden action: 0 · NaN must not enter.
        return (joint * values.where(joint > 0, 0.0)).sum(0)


def all_actions(dist: FactoredCategorical, limit: int) -> Tensor:
    """Every joint action, int64 [∏K, M]. Raises ValueError where ∏K > limit."""
    n = prod(dist.nvec)
    if n > limit:
        raise ValueError(
            f"enumeration of nvec={list(dist.nvec)} is {n} joint actions, the limit is {limit}; "
            "take local_expectation (ΣK evaluations) or rloo, or raise limit="
        )
    ranges = [torch.arange(k, device=dist.theta.device) for k in dist.nvec]
    return torch.cartesian_prod(*ranges).view(n, dist.layout.m)
