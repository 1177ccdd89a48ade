"""Saving and loading agents without pickle: reading a file executes nothing.

What a file says is data: classes are looked up by the caller, never by the file, and spaces, names,
shapes and dtypes are checked before anything is used. The file itself is `agent_file`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gumbelrl.agents.agent_file import read_agent_file, write_agent_file
from gumbelrl.agents.checks import check_observation_space
from gumbelrl.agents.episode_counter import EpisodeCounter
from gumbelrl.agents.optimization import flush_denormals
from gumbelrl.agents.running_metrics import RunningMetrics
from gumbelrl.gumbel import Estimator
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor


class DivergenceError(ValueError):
    """Training has left the numbers: a loss or a gradient is NaN or infinite."""


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
        # A number and a shape of one axis are different spaces to Gymnasium.
        n = space.n if isinstance(space.n, int) else list(space.shape)
        return {"kind": "MultiBinary", "n": n}
    if isinstance(space, spaces.Dict):
        parts = {key: encode_space(part) for key, part in space.spaces.items()}
        return {"kind": "Dict", "spaces": parts}
    raise ValueError(f"cannot store the space {space}: known are Box, Discrete, Multi* and Dict")


def decode_space(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `encode_space`."""
    kind = data["kind"]
    if kind == "Box":
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        # A float's str is its shortest exact form, so the bounds come back to the bit.
        read = "True".__eq__ if dtype.kind == "b" else dtype.type
        bounds = [
            np.array([read(x) for x in data[side]], dtype).reshape(shape)
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
    if kind == "Dict":
        return spaces.Dict({key: decode_space(part) for key, part in data["spaces"].items()})
    raise ValueError(f"unknown space kind {kind!r} in the file")


def _pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str, out: dict[str, Tensor]) -> Any:
    """Moments go to `out`; the rest, hyper-parameters per group, is returned for JSON."""
    state = optimizer.state_dict()
    for index, moments in state["state"].items():
        for key, value in moments.items():
            out[f"{prefix}/{index}/{key}"] = torch.as_tensor(value)
    return [group | {"lr": float(group["lr"])} for group in state["param_groups"]]


def _unpack_optimizer(
    optimizer: torch.optim.Optimizer, groups: Any, prefix: str, tensors: dict[str, Tensor]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}/"):
            index, key = name.removeprefix(f"{prefix}/").split("/")
            # torch takes moments of any shape, and fails or broadcasts at the first step.
            shape = () if key == "step" else parameters[int(index)].shape
            if value.shape != shape:
                raise ValueError(
                    f"the saved optimiser does not fit this network: {name} has shape "
                    f"{tuple(value.shape)}, its parameter {tuple(shape)}; it is of other settings, "
                    "or of an older gumbelrl"
                )
            state.setdefault(int(index), {})[key] = value
    # Where the rate lives is this device's affair, not the file's.
    rates = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, (rate, capturable) in zip(optimizer.param_groups, rates, strict=True):
        group["capturable"] = capturable
        if isinstance(rate, Tensor):
            group["lr"] = rate.fill_(group["lr"])


def _check_fits(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse stored tensors unless they are `own` in shape and dtype, before any is used."""
    for name, value in own.items():
        if name not in stored:
            raise ValueError(
                f"the saved weights do not fit this network: the file holds no {name}; it is of "
                "other settings, or of an older gumbelrl"
            )
        found = stored[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"the saved weights do not fit this network: {name} is {found.dtype} "
                f"{tuple(found.shape)} in the file, {value.dtype} {tuple(value.shape)} here"
            )


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
        {
            "self",
            "__class__",
            "policy",
            "env",
            "device",
            "verbose",
            "tensorboard_log",
            "_init_setup_model",
        }
    )
    # What the stored tensors were made for.
    _FIXED_ON_LOAD = frozenset({"policy_kwargs", "estimator", "ent_coef", "n_seeds", "n_envs"})
    generator: torch.Generator
    estimator: Estimator | None = None
    episodes: EpisodeCounter | None = None  # where the agent counts them on the device
    metrics: RunningMetrics

    def _remember_settings(self, arguments: dict[str, Any]) -> None:
        """Keep what the constructor was given; `arguments` are its `locals()`, read first."""
        self._settings = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in arguments.items()
            if name not in self._NOT_STORED
        }
        policy = arguments["policy"]
        self._policy_name = policy if isinstance(policy, str) else policy.__name__

    def _prepare_device(self) -> None:
        """One generator on the agent's device draws actions, noise and replay indices."""
        flush_denormals(self.device)
        self.generator = torch.Generator(self.device)
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)
        self.metrics = RunningMetrics()
        self.policy.generator = self.generator  # type: ignore[assignment]

    @classmethod
    def _as_vec_env(cls, env: Any) -> VecEnv:
        """An environment, or the id of one, as the `VecEnv` the agent trains on."""
        return cls._wrap_env(maybe_make_env(env, 0))

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_observation_space(env.observation_space)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Reseed everything that draws, the agent's own generator included."""
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "generator"):
            self.generator.manual_seed(seed)

    def _report_episodes(self, wait: bool = True) -> None:
        """Hand episodes counted on the device to Stable-Baselines3's statistics."""
        if self.episodes is not None:
            self._episode_num += self.episodes.report(self.ep_info_buffer, wait)

    def _record_metrics(self) -> None:
        """Hand the means since the last row to the logger.

        Raises:
            DivergenceError: one of them is NaN or infinite.
        """
        for name, mean in self.metrics.take().items():
            if not math.isfinite(mean):
                raise DivergenceError(
                    f"training diverged: {name} is {mean} at {self.num_timesteps} env steps. "
                    "Lower learning_rate or max_grad_norm, or scale the rewards"
                )
            self.logger.record(name, mean)

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
        self._report_episodes()
        tensors = {f"policy/{k}": v for k, v in self.policy.state_dict().items()}
        tensors |= {f"extra/{k}": v.detach() for k, v in self._extra_tensors().items()}
        if self.estimator is not None:
            tensors |= {f"estimator/{k}": v for k, v in self.estimator.state_dict().items()}
        tensors |= {f"metrics/{k}": v for k, v in self.metrics.tensors().items()}
        tensors["generator"] = self.generator.get_state()
        groups = {
            name: _pack_optimizer(optimizer, f"optimizer/{name}", tensors)
            for name, optimizer in self._optimizers().items()
        }
        header = {
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
        write_agent_file(path, header, tensors)

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
        changes = (custom_objects or {}) | kwargs
        policy = changes.pop("policy", header["policy"])
        if isinstance(policy, str) and policy not in cls.policy_aliases:
            raise ValueError(
                f"{path} was saved with the policy class {policy}, which the file only names; "
                f"give it: {cls.__name__}.load(path, policy={policy})"
            )
        fixed = sorted(
            name
            for name in cls._FIXED_ON_LOAD & changes.keys()
            if changes[name] != header["settings"].get(name)
        )
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)} cannot change on load: the stored tensors were made for "
                f"{ {name: header['settings'].get(name) for name in fixed} }; make a new agent"
            )
        try:
            observation_space = decode_space(header["observation_space"])
            action_space = decode_space(header["action_space"])
        except (KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{path} is damaged: its spaces cannot be read: {error}") from error
        if env is not None:
            env = cls._as_vec_env(env)
            check_for_correct_spaces(env, observation_space, action_space)
        agent = cls(  # type: ignore[call-arg]
            policy=policy,
            env=None,
            device=device,
            _init_setup_model=False,
            **(header["settings"] | changes),
        )
        agent.observation_space, agent.action_space = observation_space, action_space
        agent.n_envs = header["n_envs"] if env is None else env.num_envs
        agent._setup_model()
        agent._restore(header, tensors)
        if "seed" in changes:
            agent.set_random_seed(changes["seed"])
        if env is not None:
            agent.set_env(env, force_reset=force_reset)
        return agent

    def _restore(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Put a file's state into this agent; ValueError when its shapes do not fit."""
        own = self.policy.state_dict()
        extra = {f"extra/{name}": value for name, value in self._extra_tensors().items()}
        _check_fits(tensors, {f"policy/{name}": value for name, value in own.items()} | extra)
        unknown = sorted(header["counters"].keys() - set(self.COUNTERS))
        if unknown:
            raise ValueError(f"the file counts what this agent does not: {', '.join(unknown)}")
        try:
            self.policy.load_state_dict(_below("policy/", tensors))
            if self.estimator is not None:
                self.estimator.load_state_dict(_below("estimator/", tensors))
        except RuntimeError as error:
            raise ValueError(f"the saved weights do not fit this network: {error}") from error
        with torch.no_grad():
            for name, value in extra.items():
                value.copy_(tensors[name])
        for name, optimizer in self._optimizers().items():
            prefix = f"optimizer/{name}"
            _unpack_optimizer(optimizer, header["optimizers"][name], prefix, tensors)
        for name, value in header["counters"].items():
            setattr(self, name, value)
        self.metrics.restore(_below("metrics/", tensors), self.device)
        generator_state = tensors["generator"]
        if generator_state.shape == self.generator.get_state().shape:  # else of another device
            self.generator.set_state(generator_state)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
