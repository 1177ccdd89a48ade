"""What an experiment expands to, what grid.json holds, and what bad input is told. Runs nothing."""

import functools
import json
import os
import sys
import types

import pytest
import yaml
from gumbelrl import compare
from gumbelrl.comparison import grid, launchers
from gumbelrl.comparison.experiment import read_experiment, sweep_values
from gumbelrl.comparison.grid import Grid, expand, run_name
from gumbelrl.comparison.run_job import Job, Outcome, foreign_modules
from gumbelrl.configs.build import env_for_agent
from gumbelrl.configs.compose import compose, group_options
from gumbelrl.tracking import RunFolder

TINY = {
    "question": "Does it run?",
    "agents": {"one": ["agent=reinforce"], "two": ["agent=ppo", "agent.n_steps=64"]},
    "envs": {
        "cart": {
            "overrides": ["env=cartpole"],
            "total_steps": 400,
            "threshold": 100,
            "random": 22,
            "reference": 500,
        },
        "acro": {"overrides": ["env=acrobot"], "total_steps": 500, "stop_at_return": -100},
    },
    "seeds": 2,
    "overrides": ["device=cpu", "tracking=disabled"],
}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Writes an experiment's file, TINY with changes; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
        return "tiny.yaml"

    return write


@functools.cache
def composed(*overrides):
    config = compose(overrides)
    return {**config, "env": env_for_agent(config["env"], config["agent"])}


@pytest.fixture(autouse=True)
def _compose_once(monkeypatch):
    """It takes a fifth of a second, and tests ask for the same again and again."""
    monkeypatch.setattr(grid, "compose", lambda overrides: dict(composed(*overrides)))


@pytest.fixture
def ran(monkeypatch):
    """The jobs that were begun; each ends at once, as an ordinary run or as `outcomes` says."""
    jobs = []

    def run(job: Job, stopped) -> Outcome:
        jobs.append(job)
        for part, outcome in run.outcomes.items():
            if part in job.name:
                return outcome
        job.run.mkdir(parents=True)
        folder = RunFolder(job.run)
        folder.write_config(composed(*job.overrides))
        folder.write_summary({"complete": True})
        return Outcome("finished")

    run.outcomes = {}
    run.jobs = jobs
    monkeypatch.setattr(launchers, "run_job", run)
    monkeypatch.setattr(compare, "report_on", lambda folder: 0)
    return run


def points_of(experiment, **arguments):
    return expand(read_experiment(experiment)[1], **arguments)


def test_a_grid_is_the_product_of_its_parts(experiment):
    points = points_of(experiment())
    assert [point.name for point in points] == [
        f"{env}-{agent}-seed{seed}"
        for seed in (0, 1)
        for env in ("cart", "acro")
        for agent in ("one", "two")
    ]
    one, two = points[1], points[2]
    assert one.overrides == [
        "device=cpu", "tracking=disabled", "env=cartpole", "agent=ppo", "agent.n_steps=64",
        "total_steps=400", "seed=0",
    ]  # fmt: skip
    assert (one.threshold, one.total_steps, one.status, one.reason) == (100, 400, "pending", None)
    assert two.overrides[-3:] == ["total_steps=500", "seed=0", "stop_at_return=-100"]
    assert two.threshold == -100


def test_seeds_budget_and_labels_can_be_chosen(experiment):
    points = points_of(experiment(), seeds=[7], budget=50, agents=["two"], envs=["acro"])
    assert [(point.name, point.total_steps) for point in points] == [("acro-two-seed7", 50)]
    assert "total_steps=50" in points[0].overrides


def test_an_environment_can_have_settings_of_its_own_for_an_agent(experiment):
    own = {**TINY["envs"]["cart"], "agents": {"two": ["agent.n_steps=32"]}}
    name = experiment(envs={"cart": own, "acro": TINY["envs"]["acro"]}, seeds=1)
    points = points_of(name, overrides=["agent.gamma=0.9"])
    ppo = {point.name: point.overrides for point in points if point.agent == "two"}
    assert ppo["cart-two-seed0"][4:7] == ["agent.n_steps=64", "agent.n_steps=32", "agent.gamma=0.9"]
    assert "agent.n_steps=32" not in ppo["acro-two-seed0"]
    assert not any(
        "agent.n_steps=32" in point.overrides for point in points if point.agent == "one"
    )


def test_a_swept_setting_is_one_axis_more(experiment):
    name = experiment(sweep={"agent.gamma": [0.9, 0.99], "eval_every": "choice(100,200)"})
    points = points_of(name, seeds=[0], envs=["cart"], sweep={"log_every": "range(1,3)"})
    assert len(points) == 2 * 2 * 2 * 2
    assert len({point.run for point in points}) == len(points)
    assert points[0].settings == {"agent.gamma": 0.9, "eval_every": 100, "log_every": 1}
    assert points[0].name == "cart-one-gamma=0.9-eval_every=100-log_every=1-seed0"
    assert {"agent.gamma=0.9", "eval_every=100", "log_every=1"} < set(points[0].overrides)


def test_an_unswept_agent_takes_part_once(experiment):
    name = experiment(sweep={"agent.gamma": [0.9, 0.99]}, unswept=["two"])
    points = points_of(name, seeds=[0], envs=["cart"], sweep={"log_every": "range(1,3)"})
    assert [p.settings for p in points if p.agent == "two"] == [{}]
    assert len(points) == 2 * 2 + 1


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([0.5, None, True, "a b"], [0.5, None, True, "a b"]),
        ("0.5,1", [0.5, 1]),
        ("choice(exact,reinmax)", ["exact", "reinmax"]),
        ("range(1,4)", [1, 2, 3]),
        (3, [3]),
        ([{"schedule": "linear", "end": 0}], [{"schedule": "linear", "end": 0}]),
    ],
)
def test_swept_values_in_every_form(given, values):
    assert [value for _, value in sweep_values("agent.x", given)] == values


def test_names_of_folders_are_safe_and_distinct(experiment):
    assert run_name("a/b", "m:E-v0", {}, 3) == "m_E-v0-a_b-seed3"
    long = {"agent.policy_kwargs": {"net_arch": list(range(50))}}
    assert len(run_name("a", "e", long, 0)) < 80
    agents = {"a/b": ["agent=ppo"], "a:b": ["agent=ppo"], "A:b": ["agent=a2c"]}
    points = points_of(experiment(agents=agents))
    assert len({point.run.lower() for point in points}) == len(points)


@pytest.mark.parametrize("name", group_options("experiment"))
def test_the_experiments_that_come_with_it_are_accepted(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = read_experiment(name)[1]
    # Every agent and every environment, if not every pair of them.
    env, agent = next(iter(experiment.envs)), next(iter(experiment.agents))
    for part in (f"envs=[{env}]", f"agents=[{agent}]"):
        assert compare.main([f"experiment={name}", "dry_run=true", part]) == 0
        out = capsys.readouterr().out
        assert f"folder: comparisons/{name}" in out
        assert "n/a" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_has_the_agreed_form(experiment, ran, tmp_path):
    assert compare.main([f"experiment={experiment()}", "out=grid", "workers=2"]) == 0
    content = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert {key: type(content[key]) for key in content} == {
        "experiment": str, "question": str, "command": str, "points": list, "created": str,
        "references": dict,
    }  # fmt: skip
    assert content["experiment"] == "tiny"
    assert content["references"] == {"cart": {"random": 22, "reference": 500}}
    assert content["command"].endswith("compare.py experiment=tiny.yaml out=grid workers=2")
    assert len(content["points"]) == 8
    point = content["points"][0]
    assert set(point) == {
        "agent", "env", "seed", "settings", "overrides", "run", "threshold", "total_steps",
        "status", "reason",
    }  # fmt: skip
    assert point["run"] == "runs/cart-one-seed0"
    assert {point["status"] for point in content["points"]} == {"finished"}


def test_finished_runs_are_not_run_again_and_a_grid_may_grow(experiment, ran, capsys, tmp_path):
    name = experiment()
    command = [f"experiment={name}", "out=grid", "workers=1"]
    assert compare.main(command) == 0
    assert len(ran.jobs) == 8
    (tmp_path / "grid/runs/cart-one-seed1/summary.json").write_text('{"complete": false}')
    (tmp_path / "grid/runs/cart-two-seed1/summary.json").write_text('{"comp')
    ran.outcomes = {"cart": Outcome("finished")}
    assert compare.main(command) == 0
    assert [job.name for job in ran.jobs[8:]] == ["cart-one-seed1", "cart-two-seed1"]
    created = Grid.read(tmp_path / "grid").created
    assert compare.main([*command, "seeds=3", "envs=[cart,acro]"]) == 0
    assert {job.name for job in ran.jobs[10:]} >= {"cart-one-seed2", "acro-two-seed2"}
    grown = Grid.read(tmp_path / "grid")
    assert (len(grown.points), grown.created) == (12, created)


def test_failures_are_named_and_the_rest_is_run(experiment, ran, capsys, tmp_path):
    ran.outcomes = {
        "cart-one-seed0": Outcome("failed", "RuntimeError: the pole broke"),
        "acro-two": Outcome("n/a", "two does not swing"),
    }
    command = [f"experiment={experiment()}", "out=grid", "workers=1"]
    assert compare.main(command) == 1
    out = capsys.readouterr().out
    assert "failed: one on cart, seed 0: RuntimeError: the pole broke\n" in out
    assert "log: grid/logs/cart-one-seed0.log\n" in out
    assert out.count("n/a: two on acro: two does not swing\n") == 1
    assert "5 of 8 runs are finished, 1 failed" in out
    # What an agent cannot do on an environment is not tried with the other seeds.
    assert [job.name for job in ran.jobs if "acro-two" in job.name] == ["acro-two-seed0"]
    after = Grid.read(tmp_path / "grid")
    assert (after.count("finished"), after.count("failed"), after.count("n/a")) == (5, 1, 2)
    # Whether it applies is asked again, as its code may have changed.
    ran.outcomes = {}
    assert compare.main(command) == 0
    assert [job.name for job in ran.jobs[7:]] == [
        "cart-one-seed0",
        "acro-two-seed0",
        "acro-two-seed1",
    ]


def test_a_mistake_in_what_never_began_may_be_corrected(experiment, ran, capsys):
    agents = {"one": TINY["agents"]["one"], "two": ["agent=reinforce", "agent.gamma=5"]}
    ran.outcomes = {"two": Outcome("failed", "gamma must be a number in [0, 1], got 5")}
    command = [f"experiment={experiment(agents=agents, seeds=1)}", "out=grid", "workers=1"]
    assert compare.main(command) == 1
    agents["two"][1] = "agent.gamma=0.5"
    experiment(agents=agents, seeds=1)
    ran.outcomes = {}
    assert compare.main(command) == 0
    assert {job.name for job in ran.jobs[4:]} == {"cart-two-seed0", "acro-two-seed0"}
    agents["two"][1] = "agent.gamma=0.6"  # now there are runs with the former
    experiment(agents=agents, seeds=1)
    capsys.readouterr()
    assert compare.main(command) == 2
    assert "agent.gamma=0.5 there, agent.gamma=0.6 here" in capsys.readouterr().err


def test_a_threshold_is_passed_on_as_it_is(experiment):
    envs = {
        "cart": {"overrides": ["env=cartpole"], "total_steps": 9, "stop_at_return": 20.123456789}
    }
    assert points_of(experiment(envs=envs))[0].overrides[-1] == "stop_at_return=20.123456789"


def test_a_swept_setting_that_an_agent_lacks_is_not_applicable(experiment, ran, capsys):
    name = experiment(sweep={"agent.baseline": ["none", "running"]}, seeds=1)
    assert compare.main([f"experiment={name}", "out=grid"]) == 0
    assert {job.name.split("-")[1] for job in ran.jobs} == {"one"}
    assert "n/a: two on cart, agent.baseline=none: no key agent.baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["experiment=cartpol"], "no experiment named 'cartpol'; did you mean 'cartpole'?"),
        ({}, ["experiment=nothing.yaml"], "there is no file nothing.yaml"),
        ({}, ["agents=[on]"], "no agent labelled 'on'; did you mean 'one'? Allowed: one, two"),
        ({}, ["envs=[kart]"], "no env labelled 'kart'; did you mean 'cart'?"),
        ({}, ["seeds=0"], "the grid is empty: it has no seeds"),
        ({}, ["seeds=[]"], "the grid is empty: it has no seeds"),
        ({}, ["seeds=-1"], "seeds must be"),
        ({}, ["seeds=true"], "seeds must be"),
        ({}, ["budget=0"], "budget must be greater than or equal to 1, got 0"),
        ({}, ["workers=0"], "workers must be"),
        ({}, ["launcher=rya"], "no launcher named 'rya'; did you mean 'ray'? Allowed: local, ray"),
        ({}, ["wokers=2"], "no key 'wokers'; did you mean 'workers'?"),
        ({}, ["seed=3"], "seed= is set by the grid: give seeds=5"),
        ({}, ["agent=ppo"], "agent= is set by the grid: agents=[LABEL,...]"),
        ({}, ["agent.gama=0.9"], "one on cart: no key agent.gama; did you mean 'gamma'?"),
        ({}, ["agent.gama=0.9,0.8"], "sweep: no key agent.gama; did you mean 'gamma'?"),
        ({"agents": {}}, [], "the grid is empty: it has no agents"),
        ({"agents": None}, [], "the grid is empty: it has no agents"),
        ({"envs": {}}, [], "the grid is empty: it has no envs"),
        ({"sweep": {"agent.gamma": []}}, [], "the grid is empty: sweep.agent.gamma has no values"),
        ({"sweep": {"agent": ["ppo"]}}, [], "tiny.yaml: agent= is set by the grid"),
        ({"overrides": ["run_dir=x"]}, [], "tiny.yaml: run_dir= is set by the grid"),
        ({"agents": {"x": ["agent=pppo"]}}, [], "x on cart: no agent named 'pppo'; did you mean"),
        ({"unswept": ["tow"]}, [], "tiny.yaml, unswept: the experiment has no agent labelled"),
        ({"sedes": 3}, [], "tiny.yaml: no key 'sedes'; did you mean 'seeds'?"),
        (
            {"envs": {"e": {"overrides": [], "total_steps": 3, "random": 1}}}, [],
            "tiny.yaml: envs.e has random=1.0 and reference=None; a scale needs both",
        ),
        ({"question": 3}, [], "tiny.yaml: question must be a valid string, got 3"),
        ({"envs": {"e": {"overrides": []}}}, [], "tiny.yaml: envs.e.total_steps has no value"),
        (
            {"envs": {"e": {"overrides": [], "total_steps": 3, "agents": {"tow": []}}}}, [],
            "envs.e.agents: the experiment has no agent labelled 'tow'; did you mean 'two'?",
        ),
        ({"envs": {"e": {"total_stps": 3}}}, [], "no key 'total_stps'; did you mean"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(experiment, capsys, tmp_path, changes, arguments, message):
    name = experiment(**changes)
    if not any(text.startswith("experiment=") for text in arguments):
        arguments = [f"experiment={name}", *arguments]
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare.py: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "comparisons").exists()


def test_another_grid_in_the_folder_is_refused(experiment, ran, capsys, tmp_path):
    def refusal(*arguments):
        capsys.readouterr()
        assert compare.main([f"experiment={name}", "out=grid", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    name = experiment()
    assert compare.main([f"experiment={name}", "out=grid"]) == 0
    before = (tmp_path / "grid" / "grid.json").read_bytes()
    error = refusal("budget=100")
    assert "grid holds another grid: " in error
    assert "total_steps=400 there, total_steps=100 here" in error
    assert "experiment=tiny.yaml out=grid. For this one give another out=FOLDER" in error
    assert "it has one on cart, seed 1, two on cart, seed 1" in refusal("seeds=1")
    assert "nothing there, agent.gamma=0.9 here" in refusal("agent.gamma=0.9")
    assert (tmp_path / "grid" / "grid.json").read_bytes() == before

    config = tmp_path / "grid/runs/cart-one-seed0/config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: 0.5"))
    assert "was made with other settings (agent.gamma was 0.5, is 0.99)" in refusal()
    (tmp_path / "grid" / "grid.json").write_text('{"points": [')
    assert "grid.json cannot be read" in refusal()
    (tmp_path / "grid" / "grid.json").unlink()
    assert "grid holds files but no grid.json" in refusal()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(experiment, capsys, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert compare.main([f"experiment={experiment()}", "out=closed/grid"]) == 2
    assert "cannot write in closed/grid: Permission denied; give out=" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder(experiment, capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    assert compare.main([f"experiment={experiment()}", "out=file/grid"]) == 2
    error = capsys.readouterr().err
    assert "cannot write in file/grid: Not a directory; give out=FOLDER" in error


def test_one_launcher_at_a_time(experiment, ran, capsys, tmp_path):
    (tmp_path / "grid").mkdir()
    with RunFolder(tmp_path / "grid").locked():
        assert compare.main([f"experiment={experiment()}", "out=grid"]) == 2
    assert "another compare.py runs the grid in grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=nowhere"], "runs: there is no folder nowhere"),
        (["runs=."], "runs: . holds no runs"),
        (["runs=.", "seeds=3"], "runs=FOLDER only reports"),
        (["seeds=3"], "give experiment=NAME to run a grid, or runs=FOLDER"),
    ],
)
def test_a_folder_without_runs(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_headline_and_the_path_of_the_report_are_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid/runs/x").mkdir(parents=True)
    (tmp_path / "grid/runs/x/config.yaml").touch()
    report = types.ModuleType("report")
    monkeypatch.setitem(sys.modules, "gumbelrl.comparison.report", report)
    report.write_report = lambda folder: f"{folder} is better."
    assert compare.main(["runs=grid"]) == 0
    assert capsys.readouterr().out == "grid is better.\nreport: grid/report.html\n"
    report.write_report = lambda folder: json.loads("")
    assert compare.main(["runs=grid"]) == 2
    assert "compare.py: no report on grid: Expecting value" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gumbelrl.comparison.report", None)
    assert compare.main(["runs=grid"]) == 2
    assert 'pip install "gumbelrl[compare]", then' in capsys.readouterr().err


def test_a_full_disk_does_not_stop_the_runs(experiment, ran, capsys, monkeypatch):
    def full(self, out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Grid, "write", full)
    assert compare.main([f"experiment={experiment()}", "out=grid"]) == 0
    out = capsys.readouterr().out
    assert "cannot write grid.json: No space left on device; the grid goes on" in out
    assert "8 of 8 runs are finished" in out


def test_ray_is_asked_for_in_one_line(experiment, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert compare.main([f"experiment={experiment()}", "launcher=ray", "out=grid"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'pip install "gumbelrl[ray]"' in error


def test_modules_of_the_user_are_trusted_when_a_run_goes_on():
    config = compose(["agent=reinforce", "env=cartpole"])
    assert foreign_modules(config) == ()
    config["agent"]["_target_"] = "my_agents.TRPO"
    config["env"] |= {"id": "my.envs:E-v0", "wrappers": ["mine.Wrap", {"wrapper": "ClipReward"}]}
    assert foreign_modules(config) == ("my_agents", "mine", "my.envs")
