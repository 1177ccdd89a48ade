"""The trust meter: does the policy gradient that an agent climbs point where the true one does?

Now and then, on rows of a batch from the replay, the running estimator's gradient to the logits is
held against the truth that `gumbel.diagnostics` computes: enumeration, local expectations, or many
leave-one-out samples. Measuring draws from a stream of its own and leaves no trace in critics or
estimator, so training with and without it is the same to the bit; only `mixed` with `rho="meter"`
is driven by it. An agent needs six lines:

    check_alignment(self.estimator, trust_every)                         # in its set-up
    self.trust = TrustMeter(trust_every, seed=self.seed)

    value = self.estimator(dist, objective, generator)                   # in its update, before
    if self.trust.due(self._n_updates):                                  # the critics move
        self.trust.measure(dist, objective, self.estimator)

    for name, mean in self.trust.take().items():                         # in `dump_logs`
        self.logger.record(name, mean)

    {f"trust/{k}": v for k, v in self.trust.state_dict().items()}        # in `_extra_tensors`

The tensors of `state_dict` are the meter's own, so copying into them restores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod

import torch
from gumbelrl.agents.checks import check_int
from gumbelrl.agents.critics import CriticObjective
from gumbelrl.gumbel import Estimator, FactoredCategorical
from gumbelrl.gumbel.diagnostics import gradient_reports
from gumbelrl.gumbel.estimator import Objective
from gumbelrl.gumbel.mixed import Mixed
from torch import Tensor

TRUST_EVERY = 500
"""Gradient updates between measurements: below 2 % of training time on every case of `python -m
benchmarks.trust_meter`, and a hundred measurements in a run of 50,000 updates."""

EVALUATIONS = 32 * 8 * 40
"""Most evaluations of the critics for one reference, some 10 ms of one core at 64 wide: 32 rows of
8 draws for 8 factors of 5. Rows are given up for it, so that the cost does not grow with them."""

REFERENCES = ("enumeration", "local_expectation", "leave_one_out")
"""What the metric `estimator/reference` counts: 0, 1, 2."""

NAMES = ("cosine", "norm_ratio", "std", "bias", "reference", "pathwise_cosine", "rho")
_STREAM = 0x7472757374  # keeps the meter's draws apart from the agent's, whose seed it shares
_GOLDEN = 0x9E3779B97F4A7C15  # Weyl's step: one seed per measurement


class TrustMeter:
    """Measures an estimator's gradient every so many updates and keeps the means for the log.

    | metric | |
    |---|---|
    | `estimator/cosine` | between E ĝ and ∇: direction, 1 is right, <= 0 climbs nowhere |
    | `estimator/norm_ratio` | ‖E ĝ‖ / ‖∇‖ |
    | `estimator/std` | sqrt(tr cov ĝ) / ‖∇‖ of one draw |
    | `estimator/bias` | ‖E ĝ − ∇‖ / ‖∇‖ |
    | `estimator/reference` | where ∇ came from, index into `REFERENCES` |
    | `estimator/pathwise_cosine`, `estimator/rho` | of `mixed`: of its pathwise part, and its ρ |

    Args:
        every: gradient updates between measurements, >= 0; 0 never measures.
        batch: most rows of the batch that are measured, >= 1; the first ones, a replay's order
            being random.
        draws: of the estimator and of the reference for each row, >= 2.
        enumerate_up_to, expand_up_to: where the truth is enumerated (∏K) or expanded (ΣK), as in
            `gradient_report`; a critic that gives all values of a factor at once is expanded at
            any size.
        seed: the agent's; None draws one.
    """

    def __init__(
        self,
        every: int = TRUST_EVERY,
        batch: int = 128,
        draws: int = 8,
        *,
        enumerate_up_to: int = 256,
        expand_up_to: int = 128,
        seed: int | None = None,
    ) -> None:
        self.every = check_int("every", every, minimum=0)
        self.batch = check_int("batch", batch, minimum=1)
        self.draws = check_int("draws", draws, minimum=2)
        self.limits = {
            "enumerate_up_to": check_int("enumerate_up_to", enumerate_up_to, minimum=0),
            "expand_up_to": check_int("expand_up_to", expand_up_to, minimum=0),
        }
        seed = torch.Generator().seed() if seed is None else seed
        # On the CPU and live: an agent's file copies its tensors into these.
        self._seed = torch.tensor((seed ^ _STREAM) % 2**63)
        self._measured = torch.tensor(0)  # measurements so far: each has a stream of its own
        self._sums = torch.zeros(len(NAMES), dtype=torch.float64)
        self._counts = torch.zeros(len(NAMES), dtype=torch.int64)

    def due(self, n_updates: int) -> bool:
        """Is this update one to measure at?"""
        return self.every > 0 and n_updates % self.every == 0

    def measure(
        self, dist: FactoredCategorical, objective: Objective, estimator: Estimator
    ) -> dict[str, float]:
        """Measure `estimator` on the first rows; hand `mixed` its alignment. Waits for a GPU.

        Args:
            dist: of the batch, [B], masks included; its graph is not used.
            objective: what the actor climbs; a `CriticObjective` is cut to the same rows, any
                other f is given the whole batch.
            estimator: the running one.

        Returns:
            The metrics; nothing where the true gradient is zero or not finite, which has no
            direction.
        """
        rows, limits = self._plan(dist, objective)
        dist, objective = _rows(dist, objective, rows)
        generator = torch.Generator(dist.theta.device)
        generator.manual_seed((int(self._seed) + _GOLDEN * int(self._measured)) % 2**63)
        self._measured += 1
        mixed = estimator if isinstance(estimator, Mixed) else None
        estimators = [estimator] if mixed is None else [estimator, mixed.pathwise]
        report, *parts = gradient_reports(
            estimators, dist, objective, self.draws, generator=generator, **limits
        )
        figures = {
            "cosine": report.cosine,
            "norm_ratio": report.norm_ratio,
            "std": report.std,
            "bias": report.bias,
            "reference": float(REFERENCES.index(report.reference)),
        }
        if mixed is not None:
            figures |= {"pathwise_cosine": parts[0].cosine, "rho": float(mixed.rho)}
        if not all(math.isfinite(figure) for figure in figures.values()):
            return {}
        if mixed is not None and mixed.needs_alignment:
            mixed.set_alignment(parts[0].cosine)
        for name, figure in figures.items():
            self._sums[NAMES.index(name)] += figure
            self._counts[NAMES.index(name)] += 1
        return {f"estimator/{name}": figure for name, figure in figures.items()}

    def _plan(self, dist: FactoredCategorical, objective: Objective) -> tuple[int, dict[str, int]]:
        """Rows to measure, `batch` or as many as `EVALUATIONS` allows the reference, and limits."""
        joint, total, limits = prod(dist.nvec), dist.layout.total, self.limits
        at_once = callable(getattr(objective, "per_factor", None))  # all values of a factor
        if at_once:
            limits = limits | {"expand_up_to": max(total, limits["expand_up_to"])}
        if joint <= limits["enumerate_up_to"]:
            each = 1 if at_once and dist.layout.m == 1 else joint
        elif total <= limits["expand_up_to"]:
            each = 1 if at_once else self.draws * total
        else:
            each = self.draws * 16
        return max(1, min(self.batch, EVALUATIONS // each)), limits

    def take(self) -> dict[str, float]:
        """Means of the metrics since the last call; empty without a measurement."""
        sums, counts = self._sums.tolist(), self._counts.tolist()
        self._sums.zero_()
        self._counts.zero_()
        rows = zip(NAMES, sums, counts, strict=True)
        return {f"estimator/{name}": total / count for name, total, count in rows if count}

    def state_dict(self) -> dict[str, Tensor]:
        """The meter's own tensors: its random stream's place and the figures not yet taken."""
        return {
            "seed": self._seed,
            "measured": self._measured,
            "sums": self._sums,
            "counts": self._counts,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`; ValueError where its keys are others."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(
                f"a trust meter's state has {sorted(own)}, got {sorted(state)}; it is another "
                "version's"
            )
        for name, value in own.items():
            value.copy_(state[name])


def check_alignment(estimator: Estimator, every: int) -> None:
    """Raise where ρ of `mixed` is to follow a meter that is off."""
    if every == 0 and getattr(estimator, "needs_alignment", False):
        raise ValueError(
            'estimator mixed with rho="meter" is driven by the trust meter, which is off: give '
            f'trust_every > 0, such as {TRUST_EVERY}, or take rho="measured"'
        )


def _rows(
    dist: FactoredCategorical, objective: Objective, n: int
) -> tuple[FactoredCategorical, Objective]:
    """The first n rows of both, detached."""
    theta = dist.theta.detach()  # [B, M, K]
    if isinstance(objective, CriticObjective) and n < len(theta):
        theta = theta[:n]
        embedding = objective.embedding[:, :n]  # [C, B, ·]
        objective = CriticObjective(objective.critic, embedding, objective.reduce)
    return FactoredCategorical.from_theta(theta, dist.nvec, dist.logits.dtype), objective
