"""Saving and loading agents without pickle: reading a file executes nothing.

An agent file is a zip with two members: `agent.json` (format version, class, constructor settings,
spaces, counters, optimiser settings) and `tensors.safetensors` (weights, optimiser moments,
generator state). Classes are looked up by the caller, never by the file.
"""

from __future__ import annotations

import inspect
import json
import os
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import safetensors.torch
import torch
from gumbelrl.agents.running_metrics import RunningMetrics
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

FORMAT, VERSION = "gumbelrl-agent", 1
_HEADER, _TENSORS = "agent.json", "tensors.safetensors"


def encode_space(space: spaces.Space) -> dict[str, Any]:
    """A Gymnasium space as JSON values; ValueError for kinds the agents do not know."""
    if isinstance(space, spaces.Box):
        return {
            "kind": "Box",
            "low": [str(x) for x in space.low.reshape(-1)],
            "high": [str(x) for x in space.high.reshape(-1)],
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "kind": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": np.asarray(space.start).tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": list(space.shape)}
    raise ValueError(f"cannot store the space {space}: known are Box, Discrete and Multi*")


def decode_space(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `encode_space`."""
    kind = data["kind"]
    if kind == "Box":
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        # A float's str is its shortest exact form, so the bounds come back to the bit.
        bounds = [
            np.array([dtype.type(x) for x in data[side]], dtype).reshape(shape)
            for side in ("low", "high")
        ]
        return spaces.Box(bounds[0], bounds[1], shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        dtype = np.dtype(data["dtype"])
        return spaces.MultiDiscrete(data["nvec"], dtype=dtype.type, start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    raise ValueError(f"unknown space kind {kind!r} in the file")


def _pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str, out: dict[str, Tensor]) -> Any:
    """Moments go to `out`; the rest, hyper-parameters per group, is returned for JSON."""
    state = optimizer.state_dict()
    for index, moments in state["state"].items():
        for key, value in moments.items():
            out[f"{prefix}/{index}/{key}"] = torch.as_tensor(value)
    return state["param_groups"]


def _unpack_optimizer(
    optimizer: torch.optim.Optimizer, groups: Any, prefix: str, tensors: dict[str, Tensor]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}/"):
            index, key = name.removeprefix(f"{prefix}/").split("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _agent_path(path: str | Path) -> Path:
    """Stable-Baselines3's convention: `.zip` is added where there is no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def read_agent_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and CPU tensors of an agent file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of this format; one with pickles is refused with the way out.
    """
    path = _agent_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no agent file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "data" in names or any(name.endswith((".pkl", ".pth")) for name in names):
                raise ValueError(
                    f"{path} is a Stable-Baselines3 archive: it holds pickles, which run code "
                    "when loaded, so it is refused. Load it with the library that wrote it and "
                    "train or save anew with gumbelrl"
                )
            if names != {_HEADER, _TENSORS}:
                raise ValueError(f"{path} is not a {FORMAT} file: it holds {sorted(names)}")
            header = json.loads(archive.read(_HEADER))
            tensors = safetensors.torch.load(archive.read(_TENSORS))
    except (zipfile.BadZipFile, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged or not a {FORMAT} file: {error}") from error
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {header.get('format')!r} version {header.get('version')!r}; "
            f"this gumbelrl reads {FORMAT!r} version {VERSION}"
        )
    return header, tensors


class PickleFreeAlgorithm(BaseAlgorithm):
    """`save` and `load` with Stable-Baselines3's signatures and no pickle in the file.

    A subclass names its optimisers in `_optimizers()`, loose tensors in `_extra_tensors()`, and
    calls `_remember_settings(locals())` first in its constructor.
    """

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_total_timesteps",
        "_num_timesteps_at_start",
        "_episode_num",
        "_n_updates",
        "_current_progress_remaining",
    )
    # Where and how to run is the loader's choice, not the file's.
    _NOT_STORED = frozenset(
        {"self", "policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model"}
    )
    generator: torch.Generator
    metrics: RunningMetrics

    def _remember_settings(self, arguments: dict[str, Any]) -> None:
        names = inspect.signature(type(self).__init__).parameters
        self._settings = {
            name: arguments[name]
            for name in names
            if name in arguments and name not in self._NOT_STORED
        }
        policy = arguments["policy"]
        self._policy_name = policy if isinstance(policy, str) else policy.__name__

    def _seed_generator(self) -> None:
        """One generator on the agent's device draws actions, noise and replay indices."""
        self.generator = torch.Generator(self.device)
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)
        self.policy.generator = self.generator  # type: ignore[assignment]

    @classmethod
    def _as_vec_env(cls, env: Any) -> VecEnv:
        """An environment, or the id of one, as the `VecEnv` the agent trains on."""
        return cls._wrap_env(maybe_make_env(env, 0))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        raise NotImplementedError

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {}

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write weights, optimisers, counters and generator state to one file, atomically.

        `exclude` and `include` are in Stable-Baselines3's signature and must stay None: what the
        file holds is fixed. The replay has `save_replay_buffer`.

        Raises:
            ValueError: a constructor setting that JSON cannot hold (it is named).
        """
        if exclude or include:
            raise ValueError("exclude and include are not supported: the file's content is fixed")
        tensors = {f"policy/{k}": v for k, v in self.policy.state_dict().items()}
        tensors |= {f"extra/{k}": v.detach() for k, v in self._extra_tensors().items()}
        tensors |= {f"metrics/{k}": v for k, v in self.metrics.tensors().items()}
        tensors["generator"] = self.generator.get_state()
        groups = {
            name: _pack_optimizer(optimizer, f"optimizer/{name}", tensors)
            for name, optimizer in self._optimizers().items()
        }
        header = {
            "format": FORMAT,
            "version": VERSION,
            "class": type(self).__name__,
            "policy": self._policy_name,
            "settings": self._settings,
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "n_envs": self.n_envs,
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
            "optimizers": groups,
        }
        for name, value in self._settings.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise ValueError(
                    f"cannot save: {name}={value!r} is not plain data; give it as numbers, "
                    "names and lists (a schedule as a dict, an estimator by name)"
                ) from error
        path = _agent_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(_HEADER, json.dumps(header, indent=1))
            archive.writestr(_TENSORS, safetensors.torch.save(cpu))
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(
        cls,
        path: Any,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """An agent as it was saved, optimisers included; training can go on.

        Args:
            path: what `save` was given.
            env: the environment to go on with; its spaces must be the saved ones.
            device: where to place it; not taken from the file.
            custom_objects: constructor settings that override the saved ones.
            kwargs: likewise.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not our format, pickles inside, another agent's file, or other spaces.
        """
        header, tensors = read_agent_file(path)
        if header["class"] != cls.__name__:
            raise ValueError(
                f"{path} holds a {header['class']}, not a {cls.__name__}; "
                f"use {header['class']}.load"
            )
        settings = header["settings"] | (custom_objects or {}) | kwargs
        agent = cls(  # type: ignore[call-arg]
            policy=header["policy"], env=None, device=device, _init_setup_model=False, **settings
        )
        agent.observation_space = decode_space(header["observation_space"])
        agent.action_space = decode_space(header["action_space"])
        agent.n_envs = header["n_envs"]
        if env is not None:
            env = cls._as_vec_env(env)
            check_for_correct_spaces(env, agent.observation_space, agent.action_space)
            agent.n_envs = env.num_envs
        agent._setup_model()
        agent._restore(header, tensors)
        if env is not None:
            agent.set_env(env, force_reset=force_reset)
        return agent

    def _restore(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Put a file's state into this agent; ValueError when its shapes do not fit."""
        weights = {
            k.removeprefix("policy/"): v for k, v in tensors.items() if k.startswith("policy/")
        }
        try:
            self.policy.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the saved weights do not fit this network: {error}") from error
        with torch.no_grad():
            for name, value in self._extra_tensors().items():
                value.copy_(tensors[f"extra/{name}"])
        for name, optimizer in self._optimizers().items():
            prefix = f"optimizer/{name}"
            _unpack_optimizer(optimizer, header["optimizers"][name], prefix, tensors)
        for name, value in header["counters"].items():
            setattr(self, name, value)
        self.metrics.restore(
            {k.removeprefix("metrics/"): v for k, v in tensors.items() if k.startswith("metrics/")},
            self.device,
        )
        state = tensors["generator"]
        if state.shape == self.generator.get_state().shape:  # else it comes from another device
            self.generator.set_state(state)
