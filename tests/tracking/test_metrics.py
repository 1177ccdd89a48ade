import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gumbelrl.tracking import JsonlWriter, cut_metrics, read_metrics
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Figure, Logger


def test_rows_come_back_and_every_line_is_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = Logger(None, [JsonlWriter(path)])
    logger.record("train/loss", np.float32(0.1))
    logger.record("train/alpha", torch.tensor(0.25, requires_grad=True))
    logger.record("train/q", math.nan)
    logger.record("train/up", math.inf)
    logger.record("train/down", torch.tensor(-math.inf))
    logger.record("train/list", np.array([1.0, math.nan]))
    logger.record("train/n", np.int64(3))
    logger.record("train/flag", np.bool_(True))
    logger.record("note", "τ")
    logger.record("figure", Figure(None, close=False))
    logger.record("hidden", 1.0, exclude="json")
    logger.record("shown", 1.0, exclude="tensorboard")
    logger.dump(4000)
    logger.dump(8000)
    logger.close()
    logger.close()

    def reject(constant: str) -> None:
        raise AssertionError(constant)  # NaN and Infinity are not JSON

    lines = path.read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=reject)
    first, second = read_metrics(path)
    assert second == {"env_steps": 8000}
    assert math.isnan(first.pop("train/q"))
    one, nan = first.pop("train/list")
    assert one == 1.0
    assert math.isnan(nan)
    assert first == {
        "env_steps": 4000,
        "train/loss": float(np.float32(0.1)),
        "train/alpha": 0.25,
        "train/up": math.inf,
        "train/down": -math.inf,
        "train/n": 3,
        "train/flag": True,
        "note": "τ",
        "shown": 1.0,
    }


def test_a_row_is_in_the_file_before_the_next_begins(tmp_path):
    writer = JsonlWriter(tmp_path / "m")
    for step in range(3):
        writer.write({"a": step}, {}, step)
        assert len(read_metrics(tmp_path / "m")) == step + 1  # nothing waits in a buffer


def test_a_line_cut_off_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "m"
    path.write_text('{"env_steps": 1}\n{"env_steps": 2, "a"')
    assert read_metrics(path) == [{"env_steps": 1}]
    writer = JsonlWriter(path, append=True)
    writer.write({}, {}, 3)
    assert read_metrics(path) == [{"env_steps": 1}, {"env_steps": 3}]
    writer.close()
    JsonlWriter(path).close()  # without append: anew
    assert read_metrics(path) == []


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m"
    path.write_text('{"env_steps": 1}\n{"env_st\n{"env_steps": 3}\n')
    with pytest.raises(ValueError, match="line 2 of"):
        read_metrics(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_warns_once_and_later_rows_stand(tmp_path, caplog):
    path = tmp_path / "m"
    writer = JsonlWriter(path)
    writer.write({"a": 1}, {}, 1)
    real = writer._file
    with open("/dev/full", "r+b", buffering=0) as writer._file:
        writer.write({"a": 2}, {}, 2)
        writer.write({"a": 3}, {}, 3)
    writer._file = real
    writer.write({"a": 4}, {}, 4)
    assert [row["a"] for row in read_metrics(path)] == [1, 4]
    assert writer.lost_rows == 2
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def test_a_row_written_in_part_is_taken_back(tmp_path):
    path = tmp_path / "m"
    writer = JsonlWriter(path)
    writer.write({"a": 1}, {}, 1)
    real = writer._file

    class Short:
        closed, truncate, seek = False, real.truncate, real.seek

        def write(self, line: bytes) -> int:
            return real.write(line[:5]) or 0

    writer._file = Short()  # type: ignore[assignment]
    writer.write({"a": 2}, {}, 2)
    writer._file = real
    assert path.read_text() == '{"env_steps": 1, "a": 1}\n'
    writer.write({"a": 3}, {}, 3)
    assert [row["a"] for row in read_metrics(path)] == [1, 3]


def test_the_same_run_twice_writes_the_same_but_for_times(tmp_path, envs):
    texts = []
    for name in "ab":
        agent = DQN(
            "MlpPolicy", envs(1, 0), seed=0, learning_starts=20, buffer_size=500,
            policy_kwargs={"net_arch": [8]}, device="cpu",
        )  # fmt: skip
        writer = JsonlWriter(tmp_path / name)
        agent.set_logger(Logger(None, [writer]))
        agent.learn(200, log_interval=1)
        writer.close()
        rows = read_metrics(tmp_path / name)
        assert any(key.startswith("time/") for row in rows for key in row)
        texts.append(
            json.dumps([{k: v for k, v in row.items() if k[:5] != "time/"} for row in rows])
        )
    assert texts[0] == texts[1]
    assert "rollout/ep_rew_mean" in texts[0]


def test_a_cut_keeps_the_rows_up_to_a_step_as_they_stand(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"env_steps": 100, "a": "NaN"}\n', '{"env_steps":  200}\n', '{"env_steps": 300}\n']
    path.write_text("".join(lines) + '{"env_steps": 40')
    cut_metrics(path, 200)
    assert path.read_text() == "".join(lines[:2])


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"env_steps": "many"}'])
def test_a_cut_names_a_damaged_line_and_changes_nothing(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"env_steps": 100}}\n{line}\n')
    before = path.read_text()
    with pytest.raises(ValueError, match=r"line 2 of .* is damaged"):
        cut_metrics(path, 0)
    assert path.read_text() == before
