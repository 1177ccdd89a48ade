"""One distribution for Discrete, MultiDiscrete and MultiBinary actions."""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from operator import index
from typing import Any, NoReturn

import torch
from gumbelrl.gumbel.choices import fraction, is_number, is_one, positive
from gumbelrl.gumbel.factors import layout_of
from gumbelrl.gumbel.fused import fused_index, usable
from gumbelrl.gumbel.gradient import transformed
from gumbelrl.gumbel.noise import gumbel_noise, noise_dtype
from torch import Tensor


class FactoredCategorical:
    """M independent categoricals of sizes K_1 … K_M over one flat row of logits.

    Discrete(K) is M = 1; MultiDiscrete([K_1, …]) is `nvec`; MultiBinary(n) is `nvec = [2] * n`.

    | call | returns |
    |---|---|
    | `sample(generator)` | int64 [..., M], by Gumbel-max |
    | `mode()` | int64 [..., M] |
    | `one_hot(actions)` | [..., ΣK] in the logits' dtype |
    | `log_prob(actions)`, `entropy()`, `kl(other)` | [...] |
    | `probs`, `log_probs` | [..., ΣK] |

    All are those of the discrete distribution with its mask, mixing and forward temperature, and
    never of a relaxation. Arithmetic is in float32 or wider whatever the logits' dtype.

    Args:
        logits: [..., ΣK] θ; −inf forbids an action as a mask does.
        nvec: sizes of the factors; None is one factor of size `logits.shape[-1]`.
        mask: bool [..., ΣK] (leading axes broadcast), True where the action is allowed.
        uniform_mix: ε in [0, 1]: π' = (1 − ε) π + ε uniform over the allowed actions.
        forward_temperature: T > 0: π = softmax(θ / T), before the mixing. This and the mix may be
            tensors [], which are taken as they are: to look at them would wait for the device.
        validate: look at the values (NaN, +inf, rows with nothing allowed). None, the default,
            means yes on the CPU and no elsewhere, where the look would wait for the device.
            Shapes, dtypes and numbers are always checked: they cost no wait.

    Raises:
        ValueError: what was wrong, where, and the remedy.
    """

    _forward_temperature: float | Tensor | None
    _theta: Tensor | None

    def __init__(
        self,
        logits: Tensor,
        nvec: Sequence[int] | None = None,
        mask: Tensor | None = None,
        *,
        uniform_mix: float | Tensor = 0.0,
        forward_temperature: float | Tensor = 1.0,
        validate: bool | None = None,
    ) -> None:
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim == 0:
            raise ValueError(
                f"logits must be a floating-point tensor [..., ΣK], got {_describe(logits)}"
            )
        self.nvec = (logits.shape[-1],) if nvec is None else _sizes(nvec)
        self.layout = layout_of(self.nvec)
        if logits.shape[-1] != self.layout.total:
            raise ValueError(
                f"logits end in {logits.shape[-1]} but nvec={list(self.nvec)} sums to "
                f"{self.layout.total}; the last axis holds all factors side by side"
            )
        if mask is not None:
            check_mask(mask, logits)
        self.logits = logits
        self.mask = mask
        self.validated = logits.device.type == "cpu" if validate is None else bool(validate)
        """Are values looked at, here and in `one_hot` and `log_prob`?"""
        self._forward_temperature = forward_temperature
        if not is_one(forward_temperature) and not isinstance(forward_temperature, Tensor):
            positive("forward_temperature", forward_temperature)
        if not isinstance(uniform_mix, Tensor):
            uniform_mix = fraction("uniform_mix", uniform_mix)
        self._mix = None if is_number(uniform_mix) and uniform_mix == 0 else uniform_mix
        # Made when first asked for: the fused sampler reads the logits themselves. Making it is
        # also what looks at the values.
        self._theta = self._effective() if self.validated else None

    @property
    def theta(self) -> Tensor:
        """Effective logits θ' [..., M, Kmax], masked and padded places −inf: softmax is π'. Every
        estimator works on these, and autograd carries the gradient on to `logits`."""
        if self._theta is None:
            self._theta = self._effective()
        return self._theta

    def _effective(self) -> Tensor:
        logits = self.logits
        theta = self.layout.pad(logits.to(noise_dtype(logits.dtype)), -torch.inf)
        if self.mask is not None:
            theta = theta.where(self.layout.pad(self.mask, False), -torch.inf)
        raw, temperature = theta, self._forward_temperature
        if temperature is not None and not is_one(temperature):
            theta = theta / temperature
        if self.validated and not _sound(theta):  # θ/T shows the faults of θ and its own
            check_rows(raw)
            raise ValueError(
                f"forward_temperature={temperature!r} takes these logits beyond the range "
                f"of {theta.dtype}; give one nearer to 1"
            )
        return theta if self._mix is None else _mixed(theta, self._mix)

    def rows(self) -> tuple[Tensor, Tensor | None]:
        """Logits and mask [..., M, Kmax] whose softmax is π': the given ones where nothing was done
        to them, which spares a pass over memory, else θ' and None."""
        if self._forward_temperature is None or not (
            self.layout.equal and is_one(self._forward_temperature) and self._mix is None
        ):
            return self.theta, None
        mask = None if self.mask is None else self.layout.pad(self.mask, False)
        return self.layout.pad(self.logits, -torch.inf), mask

    @classmethod
    def from_theta(
        cls, theta: Tensor, nvec: Sequence[int], dtype: torch.dtype | None = None
    ) -> "FactoredCategorical":
        """Wrap effective logits [..., M, Kmax] that were checked before (a leaf, an expansion);
        `dtype` is that of the one-hots, θ's own when None."""
        dist = cls.__new__(cls)
        dist.nvec = tuple(nvec)
        dist.layout = layout_of(dist.nvec)
        dist._theta = theta
        dist.logits = dist.layout.flatten(theta).to(theta.dtype if dtype is None else dtype)
        dist.mask = None
        dist.validated = False
        dist._forward_temperature = None  # θ' is given
        return dist

    def detach(self) -> "FactoredCategorical":
        """The same distribution without a graph."""
        dist = self.from_theta(self.theta.detach(), self.nvec, self.logits.dtype)
        dist.validated = self.validated
        return dist

    @property
    def batch_shape(self) -> torch.Size:
        """Leading axes [...] of the logits."""
        return self.logits.shape[:-1]

    @cached_property
    def log_pi(self) -> Tensor:
        """log π' [..., M, Kmax], −inf where forbidden."""
        return self.theta.log_softmax(-1)

    @cached_property
    def pi(self) -> Tensor:
        """π' [..., M, Kmax], exactly 0 where forbidden."""
        return self.theta.softmax(-1)

    @property
    def probs(self) -> Tensor:
        """π' [..., ΣK]."""
        return self.layout.flatten(self.pi)

    @property
    def log_probs(self) -> Tensor:
        """log π' [..., ΣK]."""
        return self.layout.flatten(self.log_pi)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw actions, int64 [..., M], by Gumbel-max: argmax(θ + G).

        `torch.multinomial` is avoided: it synchronises, and can draw forbidden actions.
        """
        if usable(self.logits):
            return fused_index(*self.rows(), generator)
        theta = self.theta.detach()
        return (theta + gumbel_noise(theta, generator)).argmax(-1)

    def mode(self) -> Tensor:
        """Most probable action of each factor, int64 [..., M]; the first one on a tie."""
        return self.theta.detach().argmax(-1)

    def one_hot(self, actions: Tensor, *, trusted: bool = False) -> Tensor:
        """[..., M] int64 -> [..., ΣK], exact zeros and ones in the logits' dtype; `trusted` spares
        actions that `sample` gave the look at their range."""
        self._check_actions(actions, trusted)
        shape = (*actions.shape, self.layout.k_max)
        hot = torch.zeros(shape, dtype=self.logits.dtype, device=self.logits.device)
        return self.layout.flatten(hot.scatter_(-1, actions.unsqueeze(-1), 1.0))

    def log_prob(self, actions: Tensor, *, trusted: bool = False) -> Tensor:
        """[S..., ..., M] int64 -> [S..., ...]: log π'(a), the sum over factors; `trusted` as in
        `one_hot`."""
        self._check_actions(actions, trusted)
        log_pi = self.log_pi.expand(*actions.shape, self.layout.k_max)
        return log_pi.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)

    def _check_actions(self, actions: Tensor, trusted: bool) -> None:
        """Raise unless actions are [..., M]; of their range where values are looked at."""
        if actions.ndim == 0 or actions.shape[-1] != self.layout.m:
            raise ValueError(
                f"actions must end in an axis of {self.layout.m}, one index per factor of "
                f"nvec={list(self.nvec)}, got shape {list(actions.shape)}"
                + ("; add the axis with actions.unsqueeze(-1)" if self.layout.m == 1 else "")
            )
        if trusted or not self.validated or actions.numel() == 0 or transformed():
            return
        low, high = torch.aminmax(actions)
        wrong = low.item() < 0 or high.item() >= self.layout.k_max
        sizes = _sizes_on(actions.device, self.nvec)
        if wrong or not (self.layout.equal or bool((actions < sizes).all())):
            where = ((actions < 0) | (actions >= sizes)).nonzero()[0].tolist()
            raise ValueError(
                f"actions must be in [0, K) of their factor, nvec={list(self.nvec)}, got "
                f"{actions[tuple(where)].item()} at index {where}"
            )

    def entropy(self) -> Tensor:
        """[...] entropy in nats, the sum over factors."""
        if transformed() or not torch.is_grad_enabled():
            return _entropies(self.theta)[0].sum(-1)
        return _entropy(self.theta).sum(-1)

    def entropy_and_slope(self) -> tuple[Tensor, Tensor]:
        """`entropy()` [...] and its gradient ∂H/∂θ' [..., M, Kmax], both without a graph."""
        entropy, pi, log_pi = _entropies(self.theta.detach())
        return entropy.sum(-1), _entropy_slope(entropy, pi, log_pi)

    def kl(self, other: "FactoredCategorical") -> Tensor:
        """[...] KL(self ‖ other) in nats; inf where self allows what other forbids."""
        if other.nvec != self.nvec:
            raise ValueError(
                f"kl needs two distributions of one layout, got {self.nvec} and {other.nvec}"
            )
        here = self.pi > 0
        log_ratio = self.log_pi.where(here, 0.0) - other.log_pi.where(here, 0.0)
        return (self.pi * log_ratio).sum((-2, -1))


def _entropies(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H(softmax θ) [..., M] of each row, π [..., M, K] and log π, finite where π is 0."""
    log_pi = theta.log_softmax(-1)
    pi = log_pi.exp()
    # 0 · log 0 = 0: the clamp makes it 0 in value and gradient, where −inf would give NaN.
    log_pi = log_pi.clamp(min=torch.finfo(theta.dtype).min)
    return -(pi * log_pi).sum(-1), pi, log_pi


class _Entropy(torch.autograd.Function):
    """H [..., M] of rows θ [..., M, K]; ∂H/∂θ = −π ⊙ (log π + H), in a third of autograd's time."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor) -> Tensor:
        entropy, *rest = _entropies(theta)
        ctx.save_for_backward(theta, entropy, *rest)
        return entropy

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        theta, entropy, pi, log_pi = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient as a function of θ
            entropy, pi, log_pi = _entropies(theta)
        return _entropy_slope(entropy, pi, log_pi) * g.unsqueeze(-1)


def _entropy_slope(entropy: Tensor, pi: Tensor, log_pi: Tensor) -> Tensor:
    return -pi * (log_pi + entropy.unsqueeze(-1))


_entropy: Callable[[Tensor], Tensor] = _Entropy.apply


def _sizes(nvec: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(index(k) for k in nvec)
    except TypeError:
        raise ValueError(
            f"nvec must be a sequence of integers, one size per factor, got {nvec!r}; one factor "
            "of size K is [K], or None"
        ) from None


@cache
def _sizes_on(device: torch.device, nvec: tuple[int, ...]) -> Tensor:
    return torch.tensor(nvec, device=device)  # [M]


def check_mask(mask: Tensor, logits: Tensor) -> None:
    """Raise unless `mask` is bool and broadcasts onto `logits` with the same last axis."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be a bool tensor, True where allowed, got {_describe(mask)}; "
            "convert it with mask.bool()"
        )
    lead, want = mask.shape[:-1], logits.shape[:-1]
    fits = len(lead) <= len(want) and all(
        a in (1, b) for a, b in zip(reversed(lead), reversed(want), strict=False)
    )
    if mask.ndim == 0 or mask.shape[-1] != logits.shape[-1] or not fits:
        raise ValueError(
            f"mask must have the logits' shape {list(logits.shape)} (leading axes may broadcast), "
            f"got {list(mask.shape)}"
        )


def check_rows(theta: Tensor, top: Tensor | None = None) -> None:
    """Raise when a row [..., K] holds NaN or +inf, or allows nothing. One look at the row maxima
    (`top`, where they are known, of θ or of θ + G) finds all three; on a GPU it waits for the
    device, hence the `validate` switch."""
    if not _sound(theta, top):
        _explain(theta.detach())


def _sound(theta: Tensor, top: Tensor | None = None) -> bool:
    if theta.numel() == 0:
        return True
    low, high = torch.aminmax(theta.detach().amax(-1) if top is None else top)  # NaN shows in both
    return low.item() != -torch.inf and high.item() < torch.inf


def _explain(theta: Tensor) -> NoReturn:
    bad = theta.isnan() | (theta == torch.inf)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        value = theta[tuple(where)].item()
        raise ValueError(
            f"logits must be finite (−inf forbids an action), got {value} at index {where} and "
            f"{int(bad.sum())} such value(s) in all; look for a diverged network or observation"
        )
    where = (theta == -torch.inf).all(-1).nonzero()[0].tolist()
    raise ValueError(
        f"every row needs at least one allowed action, row {where} has none; correct the mask, or "
        "leave such rows out"
    )


def _mixed(theta: Tensor, epsilon: float | Tensor) -> Tensor:
    """log((1 − ε) π + ε/n) over the n allowed actions of a row; forbidden ones stay −inf."""
    allowed = theta > -torch.inf
    log_uniform = -allowed.sum(-1, keepdim=True).to(theta.dtype).log().expand_as(theta)
    if not isinstance(epsilon, Tensor):
        if epsilon == 1.0:  # π' knows nothing of θ: a gradient of 0, and not the lack of a graph
            return (log_uniform + 0.0 * theta.where(allowed, 0.0)).where(allowed, -torch.inf)
        epsilon = torch.tensor(epsilon, dtype=torch.float64)
    eps = epsilon.double()
    log_pi = theta.log_softmax(-1).where(allowed, 0.0)
    mixed = torch.logaddexp(log_pi + torch.log1p(-eps), log_uniform + eps.log())
    return mixed.where(allowed, -torch.inf)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"{type(value).__name__}"
