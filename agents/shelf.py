"""Agents from the shelf: Stable-Baselines3's and sb3-contrib's, with files that hold no pickle.

The algorithms are the libraries' own. What is added: settings that are plain data (a schedule is a
dict, an activation a name), checks that speak before training begins, and the agent file of
`gumbelrl.agents.storage`. They draw from the global random streams of NumPy and torch, which
whoever wants an exact continuation stores beside the file, as train.py does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gumbelrl.agents.checks import check_float, check_int
from gumbelrl.agents.networks import ACTIVATIONS
from gumbelrl.agents.replay_files import ReplayWriter, open_replay
from gumbelrl.agents.storage import PickleFreeAlgorithm
from gumbelrl.gumbel import Schedule, make_schedule
from gumbelrl.gumbel.choices import DoesNotApply
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

ScheduleSetting = float | dict[str, Any]
"""A number > 0, or a schedule such as {"schedule": "linear", "start": 1e-3, "end": 0}."""

_DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_COUNTS = {
    "n_steps": 1,
    "batch_size": 1,
    "n_epochs": 1,
    "buffer_size": 1,
    "learning_starts": 0,
    "target_update_interval": 1,
    "stats_window_size": 1,
}
_SHARES = (
    "gamma",
    "gae_lambda",
    "tau",
    "exploration_fraction",
    "exploration_initial_eps",
    "exploration_final_eps",
)
_FROM_ZERO = {"ent_coef": False, "vf_coef": False, "max_grad_norm": True, "target_kl": True}
"""Settings below 0 are refused, and 0 too where it says so."""


class ShelfAlgorithm(PickleFreeAlgorithm):
    """What the agents below share; mixed in before the library's class.

    Args:
        policy: a name from the library's `policy_aliases`, or a policy class.
        env: a Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`.
        settings: the library's own arguments. `policy_kwargs["activation_fn"]` may be a name:
            elu, gelu, relu, silu or tanh.

    Raises:
        ValueError: an action space that the algorithm does not serve (names the agents that do), or
            a setting out of range.
    """

    ACTION_SPACES: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Box, *_DISCRETE)
    # What a configuration may say in policy_kwargs where the library wants a class.
    POLICY_KWARGS_TYPES: ClassVar[dict[str, Any]] = {
        "activation_fn": Literal["elu", "gelu", "relu", "silu", "tanh"]
    }

    def __init__(
        self, policy: str | type[BasePolicy], env: GymEnv | str | None, **settings: Any
    ) -> None:
        self._remember_settings({"policy": policy, **settings})
        _check_settings(settings)
        if env is not None:
            env = self._as_vec_env(env)
            _check_action_space(type(self), env.action_space)
        try:
            super().__init__(policy, env, **_for_the_library(settings))  # type: ignore[arg-type]
        except AssertionError as error:  # how the library refuses
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def _setup_model(self) -> None:
        super()._setup_model()  # type: ignore[safe-super]
        self._prepare_device()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy.optimizer}

    def dump_logs(self, *arguments: Any) -> None:
        """Write one row of metrics; the policy's entropy under the name it has in our agents."""
        entropy_loss = self.logger.name_to_value.get("train/entropy_loss")
        if entropy_loss is not None:
            self.logger.record("train/entropy", -float(entropy_loss))
        super().dump_logs(*arguments)  # type: ignore[misc]


class OffPolicyShelfAlgorithm(ShelfAlgorithm):
    """With a replay that is written without pickle."""

    replay_buffer: ReplayBuffer | None
    train_freq: Any

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.train_freq.unit == TrainFrequencyUnit.EPISODE and self.n_envs > 1:
            raise ValueError(
                f"train_freq in episodes needs one environment, got n_envs={self.n_envs}; "
                "give train_freq in steps"
            )

    def save_replay_buffer(self, path: Any, earlier: Path | None = None) -> Any:
        """Write the stored transitions into a folder; nothing in it can execute.

        Args:
            path: the folder, made if missing.
            earlier: one that an earlier save has filled; chunks that are the same are linked.

        Returns:
            The sha256 of every chunk by its file's name.
        """
        assert self.replay_buffer is not None
        buffer, arrays = self.replay_buffer, _arrays(self.replay_buffer)
        # The library fills its buffer unseen, so every chunk is looked at anew.
        writer = ReplayWriter(sum(part[:1].nbytes for part in arrays.values()))
        position = {"pos": buffer.pos, "full": int(buffer.full)}
        return writer.write(path, arrays, _filled_rows(buffer), position, earlier)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Read what `save_replay_buffer` wrote; ValueError when it does not fit."""
        assert self.replay_buffer is not None
        buffer, stored = self.replay_buffer, open_replay(path)
        full, arrays = bool(stored.position["full"]), _arrays(self.replay_buffer)
        stored.check_fits(arrays, buffer.buffer_size)
        # A full ring's rows go on from its end to its start: a longer one has a gap there.
        if full and stored.rows < buffer.buffer_size:
            raise ValueError(
                f"replay in {path} does not fit: it is a full one of {stored.rows} rows, this "
                f"buffer has {buffer.buffer_size}; use the same buffer_size"
            )
        buffer.reset()
        stored.read_into(arrays)
        buffer.pos, buffer.full = int(stored.position["pos"]), full

    def cut_episodes(self) -> None:
        """The environments begin anew: no n-step return reaches over the last stored step."""
        buffer = self.replay_buffer
        if buffer is not None and (buffer.full or buffer.pos > 0):
            last = (buffer.pos - 1) % buffer.buffer_size
            buffer.timeouts[last] = np.maximum(buffer.timeouts[last], 1 - buffer.dones[last])


class PPO(ShelfAlgorithm, stable_baselines3.PPO):
    """Stable-Baselines3's PPO. (Schulman et al. 2017, arXiv 1707.06347.)

    Args:
        learning_rate: a number > 0, or a schedule such as
            `{"schedule": "linear", "start": 1e-3, "end": 0}`.
        clip_range: of the probability ratio, likewise.
        clip_range_vf: of the value's change, likewise; None does not clip it.
        settings: the library's other arguments.
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 3e-4,
        *,
        clip_range: ScheduleSetting = 0.2,
        clip_range_vf: ScheduleSetting | None = None,
        **settings: Any,
    ) -> None:
        schedules = {"clip_range": clip_range, "clip_range_vf": clip_range_vf}
        super().__init__(policy, env, learning_rate=learning_rate, **schedules, **settings)


class A2C(ShelfAlgorithm, stable_baselines3.A2C):
    """Stable-Baselines3's A2C. (Mnih et al. 2016, arXiv 1602.01783.)

    Args:
        learning_rate: as in `PPO`.
        settings: the library's other arguments.
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 7e-4,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate=learning_rate, **settings)


class MaskablePPO(ShelfAlgorithm, sb3_contrib.MaskablePPO):
    """sb3-contrib's PPO that takes no masked action. (Huang & Ontañón 2020, arXiv 2006.14171.)

    The environment names the allowed actions by a method `action_masks()`, or by
    `info["action_mask"]` when gumbelrl's `make_vec_env` made it.

    Args:
        learning_rate, clip_range, clip_range_vf: as in `PPO`.
        settings: the library's other arguments.
    """

    ACTION_SPACES: ClassVar[tuple[type[spaces.Space], ...]] = _DISCRETE

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 3e-4,
        *,
        clip_range: ScheduleSetting = 0.2,
        clip_range_vf: ScheduleSetting | None = None,
        **settings: Any,
    ) -> None:
        schedules = {"clip_range": clip_range, "clip_range_vf": clip_range_vf}
        super().__init__(policy, env, learning_rate=learning_rate, **schedules, **settings)
        if self.env is not None and not _has_masks(self.env):
            raise DoesNotApply(
                "MaskablePPO needs an environment with action masks, from a method "
                'action_masks() or info["action_mask"]; this one has none: use PPO'
            )


class DQN(OffPolicyShelfAlgorithm, stable_baselines3.DQN):
    """Stable-Baselines3's DQN. (Mnih et al. 2015; no double, dueling or prioritised variants.)

    Args:
        learning_rate: as in `PPO`.
        settings: the library's other arguments.
    """

    ACTION_SPACES: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    COUNTERS: ClassVar[tuple[str, ...]] = (*ShelfAlgorithm.COUNTERS, "_n_calls", "exploration_rate")

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 1e-4,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate=learning_rate, **settings)


class QRDQN(OffPolicyShelfAlgorithm, sb3_contrib.QRDQN):
    """sb3-contrib's quantile-regression DQN. (Dabney et al. 2018, arXiv 1710.10044.)

    Args:
        learning_rate: as in `PPO`.
        settings: the library's other arguments.
    """

    ACTION_SPACES: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    COUNTERS: ClassVar[tuple[str, ...]] = (*ShelfAlgorithm.COUNTERS, "_n_calls", "exploration_rate")

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 5e-5,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate=learning_rate, **settings)


class SAC(OffPolicyShelfAlgorithm, stable_baselines3.SAC):
    """Stable-Baselines3's SAC, for continuous actions. (Haarnoja et al. 2018, arXiv 1812.05905.)

    Args:
        learning_rate: as in `PPO`.
        settings: the library's other arguments.
    """

    ACTION_SPACES: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Box,)

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: ScheduleSetting = 3e-4,
        **settings: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate=learning_rate, **settings)

    def _setup_model(self) -> None:
        if self.target_entropy == "auto":  # the library would ask the environment for it
            self.target_entropy = -float(np.prod(self.action_space.shape or ()))
        super()._setup_model()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        named = {"actor": self.actor.optimizer, "critic": self.critic.optimizer}
        if self.ent_coef_optimizer is not None:
            named["ent_coef"] = self.ent_coef_optimizer
        return named

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {} if self.log_ent_coef is None else {"log_ent_coef": self.log_ent_coef}


def _has_masks(env: VecEnv) -> bool:
    if not is_masking_supported(env):
        env.reset()  # masks that stand in the infos show themselves with the first one
    return is_masking_supported(env)


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name, minimum in _COUNTS.items():
        if settings.get(name) is not None:
            check_int(name, settings[name], minimum=minimum)
    frequency = settings.get("train_freq", 1)
    if isinstance(frequency, list | tuple):  # with its unit
        frequency = next(iter(frequency), None)
    check_int("train_freq", frequency, minimum=1)
    if settings.get("gradient_steps", -1) != -1:  # as many as environment steps
        check_int("gradient_steps", settings["gradient_steps"], minimum=1)
    for name in _SHARES:
        if name in settings:
            check_float(name, settings[name], low=0, high=1)
    for name, open_low in _FROM_ZERO.items():
        if settings.get(name) is not None and not isinstance(settings[name], str):
            check_float(name, settings[name], low=0, open_low=open_low)
    for name in ("ent_coef", "target_entropy"):  # of SAC; "auto_0.1" begins there
        value = settings.get(name)
        if isinstance(value, str) and not re.fullmatch(r"auto(_\d+(\.\d*)?)?", value):
            raise ValueError(f"{name} must be a number or 'auto', got {value!r}")


def _check_action_space(algorithm: type[ShelfAlgorithm], space: spaces.Space) -> None:
    if isinstance(space, algorithm.ACTION_SPACES):
        return
    served = ", ".join(kind.__name__ for kind in algorithm.ACTION_SPACES)
    others = [a.__name__ for a in (SAC, DQN, QRDQN, PPO, A2C) if isinstance(space, a.ACTION_SPACES)]
    if isinstance(space, _DISCRETE):
        others.insert(0, "GumbelSAC")
    remedy = f"use {', '.join(others)}" if others else "flatten them with a wrapper"
    raise DoesNotApply(f"{algorithm.__name__} serves {served} actions, got {space}: {remedy}")


def _for_the_library(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings as the library takes them; what is given stays as it was."""
    taken = dict(settings)
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if taken.get(name) is not None:
            taken[name] = _schedule(name, taken[name])
    if isinstance(taken.get("train_freq"), list):  # how YAML and JSON write a tuple
        taken["train_freq"] = tuple(taken["train_freq"])
    policy_kwargs = deepcopy(taken.get("policy_kwargs")) or {}  # the library adds to it
    if isinstance(policy_kwargs.get("activation_fn"), str):
        name = policy_kwargs["activation_fn"]
        if name not in ACTIVATIONS:
            raise ValueError(f"activation_fn must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
        policy_kwargs["activation_fn"] = ACTIVATIONS[name]
    taken["policy_kwargs"] = policy_kwargs
    return taken


def _schedule(name: str, setting: Any) -> float | Callable[[float], float]:
    """The library's form of a schedule: a number, or a function of the remaining progress."""
    if isinstance(setting, Mapping | Schedule):
        schedule = make_schedule(setting, name, unit=True)  # a linear one may end at 0
        return lambda remaining: schedule(1.0 - remaining)
    if callable(setting):
        return setting
    return check_float(name, setting, low=0, open_low=True)


def _arrays(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """The replay's arrays by name, sharing its memory; those of a dict observation by
    `observations/key`."""
    arrays: dict[str, Tensor] = {}
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            arrays |= {f"{name}/{key}": torch.from_numpy(array) for key, array in value.items()}
        elif value is not None:
            arrays[name] = torch.from_numpy(value)
    return arrays


def _filled_rows(buffer: ReplayBuffer) -> int:
    # One row more than is filled: a memory-saving buffer keeps the last next observation there.
    return buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
