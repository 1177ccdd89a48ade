"""What every gradient estimator is: one call, frozen settings, progress as its only clock.

    estimator = make_estimator("st_gumbel", temperature=0.5)
    value = estimator(dist, f, generator)      # [B]
    value.mean().backward()                    # the logits receive ĝ, f's parameters their own

f maps one-hots [S..., B, ΣK] to values [S..., B]: a critic, a reward, a likelihood. It may be an
object that also offers `table() -> [B, K]` (all values of one factor) and
`per_factor(one_hot) -> [B, ΣK]` (factor m set to k, the others as sampled): enumerating estimators
then need one forward of a K-headed critic. A user's own estimator is a class with this call.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from gumbelrl.gumbel.choices import fraction
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.fused import Fused, fused_sample, usable
from gumbelrl.gumbel.gradient import Term, choose, g_hat, straight_through
from gumbelrl.gumbel.noise import gumbel_noise
from torch import Tensor, nn

Objective = Callable[[Tensor], Tensor]
"""f: one_hot [S..., B, ΣK] -> value [S..., B]."""


class Estimator(nn.Module):
    """Sends a gradient of E[f(D)] to the logits of `dist`.

    | call | returns |
    |---|---|
    | `estimator(dist, f, generator)` | value [B]: f at the sample, its mean, or the expectation |
    | `set_progress(p)` | None; p in [0, 1] moves every scheduled setting |
    """

    name: ClassVar[str]
    evaluations: str = "1"
    """Evaluations of f in one call, as a formula in k (samples), M and K."""
    capturable: bool = False
    """Is a call a fixed sequence of device operations, which a CUDA graph may hold? It is not where
    anything is tuned or measured on the way."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = 0.0

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Value [B] of f, carrying the estimator's gradient.

        Args:
            dist: distribution with batch shape [B].
            f: [S..., B, ΣK] -> [S..., B].
            generator: source of randomness.
        """
        raise NotImplementedError

    def on_table(
        self,
        dist: FactoredCategorical,
        table: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """The same call for f(D) = ⟨D, table⟩ of one factor, without autograd: half of its time.

        Args:
            dist: of one factor, batch shape [B].
            table: f of every action, [B, K], finite where allowed.
            generator: source of randomness; the draws are those of the call.

        Returns:
            Value [B] and ĝ [B, K] in θ', or None where there is no closed form.
        """
        return None

    @property
    def progress(self) -> float:
        """Training progress in [0, 1] last given to `set_progress`."""
        return self._progress

    def set_progress(self, p: float) -> None:
        """Move every scheduled setting to progress p in [0, 1]."""
        self._progress = fraction("progress", p)

    def hold_on(self, device: torch.device) -> None:
        """Keep scheduled settings as tensors on the device from now on, where a CUDA graph that was
        captured sees them move."""

    # A tensor, so that checkpoints need no pickle; on the CPU, so that reading it never waits.
    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._progress], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.set_progress(float(state))


class Pathwise(Estimator):
    """Estimators that climb ∂f/∂D: the sample itself carries the gradient.

    | call | returns |
    |---|---|
    | `rsample(dist, generator)` | [..., ΣK] one-hot with a graph to the logits |
    | `relax(theta, noise)` | [..., M, K] the same, a pure function for compilers and vmap |
    | `draw(theta, generator)` | [(1 + R,) ..., M, K] the noise that `relax` takes |
    """

    def __init__(self) -> None:
        super().__init__()
        self._graph_seen = False

    def draw(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Standard Gumbels for one `relax`; kept apart because a compiler takes no generator."""
        return gumbel_noise(theta, generator)

    def relax(self, theta: Tensor, noise: Tensor) -> Tensor:
        """[..., M, K] one-hot of the sample, its gradient that of the estimator."""
        fixed = theta.detach()
        if not (theta.requires_grad and torch.is_grad_enabled()):
            return _sampled(fixed, noise).to(theta.dtype)
        return straight_through(theta, *self.sample_and_terms(fixed, noise))

    def sample_and_terms(self, theta: Tensor, noise: Tensor) -> tuple[Tensor, list[Term]]:
        """One-hot D [..., M, K] of argmax(θ + G), and `terms` of it; θ without a graph."""
        d = _sampled(theta, noise)
        return d, self.terms(theta, noise, d)

    def terms(self, theta: Tensor, noise: Tensor, d: Tensor) -> list[Term]:
        """The pairs (w, p) of ĝ = Σ w J(p) g.

        Args:
            theta: [..., M, K] effective logits, without a graph.
            noise: what `draw` gave.
            d: [..., M, K] one-hot D of the sampled categories, argmax(θ + G).
        """
        raise NotImplementedError

    @torch.no_grad()
    def on_table(
        self,
        dist: FactoredCategorical,
        table: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        if usable(dist.logits):
            return None  # the kernels are at hand
        if any(getattr(type(self), f) is not getattr(Pathwise, f) for f in _CALL):
            return None  # a subclass does something else than D and its terms
        theta = dist.theta
        d, terms = self.sample_and_terms(theta, self.draw(theta, generator))
        g = table.unsqueeze(-2)  # (B, 1, K)
        return (d * g).sum((-2, -1)), g_hat(terms, g).squeeze(-2)

    def fused(self) -> Fused | None:
        """This gradient for the fused kernels; None where they do not have it."""
        return None

    def rsample(
        self, dist: FactoredCategorical, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sampled one-hot [..., ΣK] in the logits' dtype; its gradient reaches the logits."""
        fused = self.fused() if usable(dist.logits) else None
        if fused is not None:
            logits, mask = dist.rows()
            sample = fused_sample(logits, fused, mask, generator=generator)
        else:
            sample = self.relax(dist.theta, self.draw(dist.theta, generator))
        return dist.layout.flatten(sample).to(dist.logits.dtype)

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """f(D) [B]. Raises ValueError if f's value has no graph to the one-hot."""
        one_hot = self.rsample(dist, generator)
        value = check_value(f(one_hot), dist)
        if one_hot.requires_grad and torch.is_grad_enabled():
            self._check_graph(value, one_hot)
        return value

    def _check_graph(self, value: Tensor, one_hot: Tensor) -> None:
        """The walk through the graph is made until it succeeds once; later calls look at
        `requires_grad` alone."""
        connected = value.requires_grad
        if connected and not self._graph_seen and not torch.compiler.is_compiling():
            connected = self._graph_seen = _reaches(value, one_hot)
        if not connected:
            raise _no_graph(self.name)


_CALL = ("forward", "rsample", "relax")


def _sampled(theta: Tensor, noise: Tensor) -> Tensor:
    return choose(theta + (noise[0] if noise.ndim > theta.ndim else noise))


def check_value(value: Tensor, dist: FactoredCategorical, lead: tuple[int, ...] = ()) -> Tensor:
    """Return f's value, integers as floats, or raise when it is not a tensor [S..., B]."""
    want = (*lead, *dist.batch_shape)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"f must return a tensor of values {list(want)}, got {type(value).__name__}; wrap it "
            "with torch.as_tensor"
        )
    if tuple(value.shape) != want:
        raise ValueError(
            f"f must map one-hots {[*want, dist.layout.total]} to values {list(want)}, got "
            f"{list(value.shape)}; one value per row, without a trailing axis"
        )
    return value if value.is_floating_point() else value.to(dist.theta.dtype)


def needs_graph(name: str, value: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    """∂f/∂point of the rows' values, or the error that names the estimator.

    Taken apart from the caller's graph, so f's parameters receive nothing from it.
    """
    slope = None
    if value.requires_grad:
        (slope,) = torch.autograd.grad(
            value.sum(), point, create_graph=create_graph, allow_unused=True
        )
    if slope is None:
        raise _no_graph(name)
    return slope


def _no_graph(name: str) -> ValueError:
    return ValueError(
        f"{name} needs ∂f/∂D, but the value of f has no graph to the one-hot it was given (an "
        "argmax, a detach, no_grad, or an environment outside torch); make f differentiable in the "
        "one-hot, or take an estimator that needs values only: reinforce, rloo, "
        "local_expectation, exact"
    )


def _reaches(value: Tensor, target: Tensor) -> bool:
    """Is `target` an ancestor of `value` in the autograd graph?"""
    goal, stack, seen = target.grad_fn, [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is goal:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False
