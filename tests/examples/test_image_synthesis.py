"""What is set by hand is what is drawn, and the number that says so means it."""

import pytest
from gumbelrl.examples import image_synthesis as synthesis
from gumbelrl.examples.image_synthesis import Digits, all_with, control, sweep, train
from matplotlib.image import imread

pytest.importorskip("sklearn")


def quiet(*_):
    """Show nothing."""


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def model(digits):
    return train(digits, "st_gumbel", 20, 0, quiet)


def test_the_command_draws_what_was_set(tmp_path, capsys):
    chosen = ["--set", "digit=7", "--set", "style2=1"]
    synthesis.main([*chosen, "--epochs", "1", "--out", str(tmp_path)])
    assert "1,000 images" in capsys.readouterr().out
    picture = imread(tmp_path / "image_synthesis_digit=7_style2=1.png")
    assert picture.shape[:2] == (240, 240)  # 4 x 4 images
    assert picture[..., 0].std() > 0.05


def test_the_command_draws_the_grid(tmp_path):
    synthesis.main(["--epochs", "1", "--out", str(tmp_path)])
    assert imread(tmp_path / "image_synthesis_grid.png").shape[:2] == (660, 792)


def test_a_digit_that_is_set_is_drawn(model, digits):
    numbers = control(model, digits)
    assert numbers["judge"] > 0.97
    assert numbers["agreement"] > 0.8  # 0.1 by chance
    assert numbers["spread"] > 0.4  # and not ten pictures


def test_the_labels_name_the_categories(digits, monkeypatch):
    monkeypatch.setattr(digits, "labels", (digits.labels + 3) % 10)
    shifted = train(digits, "st_gumbel", 20, 0, quiet)
    assert control(shifted, digits)["agreement"] < 0.2
    codes = all_with({"style1": 0, "style2": 0}).view(-1, 4)
    read = digits.judge(shifted.images(codes))
    assert ((read + 3) % 10 == codes[:, 0]).double().mean() > 0.7


def test_styles_change_the_image_and_keep_the_digit(model, digits):
    codes = sweep()
    images = model.images(codes)
    for m in range(3):
        block = images[:, 4 * m : 4 * m + 4]
        assert block.std(1).mean() > 0.3  # dots of 16; digits differ by about 4
    kept = digits.judge(images.view(-1, 64)) == codes[..., 0].flatten()
    assert kept.double().mean() > 0.8


def test_the_sets_are_complete():
    codes = sweep()
    assert codes.shape == (10, 12, 4)
    assert (codes[..., 1:] > 0).sum(-1).max() == 1  # one style factor at a time
    for fixed, shape in (
        ({}, (10, 64)),
        ({"digit": 7}, (4, 16)),
        ({"digit": 7, "style2": 1}, (4, 4)),
    ):
        codes = all_with(fixed)
        assert codes.shape == (*shape, 4)
        assert len(codes.view(-1, 4).unique(dim=0)) == shape[0] * shape[1]
        for name, value in fixed.items():
            assert (codes[..., ["digit", "style1", "style2", "style3"].index(name)] == value).all()
    one = all_with({"digit": 1, "style1": 2, "style2": 3, "style3": 0})
    assert one.tolist() == [[[1, 2, 3, 0]]]


def test_the_judge_and_the_model_share_no_test_image(digits):
    seen = {tuple(row) for row in digits.train.tolist()}
    assert not any(tuple(row) in seen for row in digits.test.tolist())
    assert digits.labels.bincount().tolist() == [10] * 10
    assert len(digits.unlabelled) + len(digits.labelled) == len(digits.train)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "digt=7"], "did you mean 'digit'"),
        (["--set", "digit=10"], "digit must be 0 to 9, got '10'"),
        (["--set", "style1"], "style1 must be 0 to 3, got ''"),
        (["--estimator", "st_gumble"], "did you mean 'st_gumbel'"),
        (["--epochs", "0"], "--epochs must be >= 1"),
    ],
)
def test_bad_input_ends_in_one_message(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        synthesis.main([*arguments, "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
