"""The grammar, what is measured against it, and a GAN that learns it."""

import itertools
import math
import runpy

import pytest
import torch
from gumbelrl.examples import grammar_text, text_runs
from gumbelrl.examples.grammar_text import (
    TOKENS,
    K,
    Settings,
    T,
    TextGan,
    decode,
    encode,
    language,
    main,
    parses,
    train,
)
from torch import nn


@pytest.mark.parametrize("sentence", ["x", "x+x", "x-x*x", "x/x/x/x/x/x"])
def test_sentences_of_the_grammar_parse(sentence):
    assert parses(sentence)


@pytest.mark.parametrize("wrong", ["", "+", "xx", "x+", "+x", "x++x", "x x", "x+x ", "x+x x", "y"])
def test_others_do_not(wrong):
    assert not parses(wrong)


def test_the_language_is_all_that_parses():
    """Parser against list, on every string of up to 5 tokens; the list has Σ 4^n sentences."""
    sentences = language()
    assert len(sentences) == sum(4**n for n in range(6)) == 1365
    assert sum(sentences.values()) == pytest.approx(1)
    assert all(parses(sentence) for sentence in sentences)
    short = {"".join(s) for n in range(6) for s in itertools.product(TOKENS, repeat=n)}
    assert {s for s in short if parses(s)} == {s for s in sentences if len(s) <= 5}
    of_two = sum(p for s, p in sentences.items() if s.count("x") == 2)
    assert of_two == pytest.approx(1 / 6)


def test_one_hots_and_back():
    sentences = ["x", "x+x*x", "x/x-x/x-x/x"]
    one_hot = encode(sentences)
    assert one_hot.shape == (3, T * K)
    assert decode(one_hot.unflatten(-1, (T, K)).argmax(-1)) == sentences


class Fixed(nn.Module):
    """A generator that knows the data: noise decides on the number of leaves alone."""

    def __init__(self, leaves: int | None = None) -> None:
        super().__init__()
        self.leaves = leaves

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        share = torch.special.ndtr(z[:, 0])
        leaves = (6 * share).long() + 1 if self.leaves is None else torch.full((len(z),), 1)
        place = torch.arange(T)
        allowed = torch.zeros(len(z), T, K, dtype=torch.bool)
        inside = place < (2 * leaves - 1)[:, None]
        allowed[..., 0] = inside & (place % 2 == 0)
        allowed[..., 1:5] = (inside & (place % 2 == 1))[..., None]
        allowed[..., 5] = ~inside
        return torch.where(allowed, 0.0, -60.0).flatten(1)


def test_a_generator_that_is_the_data_measures_so():
    """Its 5,000 z scatter the six shares by 0.005 each."""
    gan = TextGan(Settings())
    gan.generator = Fixed()
    row = gan.measure()
    assert row["valid"] == 1.0
    assert row["distance"] < 0.03
    assert row["entropy"] == pytest.approx(math.log(6) + 2.5 * math.log(4), abs=0.05)


def test_a_collapsed_generator_measures_so():
    gan = TextGan(Settings())
    gan.generator = Fixed(leaves=1)
    row = gan.measure()
    assert (row["valid"], row["distinct"]) == (1.0, 1)
    assert row["entropy"] == pytest.approx(0, abs=1e-5)
    assert row["distance"] == pytest.approx(1 - 1 / 6, abs=1e-5)


def test_what_does_not_parse_is_distance():
    """Before training next to nothing does: two distributions that do not overlap are 1 apart."""
    row = TextGan(Settings()).measure()
    assert row["valid"] < 0.001
    assert row["distance"] == pytest.approx(1, abs=0.001)


def test_r1_flattens_the_discriminator():
    """Same seed, 40 updates: the squared slope at the data under a weight of 10 and of next to
    nothing."""

    def slope(r1):
        gan = TextGan(Settings(r1=r1, batch_size=32))
        for _ in range(40):
            gan.update()
        data = gan.sentences[:100].requires_grad_()
        (slopes,) = torch.autograd.grad(gan.discriminator(data).sum(), data)
        return slopes.square().sum(-1).mean()

    assert slope(10.0) < 0.1 * slope(1e-6)


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [("st_gumbel", 300, 0.2), ("rloo", 300, 0.2), ("likelihood", 100, 0.4)],
)
def test_it_learns(name, steps, least):
    """Uniform tokens parse once in 1.6 million: 6^12/1365."""
    rows = train(Settings(name, steps=steps), steps)[1]
    assert rows[0]["valid"] < 0.001
    assert rows[-1]["valid"] > least
    assert rows[-1]["distinct"] > 100


class Recorder:
    """In the place of a W&B run."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, row, excluded, step):
        self.rows.append((step, row))

    def close(self):
        self.closed = True


def test_the_command_trains_tracks_and_draws(tmp_path, capsys, monkeypatch):
    trackers = {}

    def start(choice, settings, folder, config):
        assert (choice.mode, config["steps"], folder) == ("offline", 3, tmp_path / "new")
        return trackers.setdefault(settings.name, Recorder())

    monkeypatch.setattr(text_runs, "WandbTracker", start)
    names = ["st_gumbel", "likelihood"]
    options = ["--steps", "3", "--out", str(tmp_path / "new"), "--wandb", "offline"]
    main(["--estimator", *names, *options])
    printed = capsys.readouterr().out
    heads = [line.split(":")[0] for line in printed.splitlines() if line[0] not in " W"]
    assert heads == [*names, "picture"]
    picture = tmp_path / "new" / "grammar_text.png"
    assert str(picture) in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in names:
        assert trackers[name].closed
        assert [step for step, _ in trackers[name].rows] == [0, 1, 2, 3]
        assert trackers[name].rows[-1][1]["valid"] <= 1


def test_the_file_is_a_script(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ["--estimator", "rloo", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["grammar_text.py", *options])
    runpy.run_path(grammar_text.__file__, run_name="__main__")
    assert (out / "grammar_text.png").exists()


def test_the_same_seed_gives_the_same_curve():
    rows = [train(Settings("reinforce", steps=5, seed=3), 5)[1][-1] for _ in range(2)]
    assert rows[0]["distance"] == rows[1]["distance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "st_gumble"], "did you mean 'st_gumbel'"),
        (["--steps", "0"], "steps must be > 0 and finite, got 0"),
        (["--learning-rate", "nan"], "learning_rate must be > 0 and finite, got nan"),
        (["--estimator", "rloo", "--temperature", "1"], "unknown setting of estimator 'rloo'"),
        (["--temperature", "0"], "temperature must be"),
        (["--estimator", "likelihood", "--temperature", "1"], "likelihood has no temperature"),
        (["--seed", "-1"], "seed must be from 0 to 2147483647, got -1"),
        (["--estimator", "exact", "--steps", "1"], "take local_expectation"),
        (["--out", "/dev/null/here", "--steps", "1"], "give --out FOLDER"),
    ],
)
def test_bad_input_ends_in_one_message(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path, capsys, monkeypatch):
    def full(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_runs, "TemporaryFile", full)
    with pytest.raises(SystemExit) as stop:
        main(["--steps", "1", "--out", str(tmp_path)])
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert "No space left on device; give --out FOLDER" in told.err
    assert told.out == ""


def test_ctrl_c_ends_in_one_line_and_closes_the_tracker(tmp_path, capsys, monkeypatch):
    tracker = Recorder()

    def update(gan):
        raise KeyboardInterrupt

    monkeypatch.setattr(text_runs, "WandbTracker", lambda *given: tracker)
    monkeypatch.setattr(TextGan, "update", update)
    with pytest.raises(SystemExit) as stop:
        main(["--steps", "1", "--out", str(tmp_path), "--wandb", "offline"])
    assert stop.value.code == 130
    assert "interrupted, no picture is drawn" in capsys.readouterr().err
    assert tracker.closed
    assert list(tmp_path.iterdir()) == []
