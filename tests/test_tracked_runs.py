"""Whole runs with trackers behind them: nothing is lost, nothing is told that should not be."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import QUICK, SAC, rows_without_times, run, summary_of, tensors
from gumbelrl import evaluate, train
from gumbelrl.tracking import RunFolder, read_metrics
from gumbelrl.tracking.trackers import config_digest
from stable_baselines3.common.logger import KVWriter
from wandb_files import inspect
from wandb_server import serving

KEY = "k" * 36 + "SECR"
SECRETS = {"key": KEY, "netrc": "n" * 36 + "SECR", "FOO_TOKEN": "foo-token-SECRET"}
REMOTE_TOKEN = "ghp_remote-token-SECRET"
QUICKEST = ["agent=reinforce", "agent.policy_kwargs.net_arch=[16]"]
ONLINE = [*QUICKEST, "tracking.mode=online", "tracking.start_timeout=20"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Secrets to keep, and W&B as in a process of its own, which asks for its server once."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("FOO_TOKEN", SECRETS["FOO_TOKEN"])
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {SECRETS['netrc']}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a token in its remote's address, and a change that is not committed."""
    folder = tmp_path / "checkout"
    folder.mkdir()

    def git(*arguments: str) -> None:
        command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("remote", "add", "origin", f"https://{REMOTE_TOKEN}:x@example.org/a/b.git")
    (folder / "train.py").write_text("gamma = 0.9\n")
    git("add", "train.py")
    git("commit", "-qm", "one")
    (folder / "train.py").write_text("gamma = 0.99\n")
    monkeypatch.setattr("gumbelrl.tracking.wandb_tracker.source_checkout", lambda: folder)
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics in a `.wandb` file: pictures and the table stand in rows of their own."""
    found = [r["history"]["item"] for r in inspect(path) if r["type"] == "history"]
    rows = [{k: v for k, v in row.items() if k[0] != "_"} for row in found]
    beside = ("histograms/", "eval/episodes_table", "eval/video")
    return [row for row in rows if not any(key.startswith(beside) for key in row)]


def check_secrets(folder: Path, *texts: str) -> None:
    """Every byte of the run folder, names included, and what was printed."""
    for secret in (*SECRETS.values(), REMOTE_TOKEN):
        for text in texts:
            assert secret not in text
        for path in folder.rglob("*"):
            assert secret not in str(path)
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def readable(path: Path) -> str:
    """As commands name it: from the working folder, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def test_an_offline_run_holds_everything_but_secrets(tmp_path, checkout, capfd):
    code, folder = run(
        tmp_path,
        *SAC,
        "tracking.mode=offline",
        "tracking.histograms_every=2",
        "tracking.tensorboard=true",
        "tracking.csv=true",
        "tracking.notes=why",
    )
    printed = capfd.readouterr()
    assert code == 0
    (segment,) = (folder / "wandb").glob("offline-run-*")
    assert f"wandb sync {readable(segment)}" in printed.out.replace("\n", "")
    check_secrets(folder, *printed)

    metrics = read_metrics(folder / "metrics.jsonl")
    assert rows_of(segment) == metrics
    assert len((folder / "metrics.csv").read_text().splitlines()) == len(metrics) + 1
    assert list((folder / "tensorboard").iterdir())

    records = inspect(segment)
    (described,) = [r["run"] for r in records if r["type"] == "run"]
    config = described["config"]["update"]
    assert config["agent"]["name"] == "gumbel_sac"
    assert config["agent"]["gamma"] == 0.99
    assert {"torch", "wandb"} <= set(config["versions"])
    assert config["machine"]["cpus"] >= 1
    stored = RunFolder(folder).read_config()
    assert config["config_digest"] == config_digest(stored)
    assert described["git"]["remote_url"] == "https://example.org/a/b.git"
    assert len(described["git"]["commit"]) == 40
    assert described["run_group"] == folder.name
    assert "+gamma = 0.99" in (segment / "files" / "diff.patch").read_text()

    kept = {
        m["name"]: m["summary"]
        for m in (r["metric"] for r in records if "metric" in r)
        if "summary" in m
    }
    assert kept == {"eval/return_mean": {"last": True, "max": True}}
    pictures = [r["history"]["item"] for r in records if r["type"] == "history"]
    drawn = [row for row in pictures if "histograms/logits._type" in row]
    assert [row["env_steps"] for row in drawn] == [200, 400, 600]
    assert all("histograms/gradient_norm.bins" in row for row in drawn)

    (table,) = (segment / "files" / "media" / "table" / "eval").glob("*.json")
    episodes = json.loads(table.read_text())
    assert episodes["columns"] == ["env_steps", "seed", "return", "length"]
    evaluations = read_metrics(folder / "evaluations.jsonl")
    assert len(episodes["data"]) == sum(len(e["returns"]) for e in evaluations) == 35
    assert sum(row[2] for row in episodes["data"][-5:]) / 5 == metrics[-1]["eval/return_mean"]

    models = [
        r["artifact"] for r in records if "artifact" in r and r["artifact"]["type"] == "model"
    ]
    aliases = [alias for model in models for alias in model["aliases"]]
    assert {"best", "latest", "step-600"} <= set(aliases)
    last = json.loads(models[-1]["metadata"])
    assert (last["env_steps"], last["config_digest"]) == (600, config["config_digest"])
    assert last["eval_return_mean"] == summary_of(folder)["eval"]["return_mean"]
    files = [file["path"] for model in models for file in model["manifest"]["contents"]]
    assert set(files) == {"agent.zip"}  # what predicts; no replay


@pytest.mark.parametrize("trouble", ["refuses", "hangs"])
def test_a_server_that_is_no_help_at_the_start(trouble, tmp_path, capfd, caplog, monkeypatch):
    with serving(hangs=trouble == "hangs") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        if trouble == "refuses":
            server.drop()
        began = time.monotonic()
        code, folder = run(tmp_path, *ONLINE, "tracking.start_timeout=1")
        seconds = time.monotonic() - began
    printed = capfd.readouterr()
    assert code == 0
    assert seconds < summary_of(folder)["train_seconds"] + 30
    metrics = read_metrics(folder / "metrics.jsonl")
    assert metrics[-1]["env_steps"] >= 600
    (segment,) = (folder / "wandb").glob("*run-*")
    assert rows_of(segment) == metrics
    assert "could not start online" in caplog.text
    assert "wandb sync" in printed.out
    check_secrets(folder, *printed, caplog.text)


def test_a_server_that_drops_in_mid_run(tmp_path, capfd, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)

        def drop_at_400(self: Any) -> bool:
            if self.num_timesteps == 400:
                server.started.wait(20)
                server.drop()
            return True

        monkeypatch.setattr("gumbelrl.tracking.ProgressCallback._on_step", drop_at_400)
        code, folder = run(tmp_path, *ONLINE, "tracking.finish_timeout=3")
        ended = time.monotonic()
    printed = capfd.readouterr()
    assert code == 0
    metrics = read_metrics(folder / "metrics.jsonl")
    (segment,) = (folder / "wandb").glob("run-*")
    while rows_of(segment) != metrics and time.monotonic() < ended + 20:
        time.sleep(0.5)  # W&B's service ends the file when it may
    assert rows_of(segment) == metrics
    assert "its server does not answer" in printed.out
    assert f"wandb sync --include-online {readable(segment)}" in printed.out.replace("\n", "")
    with serving() as another:
        environ = {**os.environ, "WANDB_BASE_URL": another.url}
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(segment)]
        subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60)
        ((_, sent),) = another.rows.items()
    name = "eval/return_mean"
    assert [r[name] for r in sent if name in r] == [r[name] for r in metrics if name in r]
    check_secrets(folder, *printed)


def test_an_online_run_goes_on_under_its_id_and_sends_no_row_twice(tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        # Stopped at 500 steps: the last checkpoint is of 400, and rows of 500 are sent already.
        stop = {"at": 500}

        def interrupt(self: Any) -> bool:
            if self.num_timesteps == stop["at"]:
                raise KeyboardInterrupt
            return True

        monkeypatch.setattr("gumbelrl.tracking.ProgressCallback._on_step", interrupt)
        code, folder = run(tmp_path, *ONLINE, "tracking.histograms_every=2")
        assert code == 130
        stop["at"] = -1
        assert train.main([f"resume={folder}"]) == 0
        first_end = summary_of(folder)["env_steps"]
        assert train.main([f"resume={folder}", "total_steps=900"]) == 0
        ((run_id, rows),) = server.rows.items()
        assert server.runs[run_id]["groupName"] == folder.name
        aliases = [{a["alias"] for a in artifact["aliases"]} for artifact in server.artifacts]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    kept = read_metrics(folder / "metrics.jsonl")
    for name in ("train/n_updates", "eval/return_mean"):  # rows of training, and evaluations
        sent = [(row["env_steps"], row[name]) for row in rows if name in row]
        stands = [(row["env_steps"], row[name]) for row in kept if name in row]
        assert len(set(sent)) == len(sent)
        # W&B keeps the final evaluation of the end that the run once had, metrics.jsonl does not.
        assert [row for row in sent if row in stands] == stands
        assert {env_steps for env_steps, _ in set(sent) - set(stands)} <= {first_end}
    last = summary_of(folder)["env_steps"]
    assert any({"latest", f"step-{last}"} <= found for found in aliases)


def test_offline_segments_share_a_group_and_one_command_sends_them(tmp_path, capfd):
    code, folder = run(tmp_path, *QUICKEST, "tracking.mode=offline")
    assert code == 0
    first_end = summary_of(folder)["env_steps"]
    assert train.main([f"resume={folder}", "total_steps=1000"]) == 0
    # Names differ by the second, and both may begin in the same one.
    segments = sorted((folder / "wandb").glob("offline-run-*"), key=os.path.getmtime)
    assert len(segments) == 2
    described = [r["run"] for s in segments for r in inspect(s) if r["type"] == "run"]
    assert len({d["run_id"] for d in described}) == 2
    assert {d["run_group"] for d in described} == {folder.name}
    assert f"wandb sync {readable(folder)}/wandb/offline-run-*" in capfd.readouterr().out
    sent = [row["env_steps"] for s in segments for row in rows_of(s)]
    kept = [row["env_steps"] for row in read_metrics(folder / "metrics.jsonl")]
    # The final evaluation of the first end stays with W&B alone.
    assert sent.count(first_end) == kept.count(first_end) + 1
    assert [at for at in sent if at != first_end] == [at for at in kept if at != first_end]


class UsersOwn(KVWriter):
    """Fails in the way that `trouble` names."""

    made: list["UsersOwn"] = []  # noqa: RUF012

    def __init__(self, trouble: str = "") -> None:
        if trouble == "cannot start":
            raise OSError("no such place")
        self.trouble, self.rows = trouble, 0
        UsersOwn.made.append(self)

    def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
        if self.trouble == "raises" and self.rows == 3:
            raise OSError("no space")
        if self.trouble == "hangs":
            time.sleep(60)
        self.rows += 1

    def close(self) -> None:
        pass


def test_writers_of_the_users_own_change_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_writers", sys.modules[__name__])
    own = "tracking.writers=[{_target_: own_writers.UsersOwn, trouble: %s}]"
    common = [*QUICKEST, "tracking=disabled", "tracking.finish_timeout=0.3"]
    _, alone = run(tmp_path, *common, name="alone")
    capfd.readouterr()
    for trouble, said in (
        ("none", ""),
        ("raises", "no space"),
        ("hangs", "did not finish within 0.3 s"),
        ("cannot start", "OSError: no such place"),
    ):
        began = time.monotonic()
        code, folder = run(tmp_path, *common, own % trouble, name=trouble)
        assert (code, time.monotonic() - began < 30) == (0, True)
        assert rows_without_times(folder) == rows_without_times(alone)
        steps = summary_of(alone)["env_steps"]
        weights = tensors(folder, steps)
        assert all((weights[key] == value).all() for key, value in tensors(alone, steps).items())
        printed = capfd.readouterr().out
        assert ("UsersOwn failed" in printed) == bool(said)
        assert said in printed
    assert UsersOwn.made[0].rows == len(rows_without_times(alone))


def test_a_run_folder_does_not_choose_what_writers_are_imported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_writers", sys.modules[__name__])
    own = "tracking.writers=[{_target_: own_writers.UsersOwn}]"
    _, folder = run(tmp_path, "agent=reinforce", "tracking=disabled", own)
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    assert "trust=[own_writers]" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "total_steps=700", "trust=[own_writers]"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tracking.writers=[{_target_: nowhere.Writer}]"], "nowhere.Writer cannot be imported"),
        (["tracking.histograms_every=-1"], "histograms_every must be >= 0"),
        (["tracking.csv=maybe"], "tracking.csv"),
        (["tracking=wandb"], "no tracking named 'wandb'"),
    ],
)
def test_bad_input(arguments, said, tmp_path, capsys):
    code = train.main([*QUICK, f"run_dir={tmp_path / 'run'}", *arguments])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tracking_by_name(tmp_path):
    for name, files in (("csv", "metrics.csv"), ("tensorboard", "tensorboard")):
        code, folder = run(tmp_path, "agent=reinforce", f"tracking={name}", name=name)
        assert code == 0
        assert (folder / files).exists()
        assert not (folder / "wandb").exists()


def test_videos_at_every_second_evaluation_and_of_evaluate(tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    given = ["agent=reinforce", "tracking=disabled", "tracking.videos_every=2"]
    _, folder = run(tmp_path, *given)
    assert [path.name for path in (folder / "videos").iterdir()] == ["step-000000400.mp4"]
    _, alone = run(tmp_path, "agent=reinforce", "tracking=disabled", name="alone")
    assert rows_without_times(folder) == rows_without_times(alone)
    assert evaluate.main([f"run={folder}", "episodes=1", "checkpoint=best", "video=true"]) == 0
    (path,) = (folder / "videos").glob("best-*-seed*.mp4")
    assert path.name in capsys.readouterr().out.replace("\n", "").replace(" ", "").replace("│", "")


def test_an_environment_that_draws_nothing_is_told_once(tmp_path, caplog, capsys):
    code, folder = run(
        tmp_path,
        *QUICKEST,
        "env=gumbelrl/CartPole-v1",
        "tracking=disabled",
        "tracking.videos_every=1",
    )
    assert code == 0
    assert caplog.text.count("no videos of this run") == 1
    assert evaluate.main([f"run={folder}", "episodes=1", "video=true"]) == 2
    assert "nothing is drawn" in capsys.readouterr().err
