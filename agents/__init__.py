"""Agents on Stable-Baselines3's API: ours, with discrete actions, and baselines from the shelf.

`AGENTS` maps the names that configurations and files use to the classes.
"""

from gumbelrl.agents.gumbel_sac import GumbelSAC
from gumbelrl.agents.gumbel_shac import GumbelSHAC
from gumbelrl.agents.reinforce import REINFORCE
from gumbelrl.agents.shelf import A2C, DQN, PPO, QRDQN, SAC, MaskablePPO
from gumbelrl.gumbel.choices import DoesNotApply
from stable_baselines3.common.base_class import BaseAlgorithm

AGENTS: dict[str, type[BaseAlgorithm]] = {
    "gumbel_sac": GumbelSAC,
    "gumbel_shac": GumbelSHAC,
    "reinforce": REINFORCE,
    "ppo": PPO,
    "a2c": A2C,
    "maskable_ppo": MaskablePPO,
    "dqn": DQN,
    "qr_dqn": QRDQN,
    "sac": SAC,
}

__all__ = [
    "A2C",
    "AGENTS",
    "DQN",
    "PPO",
    "QRDQN",
    "REINFORCE",
    "SAC",
    "DoesNotApply",
    "GumbelSAC",
    "GumbelSHAC",
    "MaskablePPO",
]
