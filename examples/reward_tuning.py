"""A small token model tuned to a reward that is differentiable in its tokens, kept near its start.

    python examples/reward_tuning.py
    python examples/reward_tuning.py --estimator st_gumbel reinforce rloo --kl 0.02

GRADE's setting (arXiv 2601.11574) in miniature: a recurrent model of film reviews is fitted to a
corpus, a classifier of their sentiment to a few labelled ones, and the model then climbs
E[reward − β Σ_t KL(π_t ‖ start_t)]. Pathwise estimators (st_gumbel, gumbel_rao, reinmax, …) climb
the classifier's slope in the one-hots, through every token's effect on the later ones; reinforce
and rloo see values only. A rule that knows the language judges what the classifier never did.
"""

import copy
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from gumbelrl.examples.text_runs import Example, Report, Row, check_numbers, command, option, step
from gumbelrl.gumbel import Estimator, FactoredCategorical, Pathwise, make_estimator
from torch import Tensor, nn
from torch.nn import functional as F

NOUNS, GOOD = ["film", "plot", "cast", "music", "ending"], ["good", "great", "lovely", "clever"]
BAD = ["bad", "dull", "awful", "weak"]
WORDS = ["_", ".", "the", "was", "and", "not", "very", *NOUNS, *GOOD, *BAD]  # "_" pads
V, T, PRETRAINING = len(WORDS), 12, 600
CLAUSE = rf"the (?:{'|'.join(NOUNS)}) was (not |very )?({'|'.join(GOOD + BAD)})"
REVIEW = re.compile(rf"{CLAUSE}(?: and {CLAUSE})? \.(?: _)*")


def review(source: random.Random) -> list[str]:
    """One or two clauses "the NOUN was [not | very] ADJECTIVE", a full stop, padding."""
    words: list[str] = []
    for _ in range(source.choice([1, 2, 2])):
        adverb = source.choice([[], [], ["not"], ["very"]])
        words += ["and", "the", source.choice(NOUNS), "was", *adverb, source.choice(GOOD + BAD)]
    return [*words[1:], ".", *["_"] * (T - len(words))]


def judge(words: Sequence[str]) -> float | None:
    """Share of clauses that praise, "not" turning them around; None where it is no review."""
    if REVIEW.fullmatch(text := " ".join(words)) is None:
        return None
    praise = [(last in GOOD) != (adverb == "not ") for adverb, last in re.findall(CLAUSE, text)]
    return sum(praise) / len(praise)


def encode(reviews: Sequence[Sequence[str]]) -> Tensor:
    """One-hots [N, T·V]."""
    indices = torch.tensor([[WORDS.index(word) for word in words] for words in reviews])
    return F.one_hot(indices, V).float().flatten(1)


def decode(one_hot: Tensor) -> list[list[str]]:
    """[N, T·V] -> the words of each row."""
    return [[WORDS[i] for i in row] for row in one_hot.unflatten(-1, (T, V)).argmax(-1).tolist()]


class TokenModel(nn.Module):
    """A GRU over one-hots."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(32))
        self.embed, self.out = nn.Linear(V, 32, bias=False), nn.Linear(hidden, V)
        self.gru = nn.GRU(32, hidden, batch_first=True)

    def forward(self, one_hot: Tensor) -> Tensor:
        """Logits [B, T·V] of each token, given those before it in `one_hot` [B, T·V]."""
        before = self.embed(one_hot.unflatten(-1, (T, V))[:, :-1])  # [B, T − 1, 32]
        first = self.first.expand(len(one_hot), 1, -1)
        return self.out(self.gru(torch.cat([first, before], 1))[0]).flatten(1)

    def roll_out(self, n: int, draw: Callable[[FactoredCategorical], Tensor]) -> Tensor:
        """[n, T·V] one-hots, token by token; each is fed back as `draw` gave it."""
        x, state, tokens = self.first.expand(n, 1, -1), None, []
        for _ in range(T):
            h, state = self.gru(x, state)
            tokens.append(draw(FactoredCategorical(self.out(h[:, 0]), validate=False)))  # [n, V]
            x = self.embed(tokens[-1])[:, None]
        return torch.cat(tokens, -1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, T·V] without a graph."""
        return self.roll_out(n, lambda dist: dist.one_hot(dist.sample(generator), trusted=True))


class RewardModel(nn.Module):
    """One-hots [B, T·V] -> probability [B] that the review is kind; a convolution over words."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.out = nn.Conv1d(V, 32, 3, padding=1), nn.Linear(32, 1)

    def forward(self, one_hot: Tensor) -> Tensor:
        x = one_hot.unflatten(-1, (T, V)).transpose(1, 2)
        return self.out(self.near(x).relu().mean(-1)).squeeze(-1).sigmoid()


@cache
def pretrained(seed: int, labelled: int) -> tuple[TokenModel, RewardModel]:
    """The model of 4,000 reviews, and the classifier of the first `labelled` of them."""
    torch.manual_seed(seed)
    source = random.Random(seed)
    reviews = [review(source) for _ in range(4000)]
    x, y = encode(reviews), torch.tensor([judge(words) for words in reviews])
    model, reward = TokenModel(), RewardModel()
    adam = torch.optim.Adam([*model.parameters(), *reward.parameters()], 5e-3, fused=True)
    for _ in range(PRETRAINING):
        rows, known = torch.randint(len(x), (64,)), torch.randint(min(labelled, len(x)), (64,))
        log_p = (x[rows] * FactoredCategorical(model(x[rows]), (V,) * T).log_probs).sum(-1)
        step(adam, F.binary_cross_entropy(reward(x[known]), y[known]) - log_p.mean())
    return model.requires_grad_(False), reward.requires_grad_(False)


class Drawn(FactoredCategorical):
    """The tokens' distributions, each given the tokens that were drawn before: `sample` returns
    those, since a new draw from later distributions would not belong to its own beginning."""

    def __init__(self, logits: Tensor, one_hot: Tensor) -> None:
        super().__init__(logits, (V,) * T, validate=False)
        self.actions = one_hot.unflatten(-1, (T, V)).argmax(-1)  # [B, T]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.actions


@dataclass(frozen=True)
class Settings:
    """One run."""

    estimator: str = option("st_gumbel", "reinforce, rloo or pathwise ones, one or several")
    temperature: float | None = option(None, "of estimators that have one; others refuse it")
    kl: float = option(0.05, "β, reward that a nat of KL must pay for")
    labelled: int = option(300, "reviews that the reward model has seen, of 4,000")
    steps: int = option(200, "updates")
    batch_size: int = option(64, "reviews an update")
    learning_rate: float = option(3e-3, "of the token model")
    seed: int = option(0, "of weights, corpus and noise")

    def __post_init__(self) -> None:
        check_numbers(self, "kl", "labelled", "steps", "batch_size", "learning_rate")
        self.build_estimator()

    def build_estimator(self) -> Estimator:
        """Raises ValueError for one that cannot be, or draws tokens itself."""
        if self.estimator in ("reinforce", "rloo") and self.temperature is None:
            baseline = "running_mean" if self.estimator == "reinforce" else "given"
            return make_estimator("reinforce", baseline=baseline, decay=0.9)
        tau = {} if self.temperature is None else {"temperature": self.temperature}
        estimator = make_estimator(self.estimator, **tau)
        if not isinstance(estimator, Pathwise):
            why = "draws all tokens at once, but here each depends on those before it; take"
            raise ValueError(f"{self.estimator} {why} reinforce, rloo or one such as st_gumbel")
        return estimator


class Tuner:
    """The model that is tuned, and what it climbs."""

    def __init__(self, settings: Settings) -> None:
        self.start, self.reward = pretrained(settings.seed, settings.labelled)
        self.model = copy.deepcopy(self.start).requires_grad_()
        self.settings, self.estimator = settings, settings.build_estimator()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.adam = torch.optim.Adam(self.model.parameters(), settings.learning_rate, fused=True)

    def __call__(self, one_hot: Tensor) -> Tensor:
        """f: [B, T·V] -> [B], reward − β KL. The KL's own gradient reaches the model here, the
        estimator's the choice of the tokens."""
        both = (model(one_hot) for model in (self.model, self.start))
        pi, start = (FactoredCategorical(logits, (V,) * T, validate=False) for logits in both)
        self.kl = pi.kl(start)
        self.value = self.reward(one_hot) - self.settings.kl * self.kl
        return self.value

    def baseline(self) -> Tensor:
        """Leave-one-out: for each review the mean of the others (0 where it is alone), [B]."""
        return (self.value.sum() - self.value).detach() / max(len(self.value) - 1, 1)

    def climbed(self, estimator: Estimator) -> Tensor:
        """Mean value of a batch; its gradient is the estimator's."""
        n, draw = self.settings.batch_size, self.generator
        if isinstance(estimator, Pathwise):
            return self(self.model.roll_out(n, lambda d: estimator.rsample(d, draw))).mean()
        one_hot = self.model.sample(n, draw)
        return estimator(Drawn(self.model(one_hot), one_hot), self).mean()

    @torch.no_grad()
    def measure(self) -> Row:
        """Of 1,000 samples: what is climbed, the classifier's reward, the rule's (0 for what is no
        review), KL in nats, shares of reviews and of different ones."""
        one_hot = self.model.sample(1000, torch.Generator().manual_seed(10_000))
        value, verdicts = self(one_hot).mean().item(), [judge(words) for words in decode(one_hot)]
        return {
            "value": value,
            "reward": value + self.settings.kl * self.kl.mean().item(),
            "rule": sum(verdict or 0.0 for verdict in verdicts) / len(verdicts),
            "kl": self.kl.mean().item(),
            "reviews": sum(verdict is not None for verdict in verdicts) / len(verdicts),
            "distinct": len({tuple(words) for words in decode(one_hot)}) / len(verdicts),
        }

    def optimum(self) -> float:
        """The largest value there is: β log E_start exp(reward/β), over 20,000 samples."""
        rewards = self.reward(self.start.sample(20_000, torch.Generator().manual_seed(20_000)))
        beta = self.settings.kl
        return beta * ((rewards / beta).logsumexp(0) - math.log(len(rewards))).item()


def train(
    settings: Settings, every: int, report: Report = lambda row: None
) -> tuple[Tuner, list[Row]]:
    """Tune; a row of measurements before the first update, after each `every` and at the end."""
    tuner, rows = Tuner(settings), []
    for done in range(settings.steps + 1):
        if done % every == 0 or done == settings.steps:
            rows.append({"step": done, **tuner.measure()})
            report(rows[-1])
        if done < settings.steps:
            step(tuner.adam, -tuner.climbed(tuner.estimator))
    return tuner, rows


def samples(tuner: Tuner) -> list[str]:
    """The best value there is, and three reviews."""
    reviews = decode(tuner.model.sample(3, tuner.generator))
    best = f"(no model has a value above {tuner.optimum():.3f})"
    return [best, *(" ".join(words).rstrip(" _") for words in reviews)]


EXAMPLE = Example(
    name="reward_tuning",
    description=(__doc__ or "").split("\n")[0],
    settings=Settings,
    train=train,
    panels={"value": "value: reward − β KL", "rule": "reward by the rule", "kl": "KL, nats"},
    end="value {value:.3f}, reward {reward:.3f}, by the rule {rule:.3f}, KL {kl:.2f} nats",
    samples=samples,
)

main = partial(command, EXAMPLE)
if __name__ == "__main__":
    main()
