"""One thread, no tracker, ordinary signals, and the tests' own modules importable."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "modules"))
torch.set_num_threads(1)
# Started under nohup or in a script's background, the suite and the runs it starts would ignore the
# signals that some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def modules_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command line sees modules of the working folder, and nothing stays behind."""
    from command_lines import FRAGILE_ENVS

    folder = tmp_path / "working"
    folder.mkdir()
    (folder / "fragile_envs.py").write_text(FRAGILE_ENVS)
    (folder / "broken_module.py").write_text("raise RuntimeError('not today')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("fragile_envs", None)
    gymnasium.registry.pop("Fragile-v0", None)


@pytest.fixture
def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the trackers are told at their end, first."""
    from gumbelrl.tracking import Trackers

    codes: list[int] = []
    monkeypatch.setattr(Trackers, "finish", lambda self, summary, code, **_: codes.append(code))
    return codes
