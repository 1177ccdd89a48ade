"""Tuned settings: defaults < configs/tuned/<env>.yaml < the command line."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from command_lines import QUICK
from gumbelrl import train
from gumbelrl.agents import AGENTS
from gumbelrl.configs import tuned_settings
from gumbelrl.configs.compose import ConfigError, compose

SECTIONS = [
    (file.stem, agent)
    for file in sorted(tuned_settings.TUNED_DIR.glob("*.yaml"))
    for agent in yaml.safe_load(file.read_text())
]


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A folder of the test's own, and a way to write CartPole-v1's file in it."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    monkeypatch.setattr(tuned_settings, "TUNED_DIR", folder)

    def write(text, id="CartPole-v1"):
        (folder / f"{id}.yaml").write_text(text)

    return write


@pytest.mark.parametrize(("stem", "agent"), SECTIONS)
def test_every_section_is_one_that_its_agent_and_environment_take(stem, agent):
    assert agent in AGENTS
    section = tuned_settings.read_tuned(tuned_settings.TUNED_DIR / f"{stem}.yaml")[agent]
    config = compose([f"agent={agent}", f"env={stem.replace('MinAtar_', 'MinAtar/')}"])
    for group, settings in section.values.items():
        for key, value in settings.items():
            assert config[group][key] == value


def zoo_settings(agent, id):
    """What rl_zoo3 says, in our words; its files are read without importing it."""
    spec = importlib.util.find_spec("rl_zoo3")
    name = {"qr_dqn": "qrdqn"}.get(agent, agent)
    path = Path(spec.submodule_search_locations[0]) / "hyperparams" / f"{name}.yml"
    zoo = yaml.safe_load(path.read_text())[id]
    agent_settings, env_settings = {}, {}
    for key, value in zoo.items():
        if key == "n_envs":
            env_settings |= {key: value} if value > 1 else {}
        elif key == "normalize":
            env_settings |= {"normalize_obs": value, "normalize_reward": value}
        elif key == "policy_kwargs":

            class nn:
                ReLU = "relu"

            agent_settings[key] = eval(value, {"dict": dict, "nn": nn})
        elif isinstance(value, str) and value.startswith("lin_"):
            start = float(value.removeprefix("lin_"))
            agent_settings[key] = {"schedule": "linear", "start": start, "end": 0}
        elif key not in ("n_timesteps", "policy"):
            agent_settings[key] = value
    return {"agent": agent_settings, "env": env_settings}


@pytest.mark.parametrize(("stem", "agent"), SECTIONS)
def test_what_is_said_to_come_from_the_zoo_stands_there(stem, agent):
    section = tuned_settings.read_tuned(tuned_settings.TUNED_DIR / f"{stem}.yaml")[agent]
    if not section.source.startswith("rl_zoo3 "):
        pytest.skip("comes from elsewhere")
    id = section.source.partition("(")[2].partition(")")[0] or stem
    assert section.values == zoo_settings(agent, id)


TUNED = """
ppo:
  from: a test
  agent:
    gamma: 0.9
    learning_rate: {schedule: linear, start: 0.01, end: 0}
    policy_kwargs: {net_arch: [32], activation_fn: relu}
  env: {n_envs: 3, wrappers: [{wrapper: gymnasium.wrappers.TimeLimit, max_episode_steps: 7}]}
"""


def test_the_command_line_goes_before_the_tuned_file_and_that_before_the_defaults(tuned):
    tuned(TUNED)
    command = ["agent=ppo", "env=CartPole-v1"]
    config = compose(command)
    assert config["agent"]["gamma"] == 0.9
    assert config["agent"]["learning_rate"] == {"schedule": "linear", "start": 0.01, "end": 0}
    assert config["agent"]["n_steps"] == 2048  # the library's default
    assert config["env"]["n_envs"] == 3
    assert config["env"]["wrappers"][0]["max_episode_steps"] == 7
    given = ["agent.gamma=0.5", "agent.learning_rate.start=1", "agent.policy_kwargs.net_arch=[8]"]
    config = compose([*given, "env.n_envs=1", *command])
    assert (config["agent"]["gamma"], config["env"]["n_envs"]) == (0.5, 1)
    assert config["agent"]["learning_rate"] == {"schedule": "linear", "start": 1, "end": 0}
    assert config["agent"]["policy_kwargs"] == {"net_arch": [8], "activation_fn": "relu"}
    other = "{schedule: constant, value: 0.1}"
    config = compose([*command, f"agent.learning_rate={other}"])
    assert config["agent"]["learning_rate"] == {"schedule": "constant", "value": 0.1}


@pytest.mark.parametrize(
    "command",
    [
        ["agent=ppo", "env=CartPole-v1", "tuned=false"],
        ["agent=a2c", "env=CartPole-v1"],
        ["agent=ppo", "env=Acrobot-v1"],
        ["agent=ppo", "env=gumbelrl/CartPole-v1"],
    ],
)
def test_they_stay_out_where_they_are_not_meant(tuned, command):
    tuned(TUNED)
    assert compose(command)["agent"]["gamma"] == 0.99


@pytest.mark.parametrize("env", ["cartpole", "gumbelrl/CartPole-v1"])
def test_an_agent_that_trains_on_our_copy_of_an_environment_finds_them(tuned, env):
    tuned("gumbel_shac: {from: a test, agent: {gamma: 0.5}}")
    assert compose(["agent=gumbel_shac", f"env={env}"])["agent"]["gamma"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {from: x, agent: {gama: 0.9}}", "no key agent.gama; did you mean 'gamma'?"),
        ("ppo: {from: x, env: {n_env: 2}}", "no key env.n_env; did you mean 'n_envs'?"),
        ("ppo: {from: x, agent: {n_steps: much}}", "agent.n_steps must be a valid integer"),
        ("ppo: {from: x, agnt: {}}", "no key 'agnt'; did you mean 'agent'?"),
        ("ppo: {agent: {gamma: 0.9}}", "`from` must say in one line"),
        ("ppo: {from: x, env: {id: Acrobot-v1}}", "env.id cannot be tuned"),
        ("ppo: {from: x, agent: [gamma]}", "agent must be a mapping"),
        ("ppo: {from: x, agent: {seed: 3}}", "agent.seed is set on the top level"),
        ("ppo", "one section per agent"),
        ("ppo: [", "cannot be read"),
    ],
)
def test_mistakes_in_a_file_name_it(tuned, text, message):
    tuned(text)
    with pytest.raises(ConfigError) as refused:
        compose(["agent=ppo", "env=CartPole-v1"])
    assert str(refused.value).startswith("configs/tuned/CartPole-v1.yaml")
    assert message in str(refused.value)


def test_a_run_says_where_its_settings_come_from_and_keeps_them(tuned, tmp_path, capsys):
    tuned("reinforce: {from: a test, agent: {n_episodes: 2}}")
    folder = tmp_path / "run"
    command = ["agent=reinforce", "env=cartpole", *QUICK, f"run_dir={folder}"]
    assert train.main([*command, "total_steps=200"]) == 0
    told = "configs/tuned/CartPole-v1.yaml (agent reinforce: a test)"
    assert f"settings: {told}\n" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["settings"] == told
    tuned("reinforce: {from: a test, agent: {n_episodes: 9}}")
    assert train.main([f"resume={folder}", "total_steps=400"]) == 0
    assert "settings: those that the run began with\n" in capsys.readouterr().out
    assert yaml.safe_load((folder / "config.yaml").read_text())["agent"]["n_episodes"] == 2
