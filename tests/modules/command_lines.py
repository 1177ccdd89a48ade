"""What tests of the command lines share: short runs, and modules of a user."""

import json

from gumbelrl import train
from gumbelrl.agents.storage import read_agent_file
from gumbelrl.tracking import read_metrics

QUICK = [
    "total_steps=600",
    "eval_every=200",
    "eval_episodes=5",
    "checkpoint_every=200",
    "log_every=100",
]
SAC = ["agent.learning_starts=50", "agent.batch_size=16", "agent.policy_kwargs.net_arch=[16]"]
NET = "agent.policy_kwargs.net_arch=[16]"
REPLAY = ["agent.learning_starts=50", "agent.batch_size=16", "agent.buffer_size=300", NET]
# Exploration follows the progress to total_steps, unless it stands still.
GREEDY = ["agent.exploration_initial_eps=0.2", "agent.exploration_final_eps=0.2"]
SMALL = {
    "gumbel_sac": SAC,
    "gumbel_shac": ["agent.n_envs=2", "agent.horizon=5"],
    "reinforce": [],
    "ppo": ["agent.n_steps=20", "agent.batch_size=20", NET],
    "a2c": [NET],
    "dqn": [*REPLAY, *GREEDY, "agent.target_update_interval=64"],
    "qr_dqn": [*REPLAY, *GREEDY, "agent.target_update_interval=64"],
    "sac": [*REPLAY, "env=Pendulum-v1", "agent.train_freq=4"],
}


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


def run(tmp_path, *arguments, name="run"):
    code = train.main([*QUICK, f"run_dir={tmp_path / name}", *arguments])
    return code, tmp_path / name


def rows_without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def tensors(folder, step=600):
    return read_agent_file(folder / "checkpoints" / f"step-{step:09d}" / "agent.zip")[1]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())
