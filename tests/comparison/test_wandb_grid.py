"""A grid on Weights & Biases: names, the summary run and its troubles. `.wandb` files are read
back; runs are simulated but for one grid that trains."""

import csv
import functools
import json
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml
from gumbelrl import compare, train
from gumbelrl.comparison import grid, launchers
from gumbelrl.comparison.records import read_runs
from gumbelrl.comparison.run_job import Job, Outcome, next_command
from gumbelrl.comparison.wandb_grid import read_table
from gumbelrl.configs.build import env_for_agent
from gumbelrl.configs.compose import compose
from gumbelrl.tracking import JsonlWriter, RunFolder
from wandb_files import described, inspect
from wandb_server import serving

KEY = "k" * 36 + "SECR"
NETRC_KEY = "n" * 36 + "SECR"
REPORT_ON = compare.report_on
QUICK = ["device=cpu", "eval_every=1000", "eval_episodes=1", "log_every=20", "tracking.code=false"]
TINY = {
    "question": "Does it run?",
    "agents": {
        "one": ["agent=reinforce", "agent.policy_kwargs.net_arch=[16]"],
        "two": ["agent=ppo", "agent.n_steps=32", "agent.batch_size=16"],
    },
    "envs": {"cart": {"overrides": ["env=cartpole"], "total_steps": 64, "threshold": 100}},
    "seeds": 1,
    "overrides": QUICK,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """A key in the environment and one in a netrc file, W&B offline, and no user's own names."""
    for name in ("WANDB_BASE_URL", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {NETRC_KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    yield
    if sys.modules.get("wandb") is not None:
        sys.modules["wandb"].teardown()


@functools.cache
def composed(*overrides):
    config = compose(overrides)
    return {**config, "env": env_for_agent(config["env"], config["agent"])}


@pytest.fixture
def ran(monkeypatch):
    """The jobs that were begun; each ends at once as a finished run with one evaluation."""
    jobs = []

    def run(job: Job, stopped) -> Outcome:
        jobs.append(job)
        config = composed(*job.overrides)
        folder = RunFolder.create(job.run)
        folder.write_config(config)
        rows = JsonlWriter(folder.metrics_path)
        score = 10.0 * config["seed"] + len(job.name)
        rows.write({"eval/return_mean": score, "eval/episodes": 1}, {}, 64)
        rows.close()
        folder.write_summary({"complete": True, "env_steps": 64, "train_seconds": 1.0})
        return Outcome("finished")

    monkeypatch.setattr(grid, "compose", lambda overrides: dict(composed(*overrides)))
    monkeypatch.setattr(launchers, "run_job", run)
    monkeypatch.setattr(compare, "report_on", small_report)
    return jobs


def small_report(folder: Path) -> int:
    """The files of a report, without the two seconds that figures take."""
    records = read_runs(folder).records
    rows = "".join(f"{record.env},{record.agent},{record.score}\n" for record in records)
    for name in ("scores", "pairs", "runs"):
        (folder / f"{name}.csv").write_text(f"env,agent,score\n{rows}")
    (folder / "table.txt").write_text("It runs.\n")
    (folder / "report.html").write_text("<p>It runs.</p>")
    return 0


def run_grid(*arguments, **changes):
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return compare.main(["experiment=tiny.yaml", "out=grid", "workers=1", *arguments])


def segments():
    return sorted(Path("grid/wandb").glob("offline-run-*"))


def logged(segment):
    """The one row of a summary run: its keys, W&B's own left out."""
    (row,) = [r["history"]["item"] for r in inspect(segment) if r["type"] == "history"]
    return {key.rpartition(".")[0] for key in row if "." in key}


def remembered():
    return json.loads(Path("grid/wandb/comparison.json").read_text())


def check_secrets(*texts):
    for secret in (KEY, NETRC_KEY):
        assert not any(secret in text for text in texts)
        for path in Path("grid").rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def in_this_process(launcher, job):
    assert train.main(next_command(job)[4:]) == 0
    ended = Future()
    ended.set_result(Outcome("finished"))
    return ended


def test_runs_share_a_group_and_the_report_is_one_run_of_it(monkeypatch, capfd):
    monkeypatch.setattr(launchers.LocalLauncher, "_submit", in_this_process)
    assert run_grid("agent.gamma=0.9,0.95", agents={"one": TINY["agents"]["one"]}) == 0
    printed = capfd.readouterr()
    for gamma in (0.9, 0.95):
        (segment,) = Path(f"grid/runs/cart-one-gamma={gamma}-seed0/wandb").glob("offline-run-*")
        run = described(segment)
        assert (run["run_group"], run["job_type"]) == ("grid", "one")
        assert run["tags"] == ["tiny", "cart", "one", f"gamma={gamma}", "seed 0"]
        assert run["config"]["update"]["agent"]["gamma"] == gamma

    (segment,) = segments()
    run = described(segment)
    assert (run["run_group"], run["job_type"]) == ("grid", "comparison")
    assert run["tags"] == ["tiny", "comparison"]
    assert (run["display_name"], run["notes"]) == ("grid", "Does it run?")
    config = run["config"]["update"]
    assert (config["agents"], config["envs"], config["seeds"]) == (["one"], ["cart"], [0])

    media = segment / "files" / "media"
    (table,) = (media / "table" / "comparison").glob("scores_*.json")
    table = json.loads(table.read_text())
    with open("grid/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        {
            key: text if key in ("env", "agent", "note") else float(text) if text else None
            for key, text in row.items()
        }
        for row in rows
    ]
    assert {"iqm", "iqm_low", "iqm_high"} < set(table["columns"])
    drawn = {path.read_bytes() for path in Path("grid/figures").glob("*.png")}
    assert {path.read_bytes() for path in (media / "images" / "figures").iterdir()} == drawn
    (page,) = (media / "html" / "comparison").iterdir()
    assert page.read_bytes() == Path("grid/report.html").read_bytes()
    summary = [r["summary"]["update"] for r in inspect(segment) if r["type"] == "summary"]
    (told,) = [update for update in summary if "headline" in update]
    assert told["headline"] in printed.out
    assert told["runs"] == {"finished": 2, "failed": 0, "n/a": 0}

    uploads = "wandb sync grid/runs/*/wandb/offline-run-* grid/wandb/offline-run-*"
    assert printed.out.endswith(f"report: grid/report.html\nupload to W&B: {uploads}\n")
    check_secrets(*printed)


def test_the_same_again_writes_nothing_and_a_grown_grid_the_same_run(ran, capsys):
    assert run_grid() == 0
    (first,) = segments()
    run_id = described(first)["run_id"]
    before = (first / f"run-{run_id}.wandb").read_bytes()
    capsys.readouterr()
    assert run_grid() == 0
    assert "W&B has the summary of this grid already" in capsys.readouterr().out
    assert segments() == [first]
    assert (first / f"run-{run_id}.wandb").read_bytes() == before

    assert run_grid("seeds=2") == 0
    (second,) = segments()  # the first was never uploaded, and said less
    run = described(second)
    assert run["run_id"] == run_id
    assert run["config"]["update"]["seeds"] == [0, 1]

    (second / f"run-{run_id}.wandb.synced").touch()  # as `wandb sync` leaves it
    capsys.readouterr()
    assert run_grid("seeds=2") == 0
    assert "upload" not in capsys.readouterr().out
    assert segments() == [second]
    assert run_grid("seeds=3") == 0
    assert len(segments()) == 2
    assert {described(segment)["run_id"] for segment in segments()} == {run_id}


def test_a_grid_that_is_not_done_has_no_summary(ran, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("gumbelrl.comparison.grid_display.GridDisplay.refresh", interrupt)
    assert run_grid(seeds=3) == 130
    assert not Path("grid/wandb").exists()


def test_online_the_summary_is_one_run_whatever_happens_between(ran, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "online")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert run_grid() == 0
        ((run_id, run),) = server.runs.items()
        assert (run["groupName"], run["jobType"]) == ("grid", "comparison")
        assert run["tags"] == ["tiny", "comparison"]
        assert len(server.rows[run_id]) == 1
        assert {"comparison/scores", "comparison/report"} < set(server.rows[run_id][0])
        assert "online: http" in capfd.readouterr().out
        assert run_grid() == 0
        assert len(server.rows[run_id]) == 1
        assert run_grid("seeds=2") == 0
        assert list(server.runs) == [run_id]
        assert [row["_step"] for row in server.rows[run_id]] == [0, 1]
    check_secrets(*capfd.readouterr())


def test_what_was_offline_goes_online_under_its_id(ran, monkeypatch):
    assert run_grid() == 0
    (segment,) = segments()
    run_id = described(segment)["run_id"]
    sys.modules["wandb"].teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert run_grid() == 0
        assert list(server.runs) == [run_id]
    assert segments() == []


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "rejects", "no key"])
def test_a_server_that_is_no_help_costs_one_line(trouble, ran, monkeypatch, capfd, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    if trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", "nothing")
    with serving(hangs=trouble == "hangs", rejects=trouble == "rejects") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        if trouble == "refuses":
            server.drop()
        assert run_grid("tracking.start_timeout=1") == 0
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("gumbelrl")]
    assert "could not start online" in warning
    assert warning.endswith("The grid is done.")
    (segment,) = segments()
    assert {"comparison/scores", "comparison/report"} < logged(segment)
    assert remembered()["id"] == described(segment)["run_id"]
    printed = capfd.readouterr()
    assert "upload to W&B: wandb sync grid/wandb/offline-run-*" in printed.out
    check_secrets(*printed, warning)


def test_after_a_rejected_key_the_summary_is_again_the_run_that_it_was(ran, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")

    def on(server, *arguments):
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert run_grid(*arguments) == 0
        sys.modules["wandb"].teardown()  # W&B reads its environment once
        return list(server.runs)

    with serving() as server, serving(rejects=True) as strict, serving() as another:
        (run_id,) = on(server)
        assert on(strict, "seeds=2") == []
        (segment,) = segments()
        assert described(segment)["run_id"] != run_id  # which W&B holds as in use
        assert on(another, "seeds=2") == [run_id]
    assert segments() == []


def test_a_tracker_that_breaks_changes_no_exit_code(ran, monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_grid() == 0
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("gumbelrl")]
    assert "The grid is done; its folder has everything." in warning
    assert "to log the summary again: python compare.py experiment=tiny" in capsys.readouterr().out
    monkeypatch.setattr("gumbelrl.comparison.wandb_grid.read_table", lambda path: 1 / 0)
    assert run_grid() == 0
    out = capsys.readouterr().out
    assert "W&B has no summary of this grid (ZeroDivisionError: division by zero); grid has" in out


@pytest.mark.parametrize("given", [["tracking=disabled"], ["tracking.mode=disabled"], []])
def test_where_it_is_off_nothing_changes(given, ran, monkeypatch, capsys):
    if not given:
        monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it is an error
    assert run_grid(*given) == 0
    assert "W&B" not in capsys.readouterr().out
    assert not Path("grid/wandb").exists()
    points = grid.Grid.read(Path("grid")).points
    assert [list(job.overrides) for job in ran] == [point.overrides for point in points]


def test_reporting_on_a_folder_logs_nothing(ran, monkeypatch, capsys):
    assert run_grid() == 0
    monkeypatch.setattr(compare, "report_on", REPORT_ON)
    kept = sorted(Path("grid/wandb").rglob("*"))
    memory = Path("grid/wandb/comparison.json").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)
    Path("grid/runs/cart-one-seed0/metrics.jsonl").write_text(
        '{"env_steps": 64, "eval/return_mean": 0.5}\n'
    )
    capsys.readouterr()
    assert compare.main(["runs=grid"]) == 0
    assert "W&B" not in capsys.readouterr().out
    assert sorted(Path("grid/wandb").rglob("*")) == kept
    assert Path("grid/wandb/comparison.json").read_bytes() == memory


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["tracking.group=mine"], {"group": "mine", "job_type": "one"}),
        (["tracking.job_type=train"], {"group": "grid", "job_type": "train"}),
        (["tracking.tags=[a,b]"], {"tags": ["a", "b"]}),
        (["tracking=csv", "tracking.mode=offline"], {"group": "grid", "csv": True}),
    ],
)
def test_names_of_the_users_own_stay(given, expected, ran):
    assert run_grid(*given) == 0
    found = composed(*ran[0].overrides)["tracking"]
    found["tags"] = list(found["tags"])
    assert {key: found[key] for key in expected} == expected
    (segment,) = segments()
    run = described(segment)
    assert run["run_group"] == expected.get("group", "grid")
    assert run["job_type"] == "comparison"
    assert run["tags"] == expected.get("tags", ["tiny", "comparison"])


def test_tags_of_the_environment_stay(ran, monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    assert run_grid() == 0
    assert not composed(*ran[0].overrides)["tracking"]["tags"]
    (segment,) = segments()
    assert described(segment)["tags"] == ["a", "b"]


def test_labels_of_any_form_are_names_that_wandb_takes(ran):
    label = "a, [b] \"c\" 'd' $ {e} é " + "x" * 90
    assert run_grid(agents={label.replace("$ {", "${"): TINY["agents"]["one"]}) == 0
    found = composed(*ran[0].overrides)["tracking"]
    assert found["tags"][2] == found["job_type"] == f"{label[:63]}…"
    import wandb

    wandb.Settings(run_tags=found["tags"])  # refuses longer ones


def test_a_wrong_mode_is_told_before_anything_runs(ran, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "of")
    assert run_grid() == 2
    assert "WANDB_MODE must be online, offline or disabled, got 'of'" in capsys.readouterr().err
    assert not Path("grid").exists()
    assert ran == []


def test_a_table_has_numbers_where_the_report_has(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("env,agent,iqm,iqm_low\n1,007,2.5,\n")
    assert read_table(path) == (["env", "agent", "iqm", "iqm_low"], [["1", "007", 2.5, None]])
