"""What a checked configuration names, built: environments, agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gumbelrl.tracking import Checkpoint
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

NORMALIZATION = "normalization.safetensors"  # in a checkpoint, beside agent.zip
REPLAY = "replay"  # likewise, a folder


def agent_name(target: str) -> str:
    """The registry's name of an agent class, or the class's own."""
    from gumbelrl.agents import AGENTS

    for name, cls in AGENTS.items():
        if target.rpartition(".")[2] == cls.__name__:
            return name
    return target.rpartition(".")[2]


def settings_source(config: Mapping[str, Any]) -> str:
    """Where the settings of a run come from, in a line."""
    from gumbelrl.configs.tuned_settings import find_tuned

    if config["resume"] is not None:
        return "those that the run began with"
    if not config["tuned"]:
        return "defaults (tuned=false)"
    tuned = find_tuned(config)
    if tuned is not None:
        return str(tuned)
    name, id = agent_name(config["agent"]["_target_"]), config["env"].get("id")
    return f"defaults (no tuned settings for {name} on {id})"


def env_factory(node: Mapping[str, Any]) -> Callable[[int, int], VecEnv]:
    """`make_env(n_envs, seed)` from the `env` group."""
    from hydra.utils import instantiate

    settings = {key: value for key, value in node.items() if key != "n_envs"}
    factory = instantiate({**settings, "_partial_": True, "_convert_": "all"})
    return lambda n_envs, seed: factory(n_envs=n_envs, seed=seed)


def env_for_agent(env: Mapping[str, Any], agent: Mapping[str, Any]) -> dict[str, Any]:
    """The `env` group, with the agent's gamma where rewards are normalised; for an agent that
    backpropagates through it, our environment of that id."""
    from gumbelrl.envs.registration import find_on_device_id

    if env.get("normalize_reward") and env.get("gamma") is None:
        env = {**env, "gamma": agent.get("gamma")}  # rewards are scaled by the return it discounts
    found = find_on_device_id(str(env.get("id")))
    if found is None or not getattr(agent_class(agent), "needs_on_device_env", False):
        return dict(env)
    return {**env, "id": found}


def agent_class(node: Mapping[str, Any]) -> Any:
    """The class that the `agent` group names."""
    from gumbelrl.configs.compose import resolve_target

    return resolve_target("agent", node["_target_"])


def build_agent(node: Mapping[str, Any], env: VecEnv, seed: int, device: str) -> BaseAlgorithm:
    """A new agent of the `agent` group."""
    from hydra.utils import instantiate

    factory = instantiate({**node, "_partial_": True, "_convert_": "all"})
    return factory(env=env, seed=seed, device=device)


def load_agent(
    node: Mapping[str, Any], env: VecEnv, device: str, checkpoint: Checkpoint
) -> BaseAlgorithm:
    """The agent of the `agent` group as a checkpoint holds it, ready to go on.

    Raises:
        RunFolderError: a file of the checkpoint is missing, damaged, or of something else.
    """
    with checkpoint.reading("agent.zip") as path:
        # Training environments that the checkpoint itself holds are not begun anew.
        agent = agent_class(node).load(path, env=env, device=device, force_reset=False)
    if hasattr(agent, "load_replay_buffer"):
        # Before checkpoints had manifests, a replay was one file.
        name = REPLAY if checkpoint.holds(REPLAY) else f"{REPLAY}.safetensors"
        with checkpoint.reading(name) as path:
            agent.load_replay_buffer(path)
    return agent


def save_normalization(env: VecEnv, checkpoint: Path) -> None:
    """Write the running statistics of an environment that normalises into a checkpoint."""
    from gumbelrl.envs import read_statistics
    from safetensors.numpy import save_file
    from stable_baselines3.common.vec_env import unwrap_vec_normalize

    normalize = unwrap_vec_normalize(env)
    if normalize is not None:
        save_file(read_statistics(normalize), str(checkpoint / NORMALIZATION))


def load_normalization(node: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The statistics in a checkpoint; nothing where the `env` group does not normalise.

    Raises:
        RunFolderError: they are missing or damaged.
    """
    from safetensors.numpy import load_file

    if not node.get("normalize_obs") and not node.get("normalize_reward"):
        return {}
    with checkpoint.reading(NORMALIZATION) as path:
        return load_file(str(path))


def evaluating(
    make_env: Callable[[int, int], VecEnv], statistics: Callable[[], Mapping[str, np.ndarray]]
) -> Callable[[int, int], VecEnv]:
    """`make_env` of environments that evaluate, normalising by the training's statistics."""
    from gumbelrl.envs import freeze_statistics

    def make_frozen(n_envs: int, seed: int) -> VecEnv:
        env = make_env(n_envs, seed)
        freeze_statistics(env, statistics())
        return env

    return make_frozen
