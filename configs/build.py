"""What a checked configuration names, built: the device, environments, agents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


def select_device(name: str) -> str:
    """`auto` is CUDA where there is one; ConfigError for a device that torch does not have."""
    import torch
    from gumbelrl.configs.compose import ConfigError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if kind is None:
        raise ConfigError(f"device={name} is unknown: use auto, cpu, cuda or cuda:N")
    n_devices = torch.cuda.device_count()
    if name != "cpu" and int(kind[1] or 0) >= n_devices:
        raise ConfigError(
            f"device={name}, but this torch sees {n_devices} CUDA devices: use device=auto or "
            "device=cpu, or install a CUDA build of torch"
        )
    return name


def agent_name(target: str) -> str:
    """The registry's name of an agent class, or the class's own."""
    from gumbelrl.agents import AGENTS

    for name, cls in AGENTS.items():
        if target.rpartition(".")[2] == cls.__name__:
            return name
    return target.rpartition(".")[2]


def env_factory(node: Mapping[str, Any]) -> Callable[[int, int], VecEnv]:
    """`make_env(n_envs, seed)` from the `env` group."""
    from hydra.utils import instantiate

    settings = {key: value for key, value in node.items() if key != "n_envs"}
    factory = instantiate({**settings, "_partial_": True, "_convert_": "all"})
    return lambda n_envs, seed: factory(n_envs=n_envs, seed=seed)


def env_for_agent(env: Mapping[str, Any], agent: Mapping[str, Any]) -> dict[str, Any]:
    """The `env` group; for an agent that backpropagates through it, our environment of that id."""
    from gumbelrl.envs.registration import find_on_device_id

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
    node: Mapping[str, Any], env: VecEnv, device: str, checkpoint: Path
) -> BaseAlgorithm:
    """The agent of the `agent` group as a checkpoint holds it, ready to go on.

    Raises:
        RunFolderError: a file of the checkpoint is missing, damaged, or of something else.
    """
    from gumbelrl.tracking import reading

    with reading(checkpoint / "agent.zip", without(checkpoint)):
        # Training environments that the checkpoint itself holds are not begun anew.
        agent = agent_class(node).load(
            checkpoint / "agent.zip", env=env, device=device, force_reset=False
        )
    if hasattr(agent, "load_replay_buffer"):
        with reading(checkpoint / "replay.safetensors", without(checkpoint)):
            agent.load_replay_buffer(checkpoint / "replay.safetensors")
    return agent


def without(checkpoint: Path) -> str:
    """What to do about a checkpoint that cannot be read."""
    from gumbelrl.tracking import previous

    earlier = previous(checkpoint)
    if earlier is None:
        return "there is no earlier checkpoint: start a new run"
    return f"to go on from {earlier.name}, remove {checkpoint}"
