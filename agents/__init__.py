"""Agents with discrete actions on Stable-Baselines3's API.

`AGENTS` maps the names that configurations and files use to the classes.
"""

from gumbelrl.agents.gumbel_sac import GumbelSAC
from gumbelrl.agents.gumbel_shac import GumbelSHAC
from gumbelrl.agents.reinforce import REINFORCE

AGENTS = {"gumbel_sac": GumbelSAC, "gumbel_shac": GumbelSHAC, "reinforce": REINFORCE}

__all__ = ["AGENTS", "REINFORCE", "GumbelSAC", "GumbelSHAC"]
