"""The polynomial toy of the ReinMax paper (Liu 2023), for every estimator.

128 independent binary latents, loss = mean over latents of |z − 0.45|^p, one θ, batches of 64 joint
samples, Adam 1e-3, 8,000 steps from U(−0.01, 0.01). Prints the expected loss at the end. RLOO takes
its 64 samples from the batch; `exact` enumerates each latent alone, which this separable loss
allows. The three exponents are trained side by side.

    python -m benchmarks.polynomial [--all] [--only st_gumbel exact] [--steps 8000] [--seed 0]
"""

import argparse
import time

import torch
from gumbelrl.gumbel import Estimator, FactoredCategorical, make_estimator
from torch import Tensor

LATENTS, BATCH, TARGET = 128, 64, 0.45
EXPONENTS = (2.0, 1.5, 3.0)
SLOW = ("rebar", "relax", "gumbel_rao", "reinmax_rao")

# name, settings, reference losses for p = 2 / 1.5 / 3 where shared/estimators.md states them
ROWS: list[tuple[str, dict, tuple[float, float, float] | None]] = [
    ("exact", {}, (0.2027, 0.3021, 0.0913)),
    ("local_expectation", {}, None),
    ("rloo", {"k": 64}, (0.2031, 0.3025, 0.0916)),
    ("reinforce", {"baseline": "running_mean"}, (0.2035, 0.3030, 0.0918)),
    ("reinforce", {}, None),
    ("muprop", {}, None),
    ("rebar", {}, None),
    ("relax", {}, None),
    ("reinmax", {"temperature": 1.0}, (0.2037, 0.3053, 0.0915)),
    ("reinmax", {"temperature": 1.1}, (0.2191, 0.3316, 0.0957)),
    ("reinmax_rao", {"k": 8}, None),
    ("st_gumbel", {"temperature": 0.1}, (0.2203, 0.3363, 0.0946)),
    ("st_gumbel", {"temperature": 0.5}, (0.2431, 0.3499, 0.1149)),
    ("st_gumbel", {"temperature": 1.0}, None),
    ("gumbel_rao", {"temperature": 0.1, "k": 8}, None),
    ("gumbel_rao", {"temperature": 0.5, "k": 8}, None),
    ("decoupled_st_gumbel", {"temperature_forward": 2.0, "temperature_backward": 0.5}, None),
    ("straight_through", {}, (0.2475, 0.3522, 0.1213)),
    ("gapped_st", {}, (0.2475, 0.3522, 0.1213)),
    ("gumbel_softmax", {"temperature": 0.5}, None),
    ("mixed", {"pathwise": "reinmax", "score": "reinforce"}, None),
]


class Polynomial:
    """f(D) = mean over latents of |z − 0.45|^p: [S..., P, B, 2·latents] -> [S..., P, B]."""

    def __init__(self, exponents: Tensor) -> None:
        self.p = exponents  # [P]

    def terms(self, one_hot: Tensor) -> Tensor:
        """[..., P, B, 2·latents] -> [..., P, B, latents], each latent's part of the mean."""
        z = one_hot.unflatten(-1, (-1, 2))[..., 1]
        return (z - TARGET).abs() ** self.p[:, None, None] / z.shape[-1]

    def __call__(self, one_hot: Tensor) -> Tensor:
        return self.terms(one_hot).sum(-1)

    def per_factor(self, one_hot: Tensor) -> Tensor:
        """Each latent set to 0 and to 1, the others as sampled: [P, B, 2·latents]."""
        terms = self.terms(one_hot)
        rest = terms.sum(-1, keepdim=True) - terms  # [P, B, latents]
        n = terms.shape[-1]
        corners = torch.stack([TARGET**self.p / n, (1 - TARGET) ** self.p / n], -1)  # [P, 2]
        return (rest[..., None] + corners[:, None, None]).flatten(-2)


def value_of(estimators: list[Estimator], theta: Tensor, p: Tensor, gen: torch.Generator) -> Tensor:
    """[P] batch mean of the estimators' values; theta is [P, latents, 2]."""
    name, n = estimators[0].name, theta.shape[1]
    if name == "exact":  # each latent is a row of its own: [P, latents, 2]
        rows = FactoredCategorical(theta, validate=False)
        return estimators[0](rows, Polynomial(p)).mean(-1)
    if name == "rloo":  # the batch is its k
        dist = FactoredCategorical(theta.flatten(-2)[:, None], (2,) * n, validate=False)
        return estimators[0](dist, Polynomial(p), gen).squeeze(-1)
    logits = theta.flatten(-2)[:, None].expand(-1, BATCH, -1)  # [P, B, 2·latents]
    if len(estimators) == 1:
        dist = FactoredCategorical(logits, (2,) * n, validate=False)
        return estimators[0](dist, Polynomial(p), gen).mean(-1)
    values = []
    for i, estimator in enumerate(estimators):
        dist = FactoredCategorical(logits[i : i + 1], (2,) * n, validate=False)
        values.append(estimator(dist, Polynomial(p[i : i + 1]), gen).mean(-1))
    return torch.cat(values)


def train(name: str, settings: dict, steps: int, seed: int) -> list[float]:
    """Expected loss at the end for each exponent."""
    torch.manual_seed(seed)
    gen = torch.Generator().manual_seed(seed)
    start = torch.empty(LATENTS, 2).uniform_(-0.01, 0.01, generator=gen)
    theta = start.expand(len(EXPONENTS), -1, -1).clone().requires_grad_()
    p = torch.tensor(EXPONENTS)
    # What keeps a state (a running mean, a tuned control variate) needs one per exponent.
    stateful = name in ("reinforce", "rebar", "relax", "mixed")
    estimators = [make_estimator(name, **settings) for _ in range(len(p) if stateful else 1)]
    adam = torch.optim.Adam([theta], lr=1e-3, fused=True)
    for _ in range(steps):
        adam.zero_grad()
        value_of(estimators, theta, p, gen).sum().backward()
        adam.step()
    pi = theta.detach().double().softmax(-1)[..., 1]  # [P, latents]
    p = p.double()[:, None]
    return (pi * (1 - TARGET) ** p + (1 - pi) * TARGET**p).mean(-1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None, help="names of estimators")
    parser.add_argument("--all", action="store_true", help="the rows that take minutes as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'estimator':52s}{'p=2':>8s}{'p=1.5':>8s}{'p=3':>8s}{'worst gap':>11s}{'seconds':>9s}")
    best = [min(TARGET**p, (1 - TARGET) ** p) for p in EXPONENTS]
    print(f"{'optimum':52s}" + "".join(f"{b:8.4f}" for b in best))
    for name, settings, reference in ROWS:
        if name not in args.only if args.only else name in SLOW and not args.all:
            continue
        begin = time.perf_counter()
        loss = train(name, settings, args.steps, args.seed)
        seconds = time.perf_counter() - begin
        label = name + "".join(f" {key}={value}" for key, value in settings.items())
        label = label.replace("temperature", "τ")
        gap = " " * 11
        if reference:
            gap = f"{max(abs(a - b) for a, b in zip(loss, reference, strict=True)):11.4f}"
        row = "".join(f"{x:8.4f}" for x in loss)
        print(f"{label:52s}{row}{gap}{seconds:9.1f}", flush=True)
    print("worst gap: largest distance from the reference figures of the row, where there are any")


if __name__ == "__main__":
    main()
