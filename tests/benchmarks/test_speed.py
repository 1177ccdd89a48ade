"""The table of updates per second: who is in it, and what it says of those who are not."""

import sys

import pytest
import torch

from benchmarks import speed
from benchmarks.sbx_peer import SBX, has_sbx

SBX_STUB = """
__version__ = "0"
class SAC:
    def __init__(self, policy, env, policy_kwargs, **settings):
        print("a library prints", policy_kwargs, settings)
    def learn(self, steps, **settings):
        if steps == 13:
            raise ValueError("no luck")
    def train(self, gradient_steps, batch_size):
        assert (gradient_steps, batch_size) == (1, 16)
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sizes of a second, no compiler, and results of its own."""
    monkeypatch.setattr(speed, "SECONDS", 0.001)
    monkeypatch.setattr(speed, "RANDOM_STEPS", 30)
    monkeypatch.setattr(speed, "WARM_UP", 2)
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "pin_to_one_core", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    speed.main()


def test_every_agent_stands_beside_sac(small, monkeypatch, capsys):
    run(monkeypatch, "--rounds", "2", "--width", "8", "--batch", "16")
    rows = capsys.readouterr().out.splitlines()[1 : 1 + len(speed.LABELS)]
    for label, row in zip(speed.LABELS, rows, strict=True):
        assert row.startswith(f"    8    16 {label} ")
        if label == "SBX SAC":
            assert row.endswith("not measured: give --sbx-python")
            continue
        numbers = row.removeprefix(f"    8    16 {label}").replace(" to ", " ").split()
        _, updates, slowest, quickest, _, steps, *_ = map(float, numbers)
        assert 0 < slowest <= updates <= quickest
        assert steps > 0
    assert rows[0].split()[-1] == "1.00"
    assert not list(small.iterdir())  # a part of the table does not replace the whole


def test_without_a_compiler_the_others_are_measured(small, monkeypatch, capsys):
    def broken(function, **_):
        def fail(*_, **__):
            raise RuntimeError("No working C++ compiler found\nmuch more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    run(monkeypatch, "--rounds", "1", "--width", "8", "--batch", "16")
    rows = capsys.readouterr().out.splitlines()
    (lean,) = (row for row in rows if "LeanRL-style" in row)
    assert lean.endswith("not measured: No working C++ compiler found")
    assert sum("not measured" in row for row in rows) == 2


def test_an_sbx_that_fails_does_not_end_the_run(small, monkeypatch):
    class Broken:
        def make(self, *_):
            raise RuntimeError("no luck")

    rows = speed.compare(8, 16, 1, Broken())
    assert rows[speed.LABELS.index("SBX SAC")].endswith(" not measured: no luck")
    assert sum("not measured" in row for row in rows) == 1


def test_columns_by_hand():
    text = speed.columns([100.0, 300.0, 80.0], [50.0, 100.0, 160.0])
    assert text.split() == ["100", "80.0", "to", "300", "2.00"]  # of 2, 3 and 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--batch", "256", "--batch", "-1"], "--batch must be >= 1"),
        (["--sbx-python", "/nowhere/python"], "is no interpreter that has sbx"),
    ],
)
def test_bad_options_end_in_a_message(arguments, message, small, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_sbx_answers_from_another_interpreter(tmp_path, monkeypatch):
    (tmp_path / "sbx.py").write_text(SBX_STUB)
    (tmp_path / "jax.py").write_text("__version__ = '1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert has_sbx(sys.executable)
    sbx = SBX(sys.executable, {})
    assert sbx.versions == "sbx 0, jax 1"
    assert sbx.make({"batch_size": 16}, width=8, warm_up=4) >= 0
    assert sbx.seconds(16, "update", 3) >= 0
    assert sbx.seconds(16, "step", 3) >= 0
    with pytest.raises(RuntimeError, match="ValueError: no luck"):
        sbx.seconds(16, "step", 13)
