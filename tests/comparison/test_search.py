"""Searches: what their files may say, what is suggested, what is pruned, and that nothing of a
search that is killed is lost. Most have planted runs; the last ones train."""

import csv
import functools
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from command_lines import rows_without_times, summary_of
from gumbelrl import compare, search
from gumbelrl.comparison import launchers, search_loop, search_settings
from gumbelrl.comparison.launchers import LocalLauncher
from gumbelrl.comparison.run_job import Job, Outcome, is_locked
from gumbelrl.comparison.search_loop import SearchLoop
from gumbelrl.comparison.search_settings import plan, read_arguments
from gumbelrl.comparison.trials import STUDY, Trials
from gumbelrl.configs.build import env_for_agent
from gumbelrl.configs.compose import check_group, compose, group_options
from gumbelrl.configs.tuned_settings import read_tuned
from gumbelrl.tracking import RunFolder

pytest.importorskip("optuna")

TINY = {
    "question": "Does it find it?",
    "overrides": ["agent=reinforce", "env=cartpole", "device=cpu", "eval_every=100"],
    "space": {"agent.learning_rate": {"low": "1e-4", "high": "1e-2", "log": True}},
    "total_steps": 400,
    "trials": 6,
    "startup_trials": 2,
    "prune_after_steps": 100,
}
BAD = "agent.baseline=none"
TWO = {"agent.baseline": ["value", "none"]}
SECONDS = 60.0
ONE_AT_A_TIME = threading.Lock()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes a search's file, TINY with changes; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        content = {k: v for k, v in {**TINY, **changes}.items() if v is not ...}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return "tiny.yaml"

    return write


@functools.cache
def composed(*overrides):
    with ONE_AT_A_TIME:  # Hydra has a state of the whole process
        return compose(overrides)


@pytest.fixture
def planted(monkeypatch):
    """Runs of four evaluations: the k-th returns 10 k where the run is good, and k where not.

    Each waits until the search has looked at what it has written, so none is quicker than a pruner.
    """
    seen: dict[str, int] = {}

    def run(job: Job, stopped) -> Outcome:
        run.begun.append(job)
        for part, outcome in run.outcomes.items():
            if part in job.overrides:
                return outcome
        shutil.rmtree(job.run, ignore_errors=True)
        job.run.mkdir(parents=True)
        folder, config = RunFolder(job.run), composed(*job.overrides)
        folder.write_config({**config, "env": env_for_agent(config["env"], config["agent"])})
        for k in range(1, 5):
            mean = float(k if BAD in job.overrides else 10 * k)
            row = {"env_steps": 100 * k, "eval/return_mean": mean, "eval/episodes": 5}
            with open(folder.metrics_path, "a") as file:
                file.write(json.dumps(row) + "\n")
            until = time.monotonic() + SECONDS
            while seen.get(job.name, 0) < k and not stopped():
                assert time.monotonic() < until
                time.sleep(0.005)
            if stopped():
                folder.write_summary({"complete": False, "env_steps": 100 * k})
                return Outcome("pending")
        folder.write_summary({"complete": True, "env_steps": 400})
        return Outcome("finished")

    def watch(self, active, launcher):
        really(self, active, launcher)
        if active.point is not None:
            rows = active.last_rung - len(active.scores) * self.plan.rungs
            seen[active.point.name] = max(rows, 0)

    really = SearchLoop._watch
    run.outcomes, run.begun = {}, []
    monkeypatch.setattr(search_loop, "_SECONDS_PER_LOOK", 0.01)
    monkeypatch.setattr(SearchLoop, "_watch", watch)
    monkeypatch.setattr(launchers, "run_job", run)
    for name in ("loop", "settings", "results"):
        path = f"gumbelrl.comparison.search_{name}.compose"
        monkeypatch.setattr(path, lambda overrides: dict(composed(*overrides)))
    return run


def table_of(folder):
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def trials_of(name, *arguments):
    """The study of a search in memory."""
    return Trials(plan(read_arguments([f"experiment={name}", *arguments]), "command"))


# --- what is suggested ---------------------------------------------------------------------------


MIXED = {
    "agent.learning_rate": {"low": "1e-4", "high": 0.01, "log": True},
    "agent.gamma": {"low": 0.9, "high": 0.999},
    "agent.n_episodes": {"low": 1, "high": 8},
    "env.n_envs": {"low": 1, "high": 64, "log": True},
    "agent.gae_lambda": {"low": 0.5, "high": 1.0, "step": 0.25},
    "agent": {"policy_kwargs": {"net_arch": [[8], [16, 16]]}},
    "agent.baseline": ["value", "none", "running"],
}


def test_every_kind_of_parameter_stays_in_its_space(tiny):
    space = {key: value for key, value in MIXED.items() if key != "agent.gae_lambda"}
    trials = trials_of(tiny(space=space))
    drawn = [trials.ask().settings for _ in range(30)]
    rates = [each["agent.learning_rate"] for each in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # Uniform in the logarithm: as many below the geometric mean as above, but for chance (less
    # than 5 of 30 with a probability of 3e-5).
    assert 5 <= sum(rate < 1e-3 for rate in rates) <= 25
    assert all(float(f"{rate:.4g}") == rate for rate in rates)  # for people to read
    assert all(0.9 <= each["agent.gamma"] <= 0.999 for each in drawn)
    whole = [each[key] for each in drawn for key in ("agent.n_episodes", "env.n_envs")]
    assert {type(value) for value in whole} == {int}
    assert {str(each["agent.policy_kwargs.net_arch"]) for each in drawn} == {"[8]", "[16, 16]"}
    assert {each["agent.baseline"] for each in drawn} == {"value", "none", "running"}
    for each in drawn[:3]:
        compose(search_settings.run_overrides(trials.plan.stated, each, 0))


def test_steps_of_fractions_and_of_whole_numbers(tiny):
    space = {
        "agent.gamma": {"low": 0.5, "high": 1.0, "step": 0.25},
        "agent.n_episodes": {"low": 2, "high": 8, "step": 3},
    }
    trials = trials_of(tiny(space=space))
    drawn = [trials.ask().settings for _ in range(30)]
    assert {each["agent.gamma"] for each in drawn} == {0.5, 0.75, 1.0}
    assert {each["agent.n_episodes"] for each in drawn} == {2, 5, 8}


def test_the_same_seed_suggests_the_same_and_another_does_not(tiny, capsys):
    name = tiny(space=TINY["space"] | TWO, startup_trials=4)

    def first(*arguments):
        assert search.main([f"experiment={name}", "dry_run=true", *arguments]) == 0
        return capsys.readouterr().out

    assert first() == first()
    assert first() != first("sampler_seed=1")
    assert first().count(": train.py ") == 4
    assert not Path("searches").exists()


def test_a_search_that_goes_on_suggests_what_an_undisturbed_one_does(tiny, tmp_path):
    name = tiny(space=MIXED | {"agent.gae_lambda": [0.9, 0.95]}, startup_trials=2)
    name = tiny(space={k: v for k, v in MIXED.items() if k != "agent.gae_lambda"})
    searched = plan(read_arguments([f"experiment={name}"]), "command")

    def learn(trials, numbers):
        for number in numbers:
            trial = trials.ask()
            assert trial.number == number
            trials.finish(number, [trial.settings["agent.gamma"]])

    whole = Trials(searched, tmp_path / "whole")
    learn(whole, range(8))
    for number in range(8):
        learn(Trials(searched, tmp_path / "parts"), [number])  # a process each
    parts = Trials(searched, tmp_path / "parts").all()
    assert parts == whole.all()
    assert len({str(trial.settings) for trial in parts}) == 8
    assert parts[0].settings != parts[1].settings


def test_half_a_line_and_the_lock_of_a_killed_process_do_no_harm(tiny, tmp_path):
    searched = plan(read_arguments([f"experiment={tiny()}"]), "command")
    file = tmp_path / STUDY
    settings = Trials(searched, file).ask().settings
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":4,"worker_')
    (tmp_path / f"{STUDY}.lock").touch()
    trials = Trials(searched, file)
    (again,) = trials.going_on()
    assert (again.number, again.settings) == (0, settings)
    trials.finish(0, [1.0])
    assert [each.state for each in Trials(searched, file).all()] == ["finished"]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_trial_that_was_cut_off_while_it_was_made_gets_its_other_values(tiny, tmp_path):
    space = {k: v for k, v in MIXED.items() if k != "agent.gae_lambda"}
    searched = plan(read_arguments([f"experiment={tiny(space=space)}"]), "command")
    settings = Trials(searched, tmp_path / "whole").ask().settings
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:-3]))  # its last three values are not there
    (again,) = Trials(searched, tmp_path / "cut").going_on()
    assert again.settings == settings


# --- what is pruned ------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_median_stops_a_bad_trial_and_lets_a_good_one_end(tiny, planted, capsys, seeds):
    name = tiny(space=TWO, trials=10, startup_trials=4, seeds=seeds, prune_after_steps=200)
    assert search.main([f"experiment={name}", "workers=1", "out=found"]) == 0
    out, trials = capsys.readouterr().out, table_of(Path("found"))
    good = [number for number, trial in enumerate(trials) if trial["agent.baseline"] == "value"]
    # From the second good one on, with two finished trials at least, the median is not a bad one's.
    judged = trials[good[1] + 1 :]
    for trial in judged:
        bad = trial["agent.baseline"] == "none"
        assert trial["state"] == ("pruned" if bad else "finished")
        assert trial["evaluations"] == ("2" if bad else str(4 * seeds))
        assert trial["reason"] == ("at 200 steps of seed 0" if bad else "")
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert pruned
    assert "pruned at 200 steps of seed 0" in out
    assert f"10 of 10 trials: {10 - len(pruned)} finished, {len(pruned)} pruned\n" in out
    run = Path(f"found/runs/trial{int(pruned[0]['trial']):04d}-seed0")
    assert summary_of(run) == {"complete": False, "env_steps": 200}
    assert not run.with_name(run.name.replace("seed0", "seed1")).exists()
    points = json.loads(Path("found/grid.json").read_text())["points"]
    assert next(p for p in points if p["run"].endswith(run.name))["status"] == "pruned"


@pytest.mark.parametrize(("pruner", "some"), [("hyperband", True), ("none", False)])
def test_other_pruners(tiny, planted, pruner, some):
    name = tiny(space=TWO, trials=12, pruner=pruner, startup_trials=12)
    assert search.main([f"experiment={name}", "workers=1", "out=found"]) == 0
    pruned = [trial for trial in table_of(Path("found")) if trial["state"] == "pruned"]
    assert bool(pruned) is some
    assert all(trial["agent.baseline"] == "none" for trial in pruned)


def test_a_launcher_stops_the_one_job_that_it_is_asked_to(monkeypatch, tmp_path):
    def run(job, stopped):
        until = time.monotonic() + SECONDS
        while not stopped() and not (job.name == "b" and ended.is_set()):
            assert time.monotonic() < until
            time.sleep(0.01)
        return Outcome("pending" if stopped() else "finished")

    monkeypatch.setattr(launchers, "run_job", run)
    ended = threading.Event()
    launcher = LocalLauncher([], workers=2)
    jobs = [Job(name, (), tmp_path / name, tmp_path / "log", 1) for name in "abc"]
    for job in jobs:
        launcher.add(job)
    found = {}
    launcher.poll(0.05)
    launcher.stop_job("c")  # waits for a place
    launcher.stop_job("a")
    while not launcher.done:
        for job, outcome in launcher.poll(0.05)[1]:
            found[job.name] = outcome.status
            ended.set()
    launcher.close()
    assert found == {"a": "pending", "b": "finished"}


# --- what comes of it ----------------------------------------------------------------------------


def test_the_end_names_the_best_and_how_to_train_it(tiny, planted, capsys, tmp_path):
    space = {**TWO, "agent": {"policy_kwargs": {"net_arch": [[8], [16, 16]]}}}
    overrides = [*TINY["overrides"], "agent.gamma=0.97"]
    name = tiny(space=space, overrides=overrides, seeds=2, pruner="none")
    assert search.main([f"experiment={name}", "workers=2"]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 trials: 6 finished\n" in out
    assert "return 40, mean of 2 seeds, 400 steps" in out
    line = next(line.strip() for line in out.splitlines() if line.startswith("  python train.py"))
    config = compose(shlex.split(line)[2:])
    assert config["agent"]["baseline"] == "value"
    # In the form of configs/tuned, it makes of the defaults what was tried.
    (section,) = read_tuned(tmp_path / "searches/tiny/best.yaml").values()
    defaults = compose(["agent=reinforce", "env=cartpole"])
    section.check(defaults)
    tuned = check_group("agent", {**defaults["agent"], **section.values["agent"]})
    assert tuned == config["agent"]
    assert (section.agent_name, tuned["gamma"]) == ("reinforce", 0.97)
    assert "configs/tuned/CartPole-v1.yaml" in (tmp_path / "searches/tiny/best.yaml").read_text()
    best = max(table_of(tmp_path / "searches/tiny"), key=lambda trial: float(trial["value"]))
    assert (best["value"], best["scores"]) == ("40.0", "40.0 40.0")


def test_the_curve_pays_for_learning_early(tiny, planted):
    name = tiny(space=TWO, objective="curve", trials=4, pruner="none")
    assert search.main([f"experiment={name}"]) == 0
    values = {t["agent.baseline"]: float(t["value"]) for t in table_of(Path("searches/tiny"))}
    assert values == {"value": 25.0, "none": 2.5}


def test_trials_share_a_group_on_wandb_where_it_is_on(tiny, planted, monkeypatch):
    name = tiny(trials=2)

    def told(**environment):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        planted.begun.clear()
        assert (
            search.main([f"experiment={name}", "workers=1", f"out=folder{len(environment)}"]) == 0
        )
        return [composed(*job.overrides)["tracking"] for job in planted.begun]

    assert {each["group"] for each in told()} == {None}
    first, second = told(WANDB_MODE="offline")
    assert first["group"] == second["group"] == "folder1"
    assert first["job_type"] == "trial"
    assert list(first["tags"]) == ["tiny", "CartPole-v1", "trial 0", "seed 0"]


def test_a_wrong_wandb_mode_is_told_before_a_trial_begins(tiny, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "onlien")
    assert search.main([f"experiment={tiny()}"]) == 2
    assert "WANDB_MODE must be online, offline or disabled, got 'onlien'" in capsys.readouterr().err


def test_failures_are_named_and_the_search_goes_on(tiny, planted, capsys):
    planted.outcomes = {BAD: Outcome("failed", "RuntimeError: the pole broke")}
    name = tiny(space=TWO, trials=8)
    assert search.main([f"experiment={name}", "workers=1"]) == 0
    out = capsys.readouterr().out
    trials = table_of(Path("searches/tiny"))
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert len(trials) == 8
    assert {trial["agent.baseline"] for trial in failed} == {"none"}
    assert f"failed: trial {failed[0]['trial']}: RuntimeError: the pole broke\n" in out
    assert f"{len(failed)} failed" in out
    jobs = len(planted.begun)
    assert search.main([f"experiment={name}", "workers=1"]) == 0  # nothing is left to do
    assert len(planted.begun) == jobs


def test_where_everything_fails_the_search_ends_before_its_trials_are_spent(tiny, planted, capsys):
    planted.outcomes = {"env=cartpole": Outcome("failed", "no such thing")}
    name = tiny(trials=30)
    assert search.main([f"experiment={name}", "workers=1"]) == 1
    out = capsys.readouterr().out
    assert "5 of 30 trials: 5 failed\n" in out
    assert "5 trials failed and none came to its end: no more were begun" in out
    planted.outcomes = {}
    assert search.main([f"experiment={name}", "workers=1", "trials=7", "pruner=median"]) == 0
    assert "7 of 7 trials: 2 finished, 5 failed\n" in capsys.readouterr().out


def test_a_full_disk_ends_it_in_one_line_and_it_goes_on_later(tiny, planted, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    command = [f"experiment={tiny(pruner='none', trials=3)}", "workers=1", "out=found"]
    with monkeypatch.context() as patch:
        patch.setattr(Trials, "report", full)
        assert search.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot write found/{STUDY}: No space left on device" in error
    assert search.main(command) == 0
    assert "3 of 3 trials: 3 finished\n" in capsys.readouterr().out


def test_a_search_may_grow_but_not_change(tiny, planted, capsys):
    name = tiny(pruner="none", trials=2)
    command = [f"experiment={name}", "out=found"]
    assert search.main(command) == 0
    first = table_of(Path("found"))
    assert search.main([*command, "trials=4"]) == 0
    assert table_of(Path("found"))[:2] == first
    assert len(planted.begun) == 4
    capsys.readouterr()
    for change, told in (
        (["budget=300"], "total_steps is 400 there, 300 here"),
        (["agent.gamma=0.5"], "found holds another search: overrides is"),
        (["seeds=2"], "seeds is [0] there, [0, 1] here"),
        (["sampler_seed=2"], "sampler_seed is 0 there, 2 here"),
    ):
        assert search.main([*command, *change]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert search.main([f"experiment={tiny(space=TWO)}", "out=found"]) == 2
    assert "found holds another search: space is" in capsys.readouterr().err
    assert len(planted.begun) == 4


# --- what is refused -----------------------------------------------------------------------------


RATE = "agent.learning_rate"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty: give what to vary"),
        (None, "space is empty"),
        ({RATE: 0.1}, f"{RATE} must be a list of values, or {{low: ..., high: ...}}"),
        ({RATE: {"low": 1, "hihg": 2}}, f"{RATE} has no key 'hihg'; did you mean 'high'?"),
        ({RATE: {"lo": 1, "hi": 2}}, f"{RATE} has no key 'lo'; did you mean 'low'?"),
        ({RATE: {"low": 0.1}}, f"{RATE} has no high"),
        ({RATE: {"low": 0.2, "high": 0.1}}, "low must be less than high, got low: 0.2, high: 0.1"),
        ({RATE: {"low": 0.1, "high": 0.1}}, "low must be less than high"),
        ({RATE: {"low": 0, "high": 0.1, "log": True}}, "low must be > 0 with log: true, got 0"),
        ({RATE: {"low": "a", "high": 0.1}}, f"{RATE}: low must be a number, got 'a'"),
        ({RATE: {"low": True, "high": 2}}, f"{RATE}: low must be a number, got True"),
        ({RATE: {"low": 0.1, "high": float("inf")}}, f"{RATE}: high must be finite, got inf"),
        ({RATE: {"low": 0.1, "high": 1.0, "log": "yes"}}, "log must be true or false, got 'yes'"),
        ({RATE: {"low": 0.1, "high": 1.0, "step": -1}}, "step must be > 0 and at most high - low"),
        ({RATE: {"low": 0.1, "high": 1.0, "step": 1, "log": True}}, "both step and log: true"),
        ({RATE: []}, f"{RATE} has no values, so there is nothing to search"),
        ({RATE: [0.1]}, f"{RATE} has 1 value, so there is nothing to search"),
        ({RATE: [0.1, 0.1]}, f"{RATE} has the value 0.1 twice"),
        ({RATE: [1, 2], "agent": {"learning_rate": [3, 4]}}, f"{RATE} stands there twice"),
        ({"agent.gama": [0.9, 0.8]}, "no key agent.gama; did you mean 'gamma'?"),
        ({"agent.n_episodes": [1, "two"]}, "agent.n_episodes must be a valid integer"),
        ({"agent.n_episodes": {"low": 1.0, "high": 8.0}}, "agent.n_episodes must be a valid int"),
        ({"agent.gamma": {"low": 0, "high": 1}}, "agent.gamma takes fractions, and low: 0"),
        ({"agent.policy_kwargs.net_arc": [[8], [9]]}, "policy_kwargs.net_arc; did you mean"),
        (
            {"agent.policy_kwargs": [{}, {"net_arch": [8]}], "agent.policy_kwargs.x": [1, 2]},
            "agent.policy_kwargs.x lies in agent.policy_kwargs",
        ),
        ({"seed": [1, 2]}, "seed cannot be varied; a search is over settings of the agent"),
        ({"agent": ["ppo", "a2c"]}, "agent cannot be varied"),
        ({"env.id": ["A-v0", "B-v0"]}, "env.id cannot be varied; search each environment"),
    ],
)
def test_a_bad_space_is_one_line(tiny, capsys, space, message):
    assert_refused(capsys, tiny(space=space), [], message)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["experiment=cartpol"], "no search named 'cartpol'; did you mean 'cartpole'?"),
        ({}, ["experiment=nothing.yaml"], "there is no file nothing.yaml"),
        ({"trails": 3}, [], "tiny.yaml: no key 'trails'; did you mean 'trials'?"),
        ({"total_steps": ...}, [], "tiny.yaml: total_steps has no value"),
        ({"question": ...}, [], "tiny.yaml: question has no value"),
        ({"trials": 0}, [], "trials must be greater than or equal to 1, got 0"),
        ({"pruner": "medain"}, [], "pruner must be 'median', 'hyperband' or 'none', got 'medain'"),
        ({"objective": "best"}, [], "objective must be 'final' or 'curve', got 'best'"),
        ({"seeds": "many"}, [], "seeds must be how many"),
        ({"overrides": ["seed=3"]}, [], "seed= is set by the search: give seeds=3"),
        ({"overrides": ["agent=reinforec"]}, [], "no agent named 'reinforec'; did you mean"),
        ({}, ["seeds=0"], "seeds must be one or more, got none"),
        ({}, ["trials=0"], "trials must be greater than or equal to 1, got 0"),
        ({}, ["pruner=nothing"], "pruner must be 'median', 'hyperband' or 'none'"),
        ({}, ["trails=3"], "no key 'trails'; did you mean 'trials'?"),
        ({}, ["launcher=rya"], "no launcher named 'rya'; did you mean 'ray'?"),
        ({}, ["workers=0"], "workers must be"),
        ({}, ["total_steps=100"], "total_steps= is set by the search: give budget=STEPS"),
        ({}, ["stop_at_return=100"], "stop_at_return= is set by the search: every run goes on"),
        ({}, ["agent.gama=0.9"], "no key agent.gama; did you mean 'gamma'?"),
        ({}, [f"{RATE}=0.1"], f"{RATE}= is varied by the search"),
    ],
)
def test_a_mistake_is_one_line(tiny, capsys, changes, arguments, message):
    assert_refused(capsys, tiny(**changes), arguments, message)


def assert_refused(capsys, name, arguments, message):
    if not any(text.startswith("experiment=") for text in arguments):
        arguments = [f"experiment={name}", *arguments]
    assert search.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("search.py: ")
    assert error.count("\n") == 1
    assert message in error
    assert not Path("searches").exists()


def test_an_experiment_must_be_given(capsys):
    assert search.main(["trials=3"]) == 2
    assert "give experiment=NAME, of configs/search" in capsys.readouterr().err


def test_optuna_is_asked_for_in_one_line(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as where it is not installed
    assert_refused(capsys, tiny(), [], 'pip install "gumbelrl[search]"')


def test_folders_of_others_are_refused(tiny, planted, capsys, tmp_path):
    name = tiny(trials=1)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/grid.json").write_text("{}")
    assert search.main([f"experiment={name}", "out=grid"]) == 2
    assert f"holds files but no {STUDY}, so it is not of a search" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    with RunFolder(tmp_path / "taken").locked():
        assert search.main([f"experiment={name}", "out=taken"]) == 2
    assert "another search.py runs the search in taken" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / STUDY).write_text("{}\nnonsense\n{}\n")
    assert search.main([f"experiment={name}", "out=broken"]) == 2
    error = capsys.readouterr().err
    assert f"broken/{STUDY} is damaged" in error
    assert error.count("\n") == 1
    assert search.main([f"experiment={name}", "out=found"]) == 0
    capsys.readouterr()
    assert compare.main(["experiment=cartpole", "out=found"]) == 2
    assert "found holds another grid" in capsys.readouterr().err


def test_a_pruner_that_cannot_prune_says_so(tiny, capsys):
    assert search.main([f"experiment={tiny()}", "dry_run=true", "eval_every=1000"]) == 0
    assert "no evaluation comes before the end (eval_every=1,000)" in capsys.readouterr().out


def test_a_space_that_a_grid_would_exhaust_says_so(tiny, capsys):
    told = "the space has 6 settings, fewer than there are trials"
    name = tiny(space={**TWO, "agent.n_episodes": {"low": 1, "high": 3}})
    assert search.main([f"experiment={name}", "dry_run=true", "trials=7"]) == 0
    assert told in capsys.readouterr().out
    assert search.main([f"experiment={name}", "dry_run=true", "trials=6"]) == 0
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize("name", group_options("search"))
def test_the_searches_that_come_with_it_are_accepted(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert search.main([f"experiment={name}", "dry_run=true"]) == 0
    assert f"folder: searches/{name}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# --- real runs -----------------------------------------------------------------------------------


REAL = {
    **TINY,
    "overrides": [
        *("agent=reinforce", "env=cartpole", "device=cpu", "eval_every=400", "eval_episodes=2"),
        *("checkpoint_every=200", "log_every=200"),
    ],
    "space": {**TINY["space"], "agent.baseline": ["value", "none"]},
    "total_steps": 1200,
    "trials": 3,
    "startup_trials": 1,
    "pruner": "none",
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The file of a search, and the folder of one that nothing disturbed."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.yaml").write_text(yaml.safe_dump(REAL, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        command = [f"experiment={folder / 'real.yaml'}", f"out={folder / 'whole'}", "workers=1"]
        assert search.main(command) == 0
    return folder / "real.yaml", folder / "whole"


def test_every_trial_is_an_ordinary_run_and_the_report_takes_them(real, capsys):
    _, whole = real
    runs = sorted((whole / "runs").iterdir())
    assert [run.name for run in runs] == [f"trial{number:04d}-seed0" for number in range(3)]
    for run, trial in zip(runs, table_of(whole), strict=True):
        summary = summary_of(run)
        assert summary["complete"] is True
        assert summary["eval"]["return_mean"] == float(trial["value"])
        assert repr(RunFolder(run).read_config()["agent"]["learning_rate"]) == trial[RATE]
    pytest.importorskip("matplotlib")
    assert compare.main([f"runs={whole}"]) == 0
    best = max(table_of(whole), key=lambda trial: float(trial["value"]))
    assert f"trial {best['trial']} " in capsys.readouterr().out.splitlines()[0]
    assert "learning_rate" in (whole / "report.html").read_text()


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "gumbelrl.search", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 2 * SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def ends_of(out):
    """All that a search found, but for clocks."""
    rows = [rows_without_times(run) for run in sorted((out / "runs").iterdir())]
    return (out / "trials.csv").read_text(), json.dumps(rows, sort_keys=True)


def test_a_killed_search_goes_on_and_ends_as_an_undisturbed_one(real, tmp_path):
    file, whole = real
    command = [f"experiment={file}", f"out={tmp_path / 'found'}", "workers=1"]
    process = start(*command)
    try:
        wait_for(lambda: list(tmp_path.glob("found/runs/trial0001-*/checkpoints/step-*")), process)
    finally:
        process.kill()
        process.communicate()
    assert search.main(command) == 0
    assert ends_of(tmp_path / "found") == ends_of(whole)
    begun = (tmp_path / "found/logs/trial0000-seed0.log").read_text()
    assert begun.count("$ ") == 1  # what had finished was not run again


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(real, tmp_path):
    file, whole = real
    command = [f"experiment={file}", f"out={tmp_path / 'found'}", "workers=1"]
    process = start(*command)
    run = tmp_path / "found/runs/trial0000-seed0"
    wait_for(lambda: list(run.glob("checkpoints/step-*")), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "stopping: the runs keep their last checkpoints" in said
    assert f"to go on: python search.py experiment={file} out={tmp_path / 'found'}" in said
    assert not is_locked(run)
    assert summary_of(run)["complete"] is False
    assert search.main(command) == 0
    assert ends_of(tmp_path / "found") == ends_of(whole)


def test_ray_stops_the_one_job_that_it_is_asked_to(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from gumbelrl.comparison.ray_launcher import RayLauncher

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    overrides = [*REAL["overrides"], "seed=0"]
    jobs = [
        Job(name, (*overrides, f"total_steps={steps}"), tmp_path / name, tmp_path / "log", steps)
        for name, steps in (("long", 10**7), ("short", 400))
    ]
    launcher = RayLauncher(jobs, workers=2)
    found = {}
    try:
        while not launcher.done:
            for job, outcome in launcher.poll(0.5)[1]:
                found[job.name] = outcome.status
            if launcher.running and list(tmp_path.glob("long/checkpoints/step-*")):
                launcher.stop_job("long")
    finally:
        launcher.close()
    assert found == {"long": "pending", "short": "finished"}
    assert summary_of(tmp_path / "long")["complete"] is False
    assert not is_locked(tmp_path / "long")
