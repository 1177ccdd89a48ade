"""The discrete VAE learns with every estimator, and is evaluated as its table says."""

import pytest
import torch
from gumbelrl.examples import discrete_vae as vae
from gumbelrl.examples.discrete_vae import DiscreteVAE, Settings, evaluate, train
from gumbelrl.gumbel import ESTIMATORS, FactoredCategorical
from matplotlib.image import imread
from torch.distributions import Binomial

pytest.importorskip("sklearn")


def quiet(*_):
    """Show nothing."""


@pytest.fixture(scope="module")
def images():
    return vae.load_images()


@pytest.fixture(scope="module")
def independent_pixels(images):
    """−log p of test images when each pixel keeps its training mean, whatever the others are."""
    mean = (images["train"].mean(0) / 16).clamp(1e-3, 1 - 1e-3)
    return -Binomial(16, mean).log_prob(images["test"]).sum(-1).mean().item()


def small(seed=0):
    """A model whose nine codes can be enumerated, with a posterior that is not uniform."""
    torch.manual_seed(seed)
    model = DiscreteVAE(2, 3, 16)
    with torch.no_grad():
        model.encoder[-1].weight.mul_(20)
    return model


def enumerated(model, x):
    """log p(x|D) and log q(D|x) of all nine codes, [9, B] each."""
    q = model.posterior(x)
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None].expand(9, len(x), 2)
    return model.log_likelihood(q.one_hot(codes), x), q.log_prob(codes)


def test_the_command_trains_and_draws(tmp_path, capsys):
    vae.main(["--epochs", "2", "--out", str(tmp_path), "--wandb", "offline"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {
        row[0]: [float(cell) for cell in row[1:]] for row in rows if row[0] in ("train", "test")
    }
    for total, reconstruction, kl in scores.values():
        assert total == pytest.approx(reconstruction + kl, abs=0.02)
    picture = imread(tmp_path / "discrete_vae_st_gumbel.png")
    assert picture.shape[:2] == (360, 1080)
    assert picture[..., 0].std() > 0.1  # there is something on it
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_the_likelihood_is_binomial(images):
    model, x = small(), images["test"][:5]
    one_hot = torch.randn(3, 5, 6).softmax(-1)
    expected = Binomial(16, logits=model.decoder(one_hot)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_likelihood(one_hot, x), expected)


def test_the_evaluation_is_the_elbo_of_discrete_codes(images):
    model, x = small(), images["test"]
    with torch.no_grad():
        fit, log_q = enumerated(model, x)
        mean = (log_q.exp() * fit).sum(0)
        elbo = mean - (log_q.exp() * (log_q + torch.tensor(9.0).log())).sum(0)
        log_p = fit.logsumexp(0) - torch.tensor(9.0).log()
        # Of the mean over 300 images of 256 samples each.
        error = (log_q.exp() * (fit - mean).square()).sum(0).sum().sqrt() / 300 / 256**0.5
    found = evaluate(model, x, n_samples=256)["negative_elbo"]
    assert abs(found + elbo.mean().item()) < 5 * error  # false alarm 6e-7
    assert error > 1e-3
    assert (elbo <= log_p + 1e-3).all()


def test_the_evaluation_asks_neither_the_estimator_nor_the_clock(images):
    model = small()
    torch.manual_seed(1)
    first = evaluate(model, images["test"])
    torch.manual_seed(2)
    assert evaluate(model, images["test"]) == first


@pytest.mark.parametrize("name", [*ESTIMATORS, "softmax"])
def test_every_estimator_trains_encoder_and_decoder(images, name):
    settings = Settings(name, factors=2, categories=3, epochs=1, hidden=16)
    model, _ = train(settings, images["train"][:200], quiet)
    torch.manual_seed(settings.seed)
    start = DiscreteVAE(2, 3, 16)
    for part in ("encoder", "decoder"):
        for now, before in zip(
            getattr(model, part).parameters(), getattr(start, part).parameters(), strict=True
        ):
            assert now.isfinite().all()
            assert not torch.equal(now, before)


@pytest.mark.parametrize("name", ["st_gumbel", "straight_through", "reinmax", "rloo"])
def test_training_beats_no_training_and_independent_pixels(images, independent_pixels, name):
    settings = Settings(name, epochs=10)
    model, seconds = train(settings, images["train"], quiet)
    torch.manual_seed(0)
    untrained = evaluate(DiscreteVAE(8, 4, 256), images["test"])["negative_elbo"]
    trained = evaluate(model, images["test"])["negative_elbo"]
    assert trained < 0.8 * independent_pixels < independent_pixels < untrained
    assert seconds > 0


def test_a_seed_decides_everything(images):
    settings = Settings(epochs=1, hidden=16)
    first, second = (train(settings, images["train"], quiet)[0] for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_decoder_of_probabilities_cannot_read_one_hots(images, independent_pixels):
    model, _ = train(Settings("softmax", epochs=15), images["train"], quiet)
    with torch.no_grad():
        q = model.posterior(images["test"])
        seen = model.kl(q) - model.log_likelihood(q.probs, images["test"])
    assert seen.mean() < 0.8 * independent_pixels
    assert evaluate(model, images["test"])["negative_elbo"] > independent_pixels


def test_a_uniform_posterior_costs_nothing():
    model = small()
    assert model.kl(model.prior(4)).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    sure = FactoredCategorical(torch.tensor([[99.0, 0, 0, 99.0, 0, 0]]), (3, 3))
    assert model.kl(sure).item() == pytest.approx(2 * torch.tensor(3.0).log().item())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--estimator", "st_gumble"], "did you mean 'st_gumbel'"),
        (["--estimator", "sofmax"], "did you mean 'softmax'"),
        (["--estimator", "rloo", "--temperature", "1"], "unknown setting of estimator 'rloo'"),
        (["--temperature", "0"], "temperature must be a finite number > 0, got 0.0"),
        (["--estimator", "softmax", "--temperature", "-1"], "temperature must be"),
        (["--estimator", "exact"], "65536 joint actions"),
        (["--latents", "8by4"], "such as 8x4, got 8by4"),
        (["--latents", "0x4"], "such as 8x4, got 0x4"),
        (["--epochs", "0"], "--epochs must be >= 1"),
    ],
)
def test_bad_input_ends_in_one_message(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        vae.main([*arguments, "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        vae.main(["--out", str(tmp_path / "file" / "folder")])
    assert "give --out FOLDER" in capsys.readouterr().err
