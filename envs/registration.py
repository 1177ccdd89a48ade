"""The ids of the on-device environments, and making one from its id.

Importing `gumbelrl.envs` registers them with Gymnasium; `gymnasium.make("gumbelrl.envs:ID")` does
both in one call. (Gymnasium reads no entry points since 1.0, so something must be imported.) This
module loads neither torch nor Stable-Baselines3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from gumbelrl.envs.on_device import OnDeviceEnv

NAMESPACE = "gumbelrl/"

# id -> "module:class". The one list that ids are looked up in: a stored configuration can name an
# id, never a module.
_TASKS: dict[str, str] = {}


def register_on_device(id: str, task: str, max_episode_steps: int | None) -> None:
    """Make an `OnDeviceEnv` reachable by id: `gymnasium.make`, `make_vec`, `make_driver`.

    Args:
        id: "namespace/Name-v0".
        task: "module:Class"; imported, and its action space checked, when it is first made.
        max_episode_steps: the time limit that Gymnasium applies; the class's own.

    Raises:
        ValueError: `task` does not read "module:Class".
    """
    if not all(task.partition(":")):
        raise ValueError(f"task must be 'module:Class', got {task!r}")
    _TASKS[id] = task
    if id in gymnasium.registry:
        return
    gymnasium.register(
        id,
        entry_point="gumbelrl.envs.single:SingleEnv",
        vector_entry_point="gumbelrl.envs.vector:OnDeviceVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"task": id},
    )


def on_device_ids() -> list[str]:
    """Ids of the registered on-device environments."""
    return sorted(_TASKS)


def find_on_device_id(id: str) -> str | None:
    """The full id for an id with or without "gumbelrl/"; None for any other environment."""
    for candidate in (id, NAMESPACE + id):
        if candidate in _TASKS:
            return candidate
    return None


def make_task(id: str, **kwargs: Any) -> OnDeviceEnv:
    """The task of an id such as "gumbelrl/CartPole-v1", or "CartPole-v1" for short.

    Raises:
        ValueError: unknown id, arguments that the task refuses, or a task whose action space does
            not count its `nvec` from 0.
    """
    found = find_on_device_id(id)
    if found is None:
        raise ValueError(f"no on-device environment {id!r}; there are {', '.join(on_device_ids())}")
    module, _, name = _TASKS[found].partition(":")
    try:
        task = getattr(import_module(module), name)(**kwargs)
    except TypeError as error:
        raise ValueError(f"{found} refuses its arguments {kwargs}: {error}") from error
    from gumbelrl.envs.on_device import check_task  # brings torch, as the task did

    return check_task(task)


for _name, _task, _steps in (
    ("CartPole-v1", "cartpole:CartPole", 500),
    ("Acrobot-v1", "acrobot:Acrobot", 500),
    ("MountainCar-v0", "mountain_car:MountainCar", 200),
    ("Pendulum-v1", "pendulum:Pendulum", 200),
    ("CoupledControl-v0", "coupled_control:CoupledControl", 50),
    ("SwitchedLQR-v0", "switched_lqr:SwitchedLQR", 30),
    ("Inventory-v0", "inventory:Inventory", 50),
    ("SpeakerListener-v0", "speaker_listener:SpeakerListener", 5),
):
    register_on_device(NAMESPACE + _name, f"gumbelrl.envs.{_task}", _steps)
