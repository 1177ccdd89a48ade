"""What a command line loads before it is needed; names of modules, because times are disturbed."""

import json
import subprocess
import sys

import pytest

HEAVY = {"matplotlib", "pandas", "scipy", "optuna", "ray", "wandb", "cv2", "pygame", "jinja2"}
TORCH = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy"}
# The compiler: 1.5 s for a process that compiles nothing.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}

AT_THE_FIRST_STEP = """
import json, os, sys
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gumbelrl import train

def first_step(self, action):
    print("MODULES", json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

CartPoleEnv.step = first_step
train.main(sys.argv[1:])
"""
AT_THE_END = """
import json, sys
from gumbelrl import train
assert train.main(sys.argv[1:]) == 0
print("MODULES", json.dumps(sorted(sys.modules)))
"""


def loaded(code, *arguments, folder):
    """Names of the modules that a process of its own has loaded where it says so."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return set(json.loads(line.removeprefix("MODULES")))


@pytest.mark.parametrize("program", ["train", "evaluate", "compare", "search", "profile_training"])
def test_help_loads_neither_torch_nor_environments(tmp_path, program):
    code = AT_THE_END.replace("train", program)
    assert not loaded(code, "--help", folder=tmp_path) & (HEAVY | TORCH | COMPILER)


@pytest.mark.parametrize("agent", ["gumbel_sac", "reinforce"])
def test_the_first_environment_step_waits_for_nothing_that_it_does_not_use(tmp_path, agent):
    modules = loaded(AT_THE_FIRST_STEP, f"agent={agent}", folder=tmp_path)
    assert "torch" in modules
    assert not modules & (HEAVY | COMPILER)


@pytest.mark.parametrize(
    "overrides",
    [
        ["agent=gumbel_sac"],
        ["agent=gumbel_sac", "agent.policy_kwargs.critic=action_in"],
        ["agent=gumbel_shac"],
        ["agent=reinforce"],
    ],
    ids=" ".join,
)
def test_a_whole_run_never_loads_the_compiler(tmp_path, overrides):
    quick = ["total_steps=300", "eval_episodes=1", "checkpoint_every=300"]
    modules = loaded(AT_THE_END, *overrides, *quick, folder=tmp_path)
    assert not modules & (HEAVY | COMPILER)
