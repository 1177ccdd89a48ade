"""Sentences of a context-free grammar from a GAN that is trained through its own tokens.

    python examples/grammar_text.py
    python examples/grammar_text.py --estimator st_gumbel reinforce rloo likelihood --seed 3

The task of Kusner and Hernández-Lobato (2016, arXiv 1611.04051): S -> x | S+S | S-S | S*S | S/S in
12 padded tokens. A generator turns noise into the logits of all 12, a discriminator scores their
one-hots, and the estimator is one word: those that climb the discriminator's slope (st_gumbel,
gumbel_rao, reinmax, …) and those that see its values only (reinforce, rloo, local_expectation)
train one network by one call. `likelihood` is the reference without an adversary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from gumbelrl.examples.text_runs import Example, Report, Row, check_numbers, command, option, step
from gumbelrl.gumbel import FactoredCategorical, make_estimator
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, OPERATORS = "x+-*/ ", "+-*/"  # the space pads
K, T = len(TOKENS), 12
NOISE, HIDDEN, N_SAMPLES = 32, 128, 5000
DEFAULTS: dict[str, dict[str, Any]] = {"reinforce": {"baseline": "running_mean"}}


@cache
def parses(sentence: str) -> bool:
    """Does the grammar derive this? S -> x, or S -> S∘S at an operator ∘ that splits it so."""
    return sentence == "x" or any(
        token in OPERATORS and parses(sentence[:i]) and parses(sentence[i + 1 :])
        for i, token in enumerate(sentence)
    )


@cache
def language() -> dict[str, float]:
    """Every sentence of at most 12 tokens and its probability in the data: the number of leaves is
    uniform on 1 … 6, and so is the choice among the sentences that have as many."""
    derived: list[set[str]] = [set(), {"x"}]  # by number of leaves
    for n in range(2, (T + 1) // 2 + 1):
        pairs = [(a, b) for k in range(1, n) for a in derived[k] for b in derived[n - k]]
        derived.append({a + op + b for a, b in pairs for op in OPERATORS})
    return {s: 1 / (len(derived) - 1) / len(same) for same in derived for s in sorted(same)}


def encode(sentences: Sequence[str]) -> Tensor:
    """One-hots [N, T·K] of padded sentences."""
    indices = [[TOKENS.index(token) for token in s.ljust(T)] for s in sentences]
    return F.one_hot(torch.tensor(indices), K).float().flatten(1)


def decode(actions: Tensor) -> list[str]:
    """int64 [N, T] -> sentences, the padding at their end taken off."""
    return ["".join(TOKENS[i] for i in row).rstrip() for row in actions.tolist()]


@dataclass(frozen=True)
class Settings:
    """One run. The slopes that `r1` weighs are those that pathwise estimators climb."""

    estimator: str = option("st_gumbel", "one or several of the library's, or `likelihood`")
    temperature: float | None = option(None, "of estimators that have one; others refuse it")
    steps: int = option(1500, "updates of the generator")
    batch_size: int = option(128, "sentences an update")
    learning_rate: float = option(2e-3, "of the generator")
    r1: float = option(0.1, "weight of the discriminator's squared slope at data and samples")
    seed: int = option(0, "of weights, data and noise")

    def __post_init__(self) -> None:
        check_numbers(self, "steps", "batch_size", "learning_rate", "r1")
        self.build_estimator()

    def build_estimator(self) -> Any:
        """The estimator, or None for `likelihood`. Raises ValueError for what it cannot be."""
        tau = {} if self.temperature is None else {"temperature": self.temperature}
        if self.estimator == "likelihood":
            if tau:
                raise ValueError("likelihood has no temperature")
            return None
        return make_estimator(self.estimator, **{**DEFAULTS.get(self.estimator, {}), **tau})


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam, its memory short since the target moves."""
    return torch.optim.Adam(network.parameters(), learning_rate, betas=(0.5, 0.9), fused=True)


def perceptron(n_in: int, n_out: int) -> nn.Sequential:
    """Two hidden layers."""
    act, layers = nn.LeakyReLU(0.2), (nn.Linear(n_in, HIDDEN), nn.Linear(HIDDEN, HIDDEN))
    return nn.Sequential(layers[0], act, layers[1], act, nn.Linear(HIDDEN, n_out))


class TextGan:
    """Generator, discriminator, and one update of both."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)  # the networks' first weights
        self.random = torch.Generator().manual_seed(settings.seed)
        self.settings, self.estimator = settings, settings.build_estimator()
        self.generator = perceptron(NOISE, T * K)
        # Log-odds that it is data, [S..., B, T·K] -> [S..., B].
        self.discriminator = nn.Sequential(perceptron(T * K, 1), nn.Flatten(-2))
        self.climb = adam(self.generator, settings.learning_rate)
        self.judge = adam(self.discriminator, 1e-3)
        self.sentences = encode(list(language()))  # [1365, T·K]
        self.weights = torch.tensor([*language().values()])

    def dist(self, n: int, random: torch.Generator | None = None) -> FactoredCategorical:
        """Tokens of n sentences, each given its own noise z: 12 factors of 6."""
        z = torch.randn(n, NOISE, generator=random or self.random)
        return FactoredCategorical(self.generator(z), (K,) * T)  # logits [n, T·K]

    def update(self) -> None:
        """One step of the discriminator, then one of the generator."""
        n = self.settings.batch_size
        rows = torch.multinomial(self.weights, n, replacement=True, generator=self.random)
        data = self.sentences[rows]  # [B, T·K]
        if self.estimator is None:  # p(sentence) = E_z Π_t π_t, over 256 z in one matrix product
            return step(self.climb, -(data @ self.dist(256).log_probs.T).logsumexp(-1).mean())
        with torch.no_grad():
            dist = self.dist(n)
            fake = dist.one_hot(dist.sample(self.random), trusted=True)
        both = torch.stack([data, fake]).requires_grad_()  # [2, B, T·K]
        scores = self.discriminator(both)
        (slopes,) = torch.autograd.grad(scores.sum(), both, create_graph=True)
        loss = F.softplus(torch.stack([-scores[0], scores[1]])).mean(-1).sum()
        step(self.judge, loss + self.settings.r1 * slopes.square().sum(-1).mean())
        self.discriminator.requires_grad_(False)
        value = self.estimator(self.dist(n), self.discriminator, self.random)  # [B]
        step(self.climb, -value.mean())
        self.discriminator.requires_grad_(True)

    @torch.no_grad()
    def measure(self) -> Row:
        """Share of 5,000 samples that parse, how many of these differ, and from p(sentence) of the
        whole language: their entropy in nats, and the total variation distance to the data."""
        random = torch.Generator().manual_seed(10_000)
        dist = self.dist(N_SAMPLES, random)
        valid = [s for s in decode(dist.sample(random)) if parses(s)]
        p = (dist.log_probs @ self.sentences.T).exp().mean(0)  # [1365]
        q = p / p.sum()
        distance = 0.5 * ((p - self.weights).abs().sum() + 1 - p.sum()).item()
        row = {"entropy": -torch.xlogy(q, q).sum().item(), "distance": distance}
        return {"valid": len(valid) / N_SAMPLES, "distinct": len(set(valid)), **row}


def train(
    settings: Settings, every: int, report: Report = lambda row: None
) -> tuple[TextGan, list[Row]]:
    """Train; a row of measurements before the first update, after each `every` and at the end."""
    gan, rows, seconds = TextGan(settings), [], 0.0
    for done in range(settings.steps + 1):
        if done % every == 0 or done == settings.steps:
            rows.append({"step": done, **gan.measure(), "seconds": seconds})
            report(rows[-1])
        began = time.process_time()
        if done < settings.steps:
            gan.update()
        seconds += time.process_time() - began
    return gan, rows


def samples(gan: TextGan) -> list[str]:
    """Eight sentences in a line, those in brackets that do not parse."""
    sentences = decode(gan.dist(8).sample(gan.random))
    return ["   ".join(s if parses(s) else f"[{s}]" for s in sentences)]


EXAMPLE = Example(
    name="grammar_text",
    description=(__doc__ or "").split("\n")[0],
    settings=Settings,
    train=train,
    panels={
        "valid": "share of samples that parse",
        "entropy": "their entropy (data: 5.26 nats)",
        "distance": "total variation distance to the data",
    },
    end="{valid:.1%} parse, {distinct} differ, entropy {entropy:.2f}, distance {distance:.2f}",
    samples=samples,
)

main = partial(command, EXAMPLE)
if __name__ == "__main__":
    main()
