"""The language of reviews, and gradients of whole sequences against enumeration."""

import random

import pytest
import torch
from gumbelrl.examples import reward_tuning
from gumbelrl.examples.reward_tuning import (
    RewardModel,
    Settings,
    TokenModel,
    Tuner,
    V,
    decode,
    encode,
    judge,
    main,
    review,
    train,
)
from gumbelrl.gumbel import FactoredCategorical, make_estimator


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("the film was good .", 1.0),
        ("the film was not good . _ _", 0.0),
        ("the cast was very weak .", 0.0),
        ("the cast was not weak and the plot was dull . _", 0.5),
        ("the film was good", None),
        ("the film was good . the", None),
        ("the film was good good .", None),
        ("film was good .", None),
        ("the film was not very good .", None),
        ("the film was good and the plot was good and the cast was good .", None),
        ("_ the film was good .", None),
        ("", None),
    ],
)
def test_the_rule(text, verdict):
    assert judge(text.split()) == verdict


def test_reviews_of_the_corpus_are_reviews():
    source = random.Random(0)
    reviews = [review(source) for _ in range(500)]
    assert all(judge(words) is not None and len(words) == reward_tuning.T for words in reviews)
    assert {judge(words) for words in reviews} == {0.0, 0.5, 1.0}
    assert decode(encode(reviews)) == reviews


@pytest.fixture
def short(monkeypatch):
    """Two tokens of 20 words: 400 sequences, all of which can be laid out. Random networks."""
    monkeypatch.setattr(reward_tuning, "T", 2)

    def networks(seed, labelled):
        torch.manual_seed(0)
        model, reward = TokenModel(), RewardModel()
        for parameter in (*model.parameters(), *reward.parameters()):
            parameter.data *= 3.0
        return model.requires_grad_(False), reward.requires_grad_(False)

    monkeypatch.setattr(reward_tuning, "pretrained", networks)

    def build(name):
        tuner = Tuner(Settings(name, batch_size=1000))
        for parameter in tuner.model.parameters():  # away from the start: the KL counts
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=tuner.generator)
        return tuner

    return build


def everything(tuner, model):
    """All sequences [400, 2·V], and their probabilities under a model, with a graph."""
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    one_hot = torch.nn.functional.one_hot(pairs, V).float().flatten(1)
    dist = FactoredCategorical(model(one_hot), (V, V))
    return one_hot, dist.log_prob(pairs).exp()


def value_of_all(tuner):
    """E[reward] − β KL(model ‖ start) of whole sequences, by summing over all of them."""
    one_hot, p = everything(tuner, tuner.model)
    start = everything(tuner, tuner.start)[1]
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    kl = (p * (p / start).log()).sum()
    return (p * tuner.reward(one_hot)).sum() - tuner.settings.kl * kl


def flat_gradient(tuner, value):
    slopes = torch.autograd.grad(value, [*tuner.model.parameters()])
    return torch.cat([slope.flatten() for slope in slopes]).double()


def deviations(tuner):
    """Mean of 40 gradients against enumeration, along ∇ and 8 random directions, in standard
    errors."""
    truth = flat_gradient(tuner, value_of_all(tuner))
    for _ in range(5):
        tuner.climbed(tuner.estimator)  # a running mean settles
    drawn = torch.stack([flat_gradient(tuner, tuner.climbed(tuner.estimator)) for _ in range(40)])
    noise = torch.randn(8, len(truth), generator=torch.Generator().manual_seed(1)).double()
    directions = torch.cat([truth[None], noise])
    error = (drawn - truth) @ directions.T  # [40, 9]
    return error.mean(0).abs() / (error.std(0) / 40**0.5)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_values_alone_give_the_gradient_of_whole_sequences(name, short):
    """Within 5.5 standard errors of 40 draws (t of 39: false alarm 2e-5 for all 9), KL included."""
    assert deviations(short(name)).max() < 5.5


def test_the_criterion_sees_the_bias_of_straight_through_gumbel(short):
    assert deviations(short("st_gumbel"))[0] > 10


def test_leave_one_out_has_less_spread_than_no_baseline(short):
    def total_variance(estimator):
        tuner = short("rloo")
        draws = [flat_gradient(tuner, tuner.climbed(estimator)) for _ in range(30)]
        return torch.stack(draws).var(0).sum()

    leave_one_out = Settings("rloo").build_estimator()
    assert total_variance(leave_one_out) < 0.5 * total_variance(make_estimator("reinforce"))


def test_no_value_is_above_the_optimum(short):
    """β log E exp(r/β) by sampling against its sum, and above the value of another model."""
    tuner = short("rloo")
    beta = tuner.settings.kl
    one_hot, start = everything(tuner, tuner.start)
    best = beta * (start * (tuner.reward(one_hot) / beta).exp()).sum().log()
    assert tuner.optimum() == pytest.approx(best.item(), abs=0.01)
    assert value_of_all(tuner) < best
    assert tuner.climbed(tuner.estimator).item() == pytest.approx(
        value_of_all(tuner).item(), abs=0.05
    )


@pytest.fixture
def briefly_fitted(monkeypatch):
    monkeypatch.setattr(reward_tuning, "PRETRAINING", 200)
    reward_tuning.pretrained.cache_clear()
    yield
    reward_tuning.pretrained.cache_clear()


@pytest.mark.usefixtures("briefly_fitted")
@pytest.mark.parametrize("name", ["st_gumbel", "rloo"])
def test_it_learns(name):
    """30 updates from a briefly fitted start: the rule's reward as well as the classifier's."""
    rows = train(Settings(name, steps=30), 30)[1]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["rule"] > rows[0]["rule"] + 0.2
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.2
    assert rows[-1]["kl"] > 0.1


@pytest.mark.usefixtures("briefly_fitted")
def test_the_command_tunes_and_draws(tmp_path, capsys):
    main(["--steps", "4", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("st_gumbel: value ")
    assert printed[1].strip().startswith("(no model has a value above 0.")
    assert len(printed) == 6
    assert (tmp_path / "reward_tuning.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "exact"], "exact draws all tokens at once"),
        (["--estimator", "reinfroce"], "did you mean 'reinforce'"),
        (["--estimator", "rloo", "--temperature", "1"], "unknown setting of estimator 'rloo'"),
        (["--kl", "0"], "kl must be > 0 and finite, got 0"),
        (["--labelled", "-1"], "labelled must be > 0"),
    ],
)
def test_bad_input_ends_in_one_message(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
