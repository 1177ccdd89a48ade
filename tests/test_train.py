"""The command lines, as a user types them: runs, mistakes, interruptions, resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import gymnasium
import pytest
from gumbelrl import evaluate, train
from gumbelrl.agents import AGENTS
from gumbelrl.agents.storage import read_agent_file
from gumbelrl.configs.compose import ConfigError, check_trusted
from gumbelrl.tracking import RunFolder, read_metrics

QUICK = [
    "total_steps=600",
    "eval_every=200",
    "eval_episodes=5",
    "checkpoint_every=200",
    "log_every=100",
]
SAC = ["agent.learning_starts=50", "agent.batch_size=16", "agent.policy_kwargs.net_arch=[16]"]
SMALL = {"gumbel_sac": SAC, "gumbel_shac": ["agent.n_envs=2", "agent.horizon=5"]}


FRAGILE_ENVS = """
import os, signal
import gymnasium as gym, numpy as np

class Mute(Exception):
    def __str__(self):
        return ""

class Fragile(gym.Env):
    '''Ten-step episodes; what is asked for happens in environment `number` at its step `at`.'''
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    made = 0

    def __init__(self, error=None, number=0, at=0, signals=()):
        Fragile.made += 1
        self.number, self.error, self.at, self.signals = Fragile.made, error, at, signals
        self.due = self.number == number or number == 0
        self.t = 0
        self.happen()

    def happen(self):
        if self.due and self.t == self.at:
            for name in self.signals:
                os.kill(os.getpid(), getattr(signal, name))
            if self.error == "not_a_number":
                return float("nan")
            if self.error == "Mute":
                raise Mute
            if self.error:
                raise {"RuntimeError": RuntimeError, "KeyError": KeyError}[self.error]("x")
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = self.happen()
        info = {"is_success": bool(action)}
        return np.zeros(1, np.float32), reward, self.t % 10 == 0, False, info

gym.register("Fragile-v0", Fragile)
"""
FRAGILE = ["env=fragile_envs:Fragile-v0", *SAC]


@pytest.fixture(autouse=True)
def _modules_of_the_user(tmp_path, monkeypatch):
    """The command line sees modules of the working folder, and nothing stays behind."""
    folder = tmp_path / "working"
    folder.mkdir()
    (folder / "fragile_envs.py").write_text(FRAGILE_ENVS)
    (folder / "broken_module.py").write_text("raise RuntimeError('not today')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("fragile_envs", None)
    gymnasium.registry.pop("Fragile-v0", None)


def run(tmp_path, *arguments, name="run"):
    code = train.main([*QUICK, f"run_dir={tmp_path / name}", *arguments])
    return code, tmp_path / name


def rows_without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def tensors(folder, step=600):
    return read_agent_file(folder / "checkpoints" / f"step-{step:09d}" / "agent.zip")[1]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_writes_everything_it_knows(tmp_path, capsys, agent):
    extra = SMALL.get(agent, [])
    code, folder = run(tmp_path, f"agent={agent}", *extra)
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    env = "gumbelrl/CartPole-v1" if agent == "gumbel_shac" else "CartPole-v1"
    assert (summary["agent"], summary["env"], summary["seed"]) == (agent, env, 0)
    assert summary["env_steps"] >= 600
    assert summary["eval"]["episodes"] == 5
    assert 8 <= summary["eval"]["return_mean"] <= 500
    assert summary["versions"]["torch"]
    evaluations = [r for r in rows_without_times(folder) if "eval/return_mean" in r]
    assert len(evaluations) == 4  # at 200, 400, 600, and the final one
    out = capsys.readouterr().out
    assert (
        str(folder) in out.replace("\n", "").replace("│", "").replace(" ", "") or folder.name in out
    )
    assert evaluate.main([f"run={folder}", "episodes=3", "checkpoint=best"]) == 0
    assert "95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_command_gives_the_same_metrics(tmp_path, agent):
    extra = SMALL.get(agent, [])
    _, first = run(tmp_path, f"agent={agent}", *extra, name="first")
    _, second = run(tmp_path, f"agent={agent}", *extra, name="second")
    _, other = run(tmp_path, f"agent={agent}", *extra, "seed=1", name="other")
    assert rows_without_times(first) == rows_without_times(second)
    assert rows_without_times(first) != rows_without_times(other)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path, agent, n_envs):
    arguments = [f"agent={agent}", *SMALL.get(agent, []), f"env.n_envs={n_envs}"]
    # Schedules follow the progress to total_steps, which the shorter run reaches sooner.
    arguments.append("agent.learning_rate=0.003")
    _, whole = run(tmp_path, *arguments, name="whole")
    code, cut = run(tmp_path, *arguments, "total_steps=450", name="cut")
    assert code == 0
    # The run was killed after its checkpoint at 400 steps: what came later never happened.
    *_, scheduled, last = sorted((cut / "checkpoints").glob("step-*"))
    assert last.name > "step-000000449" > scheduled.name
    shutil.rmtree(last)
    assert train.main([f"resume={cut}", "total_steps=600"]) == 0
    ends = [sorted((folder / "checkpoints").glob("step-*"))[-1] for folder in (whole, cut)]
    assert ends[0].name == ends[1].name
    a, b = (read_agent_file(end / "agent.zip")[1] for end in ends)
    assert set(a) == set(b)
    assert all((a[k] == b[k]).all() for k in a)
    assert rows_without_times(cut) == rows_without_times(whole)


def test_resuming_keeps_the_configuration(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    assert train.main([f"resume={folder}"]) == 2
    assert "finished" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "agent.gamma=0.5"]) == 2
    assert "agent cannot change" in capsys.readouterr().err
    assert train.main([f"resume={tmp_path / 'nothing'}"]) == 2


def test_a_run_folder_cannot_import_code(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    config = folder / "config.yaml"
    planted = config.read_text().replace("gumbelrl.agents.GumbelSAC", "os.system")
    config.write_text(planted)
    for command in (train.main, evaluate.main):
        key = "resume" if command is train.main else "run"
        assert command([f"{key}={folder}"]) == 2
        assert "would import code" in capsys.readouterr().err


def test_stops_at_a_confirmed_threshold(tmp_path):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == 200
    assert summary["reached"]["env_steps"] == 200
    assert summary["eval"]["episodes"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=true"], "seed must be a number, got true"),
        (["agent.batch_size=true"], "agent.batch_size must be a number, got true"),
        (["total_steps=1e300"], "total_steps must be"),
        (["total_steps=9007199254740993"], "less than or equal to 9007199254740992"),
        (["stop_at_return=nan"], "stop_at_return must be a finite number"),
        (["run_dir="], "run_dir is empty"),
        (["hydra.run.dir=x"], "no key 'hydra.run.dir'"),
        (["env.max_episode_steps=-1"], "max_episode_steps must be >= 1 or null, got -1"),
        (["env.render_mode=foo"], "no render_mode 'foo'; the environment has: human, rgb_array"),
        (["env=it's-v0"], "needs quotes of its own"),
        (["env=ünïcode-v0"], "needs quotes of its own"),
        (['env="it\'s-v0"'], 'no environment "it\'s-v0"'),
        (["env='ünïcode-v0'"], "no environment 'ünïcode-v0'"),
        (["agent._target_=nope.nope"], "No module named 'nope'"),
        (["agent._target_=stable_baselines3.PPO"], "train.py runs gumbelrl's agents (gumbel_sac"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=RuntimeError"], "made: RuntimeError: x"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=KeyError"], "made: KeyError: 'x'"),
        (["env=fragile_envs:Fragile-v0", "env.kwargs.error=Mute"], "could not be made: Mute"),
        (["env=broken_module:X-v0"], "could not be made: RuntimeError: not today"),
        (["device=mps"], "device=mps is unknown"),
        (["device=meta"], "device=meta is unknown"),
        (
            ["agent=gumbel_shac", "env=known_envs:Identity-v0"],
            "backpropagates through the environment",
        ),
        (["agent.gama=0.9"], "did you mean 'gamma'?"),
        (["agnt=reinforce"], "did you mean 'agent'?"),
        (["agent=gumbel_sca"], "did you mean 'gumbel_sac'?"),
        (["env=cartpol"], "did you mean 'cartpole'?"),
        (["env=CartPol-v1"], "nearest registered ids are CartPole-v1"),
        (["agent.gamma=abc"], "agent.gamma must be a valid number"),
        (["agent.batch_size=1.5"], "agent.batch_size must be a valid integer"),
        (["agent.temperature=0"], "temperature must be a finite number > 0, got 0"),
        (["agent.polyak=2"], "polyak must be a number in (0, 1], got 2"),
        (["agent.policy_kwargs.net_arch=[]"], "net_arch must list at least one hidden width"),
        (["agent.policy_kwargs.critc=heads"], "did you mean 'critic'?"),
        (["agent.estimator=reinmx"], "'reinmax'"),
        (["agent.policy=CnnPolic"], "Allowed: MlpPolicy"),
        (["total_steps=-5"], "total_steps must be greater than or equal to 1, got -5"),
        (["tracking.mode=onlin"], "auto, online, offline or disabled, got 'onlin'"),
        (["env=Pendulum-v1"], "Stable-Baselines3's SAC"),
        (["env=gym"], "env.id has no value"),
        (["seed=1,2"], "a sweep of values"),
        (["nonsense"], "arguments are key=value"),
        (["device=cuda:99"], "device=cuda:99, but this torch sees"),
        (["device=gpu"], "device=gpu is unknown"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, capsys, caplog, arguments, message):
    code, folder = run(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("train.py: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()
    assert not caplog.records


def test_unwritable_run_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _ = run(tmp_path / "file")
    assert code == 2
    assert "run_dir=" in capsys.readouterr().err


@pytest.mark.parametrize("agent", ["gumbel_sac", "reinforce"])
def test_nan_from_the_environment_ends_the_run_and_keeps_it(tmp_path, capsys, agent):
    extra = SMALL.get(agent, [])
    code, folder = run(
        tmp_path, f"agent={agent}", *extra, "env=known_envs:Broken-v0", "env.kwargs.at=333"
    )
    captured = capsys.readouterr()
    assert code == 2
    assert "nan in its reward (environment 0, env step 333)" in captured.err
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    assert all(tensor.isfinite().all() for tensor in tensors(folder, 200).values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cleanly_and_goes_on(tmp_path, signum):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gumbelrl.train", f"run_dir={folder}", "total_steps=1000000"]
    command += ["checkpoint_every=200", "eval_every=1000000", "log_every=100", *SAC]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "interrupted" in out
    assert "resume" in out
    steps = json.loads((folder / "summary.json").read_text())["env_steps"]
    assert train.main([f"resume={folder}", f"total_steps={steps + 300}"]) == 0


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def exit_codes(monkeypatch):
    """What the tracker is told at its end, first."""
    from gumbelrl.tracking import WandbWriter

    codes = []
    monkeypatch.setattr(WandbWriter, "close", lambda self, code=0: codes.append(code))
    return codes


def test_a_wrapper_may_end_episodes(tmp_path):
    wrapper = "{wrapper: gymnasium.wrappers.TimeLimit, max_episode_steps: 5}"
    code, folder = run(tmp_path, *SAC, f"env.wrappers=[{wrapper}]")
    assert code == 0
    assert summary_of(folder)["eval"]["return_mean"] == 5


def test_a_single_wrapper_needs_no_list(tmp_path):
    code, folder = run(tmp_path, *SAC, "env.wrappers=gymnasium.wrappers.RecordEpisodeStatistics")
    assert code == 0
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


def test_a_run_that_goes_on_is_evaluated_again_and_evaluate_repeats_it(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    first = summary_of(folder)["eval"]
    assert train.main([f"resume={folder}", "stop_at_return=null", "total_steps=500"]) == 0
    summary = summary_of(folder)
    result = summary["eval"]
    assert (first["env_steps"], result["env_steps"], result["episodes"]) == (200, 500, 5)
    assert first["seed"] != result["seed"]
    assert summary["steps_per_second"] == pytest.approx(500 / summary["train_seconds"], rel=0.01)
    for checkpoint in ("last", "step-000000500"):
        capsys.readouterr()
        assert evaluate.main([f"run={folder}", "episodes=5", f"checkpoint={checkpoint}"]) == 0
        out = capsys.readouterr().out
        assert f"{result['return_mean']:.2f} " in out
        assert f"{result['return_std']:.2f} " in out
        assert f"seed {result['seed']} " in out


def test_a_new_threshold_was_not_reached_by_the_old_one(tmp_path):
    _, folder = run(tmp_path, *SAC, "stop_at_return=1", "total_steps=100000")
    assert train.main([f"resume={folder}", "stop_at_return=1000", "total_steps=500"]) == 0
    assert summary_of(folder)["reached"] is None


def test_an_interrupt_while_it_starts_is_one_line(tmp_path, capsys, monkeypatch):
    code, folder = run(tmp_path, *FRAGILE, "env.kwargs.signals=[SIGTERM]")
    assert code == 130
    assert capsys.readouterr().err == "train.py: interrupted before training began\n"
    assert not folder.exists()
    from gumbelrl.configs import compose

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compose, "compose", interrupted)
    assert train.main([]) == 130
    assert capsys.readouterr().err == "train.py: interrupted before training began\n"


@pytest.mark.parametrize("number", [1, 2], ids=["training", "final evaluation"])
@pytest.mark.parametrize("signals", ["[SIGINT]", "[SIGHUP]", "[SIGTERM,SIGINT]"])
def test_interrupts_leave_a_summary(tmp_path, capsys, exit_codes, number, signals):
    where = [f"env.kwargs.number={number}", "env.kwargs.at=7", f"env.kwargs.signals={signals}"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000")
    captured = capsys.readouterr()
    assert (code, exit_codes[0]) == (130, 130)
    assert "Traceback" not in captured.err
    assert "interrupted" in captured.out
    assert not summary_of(folder)["complete"]


def test_the_third_signal_ends_the_process(tmp_path):
    code = (
        "import os, signal\nfrom gumbelrl.tracking import StopSignals\n"
        "with StopSignals():\n"
        "    for n in (1, 2, 3):\n"
        "        try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "        except KeyboardInterrupt: pass\n"
        "        print(n, flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split() == ["1", "2"]
    assert ended.returncode == -signal.SIGTERM


def test_ctrl_c_in_a_terminal_reaches_workers_too(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gumbelrl.train", f"run_dir={folder}", "total_steps=1000000"]
    command += ["checkpoint_every=200", "eval_every=1000000", *SAC]
    command += ["env.vectorization=async", "env.n_envs=2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == ""
    assert "interrupted" in out


@pytest.mark.parametrize("number", [1, 2], ids=["training", "final evaluation"])
def test_a_failure_of_the_environment_is_shown_after_the_table(
    tmp_path, capsys, exit_codes, number
):
    where = [f"env.kwargs.number={number}", "env.kwargs.at=7", "env.kwargs.error=RuntimeError"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000")
    captured = capsys.readouterr()
    assert (code, exit_codes[0]) == (1, 1)
    assert captured.err.endswith("RuntimeError: x\n")
    assert "in happen" in captured.err
    assert "failed" in captured.out
    assert "last checkpoint │" in captured.out
    summary = summary_of(folder)
    assert (summary["complete"], summary["failure"]) == (False, "RuntimeError: x")


def test_nan_in_an_evaluation_is_one_line(tmp_path, capsys, exit_codes):
    where = ["env.kwargs.number=2", "env.kwargs.at=7", "env.kwargs.error=not_a_number"]
    code, folder = run(tmp_path, *FRAGILE, *where, "eval_every=1000")
    error = capsys.readouterr().err
    assert (code, exit_codes[0]) == (2, 1)
    assert "nan in its reward" in error
    assert "Traceback" not in error
    assert "nan in its reward" in summary_of(folder)["failure"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{}"),
        ("state.json", ""),
        ("state.json", None),
        ("agent.zip", None),
        ("agent.zip", "garbage"),
        ("replay.safetensors", "garbage"),
        ("replay.safetensors", None),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path, capsys, file, content):
    _, folder = run(tmp_path, *SAC)
    last, earlier = (folder / "checkpoints" / f"step-000000{n}00" for n in (6, 4))
    damage(last / file, content)
    metrics = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot go on from {last / file} (" in error
    assert error.endswith(f"to go on from {earlier.name}, remove {last}\n")
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    if file == "agent.zip" and content:
        assert evaluate.main([f"run={folder}"]) == 2
        assert f"take checkpoint={earlier.name}" in capsys.readouterr().err
    shutil.rmtree(last)
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


def damage(path, content):
    path.unlink()
    if content is not None:
        path.write_text(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", None),
        ("metrics.jsonl", '{"env_steps": 1}\nnonsense\n'),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("config.yaml", "seed: 0\nagent: [\n"),
        ("config.yaml", "seed: 0\n"),
    ],
)
def test_a_damaged_run_folder_is_one_line(tmp_path, capsys, file, content):
    _, folder = run(tmp_path, *SAC)
    damage(folder / file, content)
    capsys.readouterr()
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder / file) in error


def test_one_process_writes_a_run(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    with RunFolder.open(folder).locked():
        assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    assert "another process is writing the run" in capsys.readouterr().err
    assert train.main([f"resume={folder}", "total_steps=700"]) == 0


def test_without_a_home_folder_the_tracker_is_quiet(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "gumbelrl.train", "total_steps=100", "eval_episodes=1"]
    ended = subprocess.run(
        [*command, f"run_dir={tmp_path / 'run'}"],
        env={**environment, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert summary_of(tmp_path / "run")["command"].startswith("python train.py total_steps=100 ")


def test_a_wrong_tracking_mode_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    code, folder = run(tmp_path, *SAC)
    assert code == 2
    assert "WANDB_MODE must be" in capsys.readouterr().err
    assert not folder.exists()


def test_a_run_goes_on_on_another_device(tmp_path, capsys):
    _, folder = run(tmp_path, *SAC)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:99"))
    assert train.main([f"resume={folder}", "total_steps=700"]) == 2
    assert train.main([f"resume={folder}", "total_steps=700", "device=cpu", "threads=1"]) == 0


def test_resuming_changes_only_the_given_settings_of_tracking(tmp_path):
    _, folder = run(tmp_path, *SAC, "tracking.project=mine", "tracking.group=ours")
    assert train.main([f"resume={folder}", "tracking.mode=disabled", "total_steps=700"]) == 0
    tracking = RunFolder.open(folder).read_config()["tracking"]
    assert (tracking["mode"], tracking["project"], tracking["group"]) == (
        "disabled",
        "mine",
        "ours",
    )


def test_a_run_folder_does_not_open_the_working_folder(tmp_path, capsys):
    code, folder = run(tmp_path, *FRAGILE)
    assert code == 0  # the user's own command line does
    working = os.getcwd()
    assert sys.path.count(working) == 1
    sys.path.remove(working)
    for command in (train.main, evaluate.main):
        key = "resume" if command is train.main else "run"
        assert command([f"{key}={folder}"]) == 2
        assert "would import code" in capsys.readouterr().err
        assert working not in sys.path
    assert evaluate.main([f"run={folder}", "trust=[fragile_envs]", "episodes=1"]) == 0


def test_only_what_names_a_wrapper_counts_as_code():
    def config(wrappers):
        return {"env": {"wrappers": wrappers}}

    check_trusted(config([{"wrapper": "gymnasium.wrappers.X", "path": "a.b", "deep": ["c.d"]}]), [])
    for foreign in ("a.b", ["a.b"], {"wrapper": "a.b"}, [{"wrapper": "a.b"}]):
        with pytest.raises(ConfigError, match="would import code"):
            check_trusted(config(foreign), [])
        check_trusted(config(foreign), ["a"])


def test_successes_survive_a_checkpoint(tmp_path):
    _, folder = run(tmp_path, *FRAGILE)
    path = folder / "checkpoints" / "step-000000600" / "state.json"
    successes = json.loads(path.read_text())["successes"]
    assert len(successes) == 60
    _, whole = run(tmp_path, *FRAGILE, "total_steps=800", name="whole")
    assert train.main([f"resume={folder}", "total_steps=800", "trust=[fragile_envs]"]) == 0
    training = [r for r in rows_without_times(folder) if "rollout/success_rate" in r]
    assert training == [r for r in rows_without_times(whole) if "rollout/success_rate" in r]


@pytest.mark.parametrize(
    ("script", "prefix"),
    [("train.py", "python train.py"), ("bin/gumbelrl-train", "gumbelrl-train")],
)
def test_commands_are_named_as_the_user_starts_them(monkeypatch, script, prefix):
    monkeypatch.setattr(sys, "argv", [script])
    assert train.programs() == (prefix, prefix.replace("train", "evaluate"))


def test_help_is_quick_and_complete(capsys):
    assert train.main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("total_steps", "gumbel_sac", "cartpole", "resume"):
        assert word in out
