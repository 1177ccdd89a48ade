"""REBAR and RELAX: REINFORCE whose baseline is a relaxation of f, its bias given back by
reparameterisation, its free numbers tuned to the variance."""

from dataclasses import dataclass
from math import log

import torch
from gumbelrl.gumbel.choices import finite, integer, positive
from gumbelrl.gumbel.distribution import FactoredCategorical
from gumbelrl.gumbel.estimator import Estimator, Objective, check_value, needs_graph
from gumbelrl.gumbel.gradient import FAR_DOWN, attach_gradient, choose
from gumbelrl.gumbel.noise import conditional_gumbels, gumbel_noise
from gumbelrl.gumbel.tuning import Tuned
from torch import Tensor


@dataclass(frozen=True)
class RebarSettings:
    """Starting points of what is tuned.

    Attributes:
        eta: η, weight of the relaxed f.
        temperature: λ > 0 of the relaxation.
        learning_rate: of Adam on the square of ĝ, while in training mode; 0 tunes nothing.
    """

    eta: float = 1.0
    temperature: float = 0.5
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", finite("eta", self.eta))
        object.__setattr__(self, "temperature", positive("temperature", self.temperature))
        rate = positive("learning_rate", self.learning_rate, zero=True)
        object.__setattr__(self, "learning_rate", rate)


class Rebar(Estimator):
    """REBAR (Tucker 2017): ĝ = (f(D) − c(z̃)) ∇log p(D) + ∇c(z) − ∇c(z̃), c(z) = η f(S_λ(z)),
    z = θ + G, z̃ = (θ + G) given D, gradients through both.

    Unbiased whatever η and λ. f must be differentiable off the corners; tuning differentiates it
    twice.
    """

    name = "rebar"
    evaluations = "3"
    Settings = RebarSettings
    settings: RebarSettings

    def __init__(self, settings: RebarSettings | None = None) -> None:
        super().__init__()
        self.settings = self.Settings() if settings is None else settings
        self.tuned = Tuned(self._start(0, None), self.settings.learning_rate)

    @property
    def eta(self) -> Tensor:
        """η now."""
        phi = self.tuned.phi
        return phi[0] if len(phi) else torch.tensor(self.settings.eta)

    @property
    def temperature(self) -> Tensor:
        """λ now."""
        phi = self.tuned.phi
        return phi[1].exp() if len(phi) else torch.tensor(self.settings.temperature)

    def _start(self, total: int, generator: torch.Generator | None) -> Tensor | None:
        """Initial φ = (η, log λ)."""
        return torch.tensor([self.settings.eta, log(self.settings.temperature)])

    def control(self, y: Tensor, f: Objective, dist: FactoredCategorical, phi: Tensor) -> Tensor:
        """c at the relaxed samples y [2, B, ΣK] -> [2, B]."""
        return phi[0] * check_value(f(y), dist, (2,))

    def forward(
        self,
        dist: FactoredCategorical,
        f: Objective,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """f(D) [B]."""
        layout, dtype = dist.layout, dist.logits.dtype
        noise = gumbel_noise((2, *dist.theta.shape), generator, dist.theta.dtype, dist.theta.device)
        d = choose(dist.theta.detach() + noise[0])  # [B, M, K]
        value = check_value(f(layout.flatten(d).to(dtype)), dist)
        if not (torch.is_grad_enabled() and dist.theta.requires_grad):
            return value
        if self.tuned.phi.numel() == 0:
            start = self._start(layout.total, generator)
            assert start is not None
            self.tuned.start_from(start.to(dist.theta.device))
        tune = self.training and self.settings.learning_rate > 0
        phi = self.tuned.phi.detach().to(dist.theta.dtype, copy=True).requires_grad_(tune)
        theta = dist.theta.detach().requires_grad_()
        z, z_tilde = theta + noise[0], conditional_gumbels(theta, d.bool(), noise[1])
        # −∞/λ has the derivative ∞ · 0 in λ, so forbidden entries are merely far down.
        both = torch.stack([z, z_tilde]).clamp(min=FAR_DOWN)
        y = (both / phi[1].exp()).softmax(-1)  # S_λ(z), S_λ(z̃) [2, B, M, K]
        c = self.control(layout.flatten(y).to(dtype), f, dist, phi)  # c(z), c(z̃)
        grad_c = needs_graph(self.name, c[0] - c[1], theta, create_graph=tune)
        score = d - theta.detach().softmax(-1)  # ∇log p(D) = D − π
        g_hat = (value.detach() - c[1])[..., None, None] * score + grad_c
        if tune:
            (slope,) = torch.autograd.grad(g_hat.square().sum((-2, -1)).mean(), phi)
            self.tuned.step(slope.to(self.tuned.phi.dtype))
        return attach_gradient(value, dist.theta, g_hat)


@dataclass(frozen=True)
class RelaxSettings(RebarSettings):
    """REBAR's settings, and the network's.

    Attributes:
        hidden: width of the network r_φ.
        relaxed_f: c(z) = η f(S_λ(z)) + r_φ(S_λ(z)); without it r_φ alone, and f may be anything.
    """

    hidden: int = 32
    relaxed_f: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden", integer("hidden", self.hidden, 1))
        if not isinstance(self.relaxed_f, bool):
            raise ValueError(f"relaxed_f must be True or False, got {self.relaxed_f!r}")


class Relax(Rebar):
    """RELAX (Grathwohl 2018): REBAR with c(z) = η f(S_λ(z)) + r_φ(S_λ(z)), r_φ a small network.

    r_φ sees the relaxed sample and no state, so it learns what is common to the rows of a batch.
    It starts at 0, where RELAX is REBAR.
    """

    name = "relax"
    evaluations = "1 + 2 of c"
    Settings = RelaxSettings
    settings: RelaxSettings

    def _start(self, total: int, generator: torch.Generator | None) -> Tensor | None:
        """φ = (η, log λ, W [H, ΣK], b [H], w [H]); None until ΣK is known."""
        first = super()._start(0, None)
        if total == 0 or first is None:
            return None
        h = self.settings.hidden
        device = "cpu" if generator is None else generator.device
        w = torch.randn(h * total, generator=generator, device=device).cpu() / total**0.5
        return torch.cat([first, w, torch.zeros(2 * h)])

    def control(self, y: Tensor, f: Objective, dist: FactoredCategorical, phi: Tensor) -> Tensor:
        h, total = self.settings.hidden, y.shape[-1]
        if phi.numel() != 2 + h * (total + 2):
            raise ValueError(
                f"this relax estimator was built for another action layout than "
                f"nvec={list(dist.nvec)}; make one estimator per layout"
            )
        w1, b, w2 = torch.split(phi[2:], [h * total, h, h])
        r: Tensor = ((y.to(phi.dtype) @ w1.view(h, total).T + b).tanh() * w2).sum(-1)  # [2, B]
        return super().control(y, f, dist, phi) + r if self.settings.relaxed_f else r
