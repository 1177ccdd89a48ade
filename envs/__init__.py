"""Environments: any Gymnasium id, vectorised and checked; and our own, batched and differentiable.

Names are imported when they are first used, so `import gumbelrl.envs` registers the on-device
environments with Gymnasium and loads neither torch nor Stable-Baselines3.

| name | what it is |
|---|---|
| `make_env`, `make_vec_env`, `nearest_ids` | any Gymnasium environment, by id |
| `ActionMaskInfo` | action masks of either convention, in every info |
| `BinnedActions` | continuous actions as a choice of K values each |
| `read_statistics`, `write_statistics`, `freeze_statistics` | of environments that normalise |
| `rebuild` | environments closed and made anew behind their agent |
| `FiniteCheck`, `MakeEnvError`, `NonFiniteError` | what can go wrong there |
| `OnDeviceEnv`, `columns` | a task as pure functions of tensors |
| `BatchedDriver`, `Step`, `make_driver` | its episodes: seeds, time limits, autoreset |
| `SingleEnv`, `OnDeviceVectorEnv`, `OnDeviceVecEnv` | the same for Gymnasium, Stable-Baselines3 |
| `make_task`, `on_device_ids`, `register_on_device` | the list of ids |
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gumbelrl.envs.registration import make_task, on_device_ids, register_on_device

if TYPE_CHECKING:
    from gumbelrl.envs.action_masks import ActionMaskInfo
    from gumbelrl.envs.binned_actions import BinnedActions
    from gumbelrl.envs.driver import BatchedDriver, NonFiniteError, Step
    from gumbelrl.envs.make import (
        FiniteCheck,
        MakeEnvError,
        make_driver,
        make_env,
        make_vec_env,
        nearest_ids,
    )
    from gumbelrl.envs.normalization import (
        freeze_statistics,
        read_statistics,
        write_statistics,
    )
    from gumbelrl.envs.on_device import OnDeviceEnv, columns
    from gumbelrl.envs.rebuilding import rebuild
    from gumbelrl.envs.single import SingleEnv
    from gumbelrl.envs.vec_env import OnDeviceVecEnv
    from gumbelrl.envs.vector import OnDeviceVectorEnv

_HOMES = {
    "ActionMaskInfo": "action_masks",
    "BatchedDriver": "driver",
    "BinnedActions": "binned_actions",
    "NonFiniteError": "driver",
    "Step": "driver",
    "FiniteCheck": "make",
    "MakeEnvError": "make",
    "make_driver": "make",
    "make_env": "make",
    "make_vec_env": "make",
    "nearest_ids": "make",
    "OnDeviceEnv": "on_device",
    "freeze_statistics": "normalization",
    "read_statistics": "normalization",
    "write_statistics": "normalization",
    "rebuild": "rebuilding",
    "columns": "on_device",
    "SingleEnv": "single",
    "OnDeviceVecEnv": "vec_env",
    "OnDeviceVectorEnv": "vector",
}

__all__ = [
    "ActionMaskInfo",
    "BatchedDriver",
    "BinnedActions",
    "FiniteCheck",
    "MakeEnvError",
    "NonFiniteError",
    "OnDeviceEnv",
    "OnDeviceVecEnv",
    "OnDeviceVectorEnv",
    "SingleEnv",
    "Step",
    "columns",
    "freeze_statistics",
    "make_driver",
    "make_env",
    "make_task",
    "make_vec_env",
    "nearest_ids",
    "on_device_ids",
    "read_statistics",
    "rebuild",
    "register_on_device",
    "write_statistics",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
