"""Whatever a tracker does, training does not notice, and the end says what is missing."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from gumbelrl.tracking import BackgroundWriter, JsonlWriter, read_metrics
from stable_baselines3.common.logger import KVWriter, Logger


class Output(KVWriter):
    """Remembers its rows; raises, exits or hangs at the row or the call it is told to."""

    def __init__(self, error_at: int = -1, hang_at: int = -1, close: str = "") -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.error_at, self.hang_at, self.at_close = error_at, hang_at, close
        self.error: BaseException = ConnectionError("the server went away")
        self.release = threading.Event()
        self.closed = 0

    def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
        if len(self.rows) == self.error_at:
            raise self.error
        if len(self.rows) == self.hang_at:
            self.release.wait()
        self.rows.append((step, key_values))

    def close(self) -> None:
        self.closed += 1
        if self.at_close == "error":
            raise self.error
        if self.at_close == "hang":
            self.release.wait()


def training(tmp_path: Any, writer: BackgroundWriter, rows: int = 100, pause: float = 0) -> float:
    """Log rows as a run does, check that they all stand, and return the seconds it took."""
    began = time.monotonic()
    logger = Logger(None, [JsonlWriter(tmp_path / "m"), writer])
    for step in range(rows):
        logger.record("a", step)
        logger.dump(step)
        time.sleep(pause)
    logger.close()
    assert [row["a"] for row in read_metrics(tmp_path / "m")] == list(range(rows))
    return time.monotonic() - began


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("gumbelrl")]


def test_rows_arrive_in_order_and_as_they_were(tmp_path):
    output = Output()
    writer = BackgroundWriter("T", lambda: output)
    tensor, array = torch.zeros(2), np.zeros(2)
    writer.write({"tensor": tensor, "array": array}, {}, 0)
    tensor += 1
    array += 1
    for step in range(1, 50):
        writer.write({"a": step}, {"a": ("x",)}, step)
    writer.close()
    writer.close()
    writer.write({"late": 1}, {}, 99)
    assert [step for step, _ in output.rows] == list(range(50))
    assert not output.rows[0][1]["tensor"].any()
    assert not output.rows[0][1]["array"].any()
    assert (output.closed, writer.failure, writer.unsent_rows) == (1, None, 0)


@pytest.mark.parametrize("error", [ConnectionError("gone"), SystemExit(1), KeyboardInterrupt()])
def test_a_tracker_that_raises_is_left_out_with_one_warning(error, tmp_path, caplog):
    output = Output(error_at=3)
    output.error = error
    writer = BackgroundWriter("T", lambda: output)
    training(tmp_path, writer, rows=50, pause=0.001)
    assert len(output.rows) == 3
    assert output.closed == 1  # what was written ends well
    assert (writer.rows, writer.unsent_rows) == (50, 47)
    (warning,) = told(caplog)
    assert "T failed and is left out" in warning
    assert str(error) in warning


def test_a_tracker_that_cannot_be_opened_gets_nothing(tmp_path, caplog):
    def open_output() -> KVWriter:
        raise OSError("no such place")

    writer = BackgroundWriter("T", open_output)
    training(tmp_path, writer)
    assert writer.unsent_rows == 100
    assert "no such place" in (writer.failure or "")
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_tracker_that_hangs_costs_at_most_the_bounded_time(where, tmp_path, caplog):
    output = Output(hang_at=5 if where == "write" else -1, close="hang" if where == "close" else "")

    def open_output() -> KVWriter:
        if where == "open":
            output.release.wait()
        return output

    writer = BackgroundWriter("T", open_output, finish_timeout=0.3)
    assert training(tmp_path, writer) < 2.0
    assert writer.unsent_rows == {"open": 100, "write": 95, "close": 0}[where]
    (warning,) = told(caplog)
    assert "did not finish within 0.3 s" in warning
    output.release.set()


def test_a_second_one_that_hangs_has_had_the_same_time(tmp_path):
    deadline = time.monotonic() - 0.1  # the first one has used it up
    output = Output(close="hang")
    writer = BackgroundWriter("T", lambda: output, finish_timeout=0.3)
    writer.end()
    writer.wait(deadline)
    assert writer.failure == "it did not finish within 0.3 s"
    output.release.set()


def test_a_call_that_does_not_return_is_noticed_during_training(tmp_path, caplog):
    output = Output(hang_at=0)
    writer = BackgroundWriter("T", lambda: output, stall_timeout=0.05, finish_timeout=30.0)
    assert training(tmp_path, writer, pause=0.002) < 5.0  # the end does not wait for it again
    assert "has not returned for 0.05 s" in told(caplog)[0]
    output.release.set()


def test_a_full_queue_is_no_tracker(tmp_path, caplog):
    output = Output(hang_at=0)
    writer = BackgroundWriter("T", lambda: output, queue_rows=20)
    assert training(tmp_path, writer) < 2.0
    assert "20 rows wait" in told(caplog)[0]
    assert writer.unsent_rows == 100
    output.release.set()


def test_an_error_at_the_end_is_told(tmp_path, caplog):
    writer = BackgroundWriter("T", lambda: Output(close="error"))
    training(tmp_path, writer)
    assert (writer.unsent_rows, len(told(caplog))) == (0, 1)
    assert "went away" in (writer.failure or "")
