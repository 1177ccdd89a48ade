"""Run folders, good and damaged, as the report reads them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from gumbelrl.comparison.records import differing_settings, read_run, read_runs
from gumbelrl.tracking import RunFolderError
from simulated_runs import write_comparison, write_grid, write_run


def _grid(out: Path) -> dict:
    return json.loads((out / "grid.json").read_text())


def test_a_run_holds_its_curves_and_its_end(tmp_path):
    run = read_run(write_run(tmp_path / "a", total_steps=1000, evaluations=4, diagnostics=True))
    assert run.steps.tolist() == [250, 500, 750, 1000]
    assert run.seconds.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert run.score == run.returns[-1]
    assert (run.status, run.agent, run.env, run.total_steps) == (
        "finished",
        "reinforce",
        "CartPole-v1",
        1000,
    )
    assert run.config["agent.gamma"] == 0.99
    steps, temperature = run.diagnostics["train/temperature"]
    assert steps.tolist() == [250, 500, 750, 1000]
    assert temperature[-1] == pytest.approx(0.5)


def test_of_two_evaluations_at_a_step_the_confirming_one_counts(tmp_path):
    folder = write_run(tmp_path / "a", evaluations=2)
    with open(folder / "metrics.jsonl", "a") as file:
        for mean, episodes in ((480.0, 10), (470.0, 100)):
            row = {"env_steps": 30_000, "eval/return_mean": mean, "eval/episodes": episodes}
            file.write(json.dumps(row) + "\n")
    run = read_run(folder)
    assert (run.steps[-1], run.returns[-1]) == (30_000, 470.0)
    assert math.isnan(run.seconds[-1])  # that row has no clock


def test_the_evaluation_at_the_end_takes_the_clock_of_the_summary(tmp_path):
    folder = write_run(tmp_path / "a", evaluations=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = {k: v for k, v in json.loads(lines[-1]).items() if not k.startswith("time/")}
    (folder / "metrics.jsonl").write_text(f"{lines[0]}\n{json.dumps(last)}\n")
    assert read_run(folder).seconds.tolist() == pytest.approx([10, 20])


def test_threshold_of_the_run_itself_is_the_confirmed_one(tmp_path):
    run = read_run(write_run(tmp_path / "a", stop_at_return=400.0))
    assert run.confirms
    assert run.reached() == (run.steps[-1], run.seconds[-1])
    never = read_run(write_run(tmp_path / "b", stop_at_return=1e9))
    assert never.confirms
    assert never.reached() is None


def test_threshold_of_the_grid_is_the_first_evaluation_at_it(tmp_path):
    out = write_comparison(tmp_path, {"a": {}}, seeds=1, threshold=300.0)
    (run,) = read_runs(out).records
    first = np.flatnonzero(run.returns >= 300)[0]
    assert not run.confirms
    assert run.reached() == (run.steps[first], run.seconds[first])


def test_failed_and_interrupted_and_running_runs_have_no_score(tmp_path):
    failed = read_run(write_run(tmp_path / "a", failure="RuntimeError: boom"))
    assert (failed.status, failed.reason, failed.score) == ("failed", "RuntimeError: boom", None)
    cut = read_run(write_run(tmp_path / "b", complete=False))
    assert (cut.status, cut.score) == ("interrupted", None)
    folder = write_run(tmp_path / "c")
    (folder / "summary.json").unlink()
    assert (read_run(folder).status, read_run(folder).score) == ("running", None)


def test_a_last_line_that_a_crash_cut_off_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", evaluations=3)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 99999, "eval/ret')
    assert len(read_run(folder).steps) == 3


DAMAGE = {
    "no config": ("config.yaml", None, "config.yaml"),
    "empty config": ("config.yaml", b"", "config.yaml is empty"),
    "config of another program": ("config.yaml", b"name: wandb\n", "not the configuration of a"),
    "list for a config": ("config.yaml", b"- 1\n", "config.yaml is damaged"),
    "truncated config": ("config.yaml", b"agent: {gamma: [1", "config.yaml is damaged"),
    "object in the config": ("config.yaml", b"a: !!python/object:os.system {}", "damaged"),
    "config without a seed": ("config.yaml", b"agent: {}\nenv: {}\n", "no seed"),
    "binary config": ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    "no metrics": ("metrics.jsonl", None, "no metrics.jsonl"),
    "empty metrics": ("metrics.jsonl", b"", "metrics.jsonl is empty"),
    "damaged metrics": ("metrics.jsonl", b'{"a": \n{}\n', "line 1 of metrics.jsonl is damaged"),
    "alien metrics": ("metrics.jsonl", b"[1, 2]\n", "line 1 of metrics.jsonl is damaged"),
    "words for a return": (
        "metrics.jsonl",
        b'{"env_steps": 1, "eval/return_mean": "high"}\n',
        "line 1 of metrics.jsonl is damaged",
    ),
    "binary metrics": ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl is damaged"),
    "truncated summary": ("summary.json", b'{"agent": "rei', "summary.json is damaged"),
    "empty summary": ("summary.json", b"", "summary.json is damaged"),
    "list for a summary": ("summary.json", b"[]", "summary.json is damaged"),
}


@pytest.mark.parametrize("grid", [True, False], ids=["grid", "folders"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_skipped_with_a_line_that_says_why(tmp_path, damage, grid):
    file, content, said = DAMAGE[damage]
    out = write_comparison(tmp_path / "out", {"a": {}}, seeds=3)
    if not grid:
        (out / "grid.json").unlink()
    path = out / "runs" / "run-0001" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = read_runs(out)
    assert sum(run.score is not None for run in found.records) == 2
    (line,) = found.skipped
    assert line.startswith("runs/run-0001: ")
    assert said in line
    assert "\n" not in line
    if grid:  # the run was asked for: it does not vanish
        assert [run.status for run in found.records] == ["finished", "failed", "finished"]
    with pytest.raises(RunFolderError):
        read_run(path.parent)


def test_points_without_a_run_keep_their_word(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}, "c": {}}, seeds=1)
    grid = _grid(out)
    for point, status in zip(grid["points"], ("pending", "n/a", "failed"), strict=True):
        shutil.rmtree(out / point["run"])
        point |= {"status": status, "reason": None if status == "pending" else "because"}
    write_grid(out, grid["points"])
    found = read_runs(out)
    assert [(run.status, run.reason) for run in found.records] == [
        ("pending", None),
        ("n/a", "because"),
        ("failed", "because"),
    ]
    assert not found.skipped


def test_a_run_that_ended_is_newer_than_the_word_of_the_grid(tmp_path):
    out = write_comparison(tmp_path, {"a": {}}, seeds=1)
    grid = _grid(out)
    grid["points"][0]["status"] = "running"
    write_grid(out, grid["points"])
    assert read_runs(out).records[0].status == "finished"


def test_a_run_outside_the_folder_is_not_read(tmp_path):
    write_run(tmp_path / "elsewhere")
    out = write_comparison(tmp_path / "out", {"a": {}}, seeds=1)
    grid = _grid(out)
    grid["points"][0]["run"] = "../elsewhere"
    write_grid(out, grid["points"])
    found = read_runs(out)
    assert found.records[0].status == "failed"
    assert "outside" in found.skipped[0]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"points": 3}', '{"points": ["a"]}', '{"points": [{"agent": "a"}]}']
)
def test_a_damaged_grid_falls_back_to_the_folders_and_says_so(tmp_path, content):
    out = write_comparison(tmp_path, {"a": {}}, seeds=2)
    (out / "grid.json").write_text(content)
    found = read_runs(out)
    assert len(found.records) == 2
    assert "grid.json is damaged" in found.notes[0]


def test_a_seed_that_was_run_again_counts_once_and_is_told(tmp_path):
    out = write_comparison(tmp_path, {"a": {}}, seeds=2)
    (out / "grid.json").unlink()
    runs = sorted(path.parent for path in out.rglob("config.yaml"))
    shutil.copytree(runs[0], runs[0].with_name("x-later"))
    shutil.copytree(runs[0], runs[0].with_name("y-unfinished"))
    (runs[0].with_name("y-unfinished") / "summary.json").unlink()
    found = read_runs(out)
    assert [run.seed for run in found.records] == [0, 1]
    assert found.records[0].folder.name == "x-later"
    assert any("3 runs of seed 0; x-later counts" in note for note in found.notes)


def test_folders_are_grouped_by_what_they_differ_in(tmp_path):
    for seed in range(2):
        for gamma in (0.9, 0.99):
            write_run(tmp_path / f"g{gamma}-{seed}", seed=seed, settings={"gamma": gamma})
        write_run(tmp_path / f"ppo-{seed}", agent="ppo", seed=seed)
    found = read_runs(tmp_path)
    assert set(found.agents) == {"reinforce (gamma=0.9)", "reinforce (gamma=0.99)", "ppo"}
    assert [run.seed for run in found.of("reinforce (gamma=0.9)", "CartPole-v1")] == [0, 1]


def test_other_budgets_are_said_and_never_averaged(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"short{seed}", seed=seed, total_steps=1000)
        write_run(tmp_path / f"long{seed}", seed=seed, total_steps=2000)
    found = read_runs(tmp_path)
    assert set(found.agents) == {"reinforce (total_steps=1000)", "reinforce (total_steps=2000)"}
    assert any("different budgets (1,000, 2,000 env steps)" in note for note in found.notes)
    out = write_comparison(tmp_path / "grid", {"a": {"total_steps": 500}, "b": {}}, seeds=1)
    grid = _grid(out)
    grid["points"].append({**grid["points"][0], "seed": 1, "total_steps": 900})
    write_grid(out, grid["points"])
    assert set(read_runs(out).agents) == {"a (total_steps=500)", "a (total_steps=900)", "b"}


def test_other_environments_under_one_label_are_said(tmp_path):
    out = write_comparison(tmp_path, {"a": {}, "b": {}}, seeds=1)
    path = out / "runs" / "run-0001" / "config.yaml"
    path.write_text(path.read_text().replace("CartPole-v1", "CartPole-v0"))
    notes = read_runs(out).notes
    assert any("different environments (CartPole-v0, CartPole-v1)" in note for note in notes)


def test_swept_settings_stand_in_the_label(tmp_path):
    out = write_comparison(tmp_path, {"a": {}}, seeds=2)
    grid = _grid(out)
    for point, gamma in zip(grid["points"], (0.9, 0.99), strict=True):
        point["settings"] = {"agent.gamma": gamma}
    write_grid(out, grid["points"])
    assert read_runs(out).agents == ("a (gamma=0.9)", "a (gamma=0.99)")


def test_differing_settings_leave_the_equal_and_the_kept_out(tmp_path):
    runs = {
        name: read_run(write_run(tmp_path / name, seed=seed, settings={"gamma": gamma}))
        for seed, (name, gamma) in enumerate({"a": 0.9, "b": 0.99}.items())
    }
    assert differing_settings(runs) == {"agent.gamma": {"a": 0.9, "b": 0.99}}


def test_configurations_inside_a_run_are_not_runs(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "wandb" / "files").mkdir(parents=True)
    (folder / "wandb" / "files" / "config.yaml").write_text("wandb_version: 1")
    shutil.copytree(folder / "wandb", tmp_path / "wandb")  # as a grid has one of its own
    found = read_runs(tmp_path)
    assert (len(found.records), found.skipped) == (1, ())


def test_nothing_to_read_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        read_runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no run that can be read"):
        read_runs(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"a: config\.yaml is empty"):
        read_runs(tmp_path)
