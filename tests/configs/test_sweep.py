"""configs/sweep.yaml: what W&B's agent makes of it is a run of train.py, in the sweep it is of."""

import itertools
import shutil
from typing import Any

import pytest
import yaml
from gumbelrl import train
from gumbelrl.configs.compose import CONFIG_DIR, compose
from wandb_server import serving

SWEEP = yaml.safe_load((CONFIG_DIR / "sweep.yaml").read_text())
KEY = "k" * 40
SMALL = ["total_steps=120", "eval_every=60", "eval_episodes=1", "agent.learning_starts=20"]


def choices(parameter: dict[str, Any]) -> list[Any]:
    """The ends of its range, or all its values."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def combinations() -> list[dict[str, Any]]:
    ranges = {name: choices(parameter) for name, parameter in SWEEP["parameters"].items()}
    return [
        dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())
    ]


@pytest.fixture
def agent(monkeypatch, tmp_path):
    """`agent(values)`: the command line and environment that W&B's own agent starts a run with."""
    from wandb import wandb_agent

    started = {}

    class Process:
        def __init__(self, env=None, command=None, **_: Any) -> None:
            started.update(env=env, command=command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # set by the agent; taken back with this
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")

    def start(values: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        one = wandb_agent.Agent(api=None, queue=None)
        one._sweep_command = list(SWEEP["command"])
        arguments = {name: {"value": value} for name, value in values.items()}
        given = {"run_id": "run1", "program": SWEEP["program"], "args": arguments}
        one._command_run(given)
        return started["command"], started["env"]

    return start


def test_every_command_line_of_the_agent_is_one_of_train(agent):
    commands = [agent(values)[0] for values in combinations()]
    assert len({tuple(command) for command in commands}) == len(commands) > 20
    for values, command in zip(combinations(), commands, strict=True):
        assert command[:3] == [shutil.which("env"), "python", "train.py"]
        config = compose(command[3:])
        assert config["env"]["id"] == "CartPole-v1"
        assert config["agent"]["_target_"].endswith("GumbelSAC")
        for name, value in values.items():
            group, key = name.split(".")
            assert config[group][key] == value


def test_no_parameter_takes_the_name_of_a_section():
    for name in SWEEP["parameters"]:
        assert not isinstance(compose([]).get(name), dict), f"W&B would lock {name}"


def test_evaluations_are_enough_to_stop_early():
    fixed = compose([word for word in SWEEP["command"] if not word.startswith("$")])
    evaluations = fixed["total_steps"] // fixed["eval_every"]
    rules = SWEEP["early_terminate"]
    assert rules["min_iter"] * rules["eta"] < evaluations


def test_a_run_of_a_sweep_is_the_agents_run_and_logs_the_metric(agent, monkeypatch):
    import wandb

    command, _ = agent(combinations()[0])
    wandb.teardown()  # W&B reads its environment once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        try:
            assert train.main([*command[3:], *SMALL, "run_dir=run"]) == 0
        finally:
            wandb.teardown()
    (run_id,) = server.runs
    assert (run_id, server.runs[run_id]["sweep"]) == ("run1", "sweep1")
    metric = SWEEP["metric"]["name"]
    logged = [row["env_steps"] for row in server.rows[run_id] if metric in row]
    assert logged == [60, 120, 120]  # the last is the final evaluation
