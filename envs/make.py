"""Making any Gymnasium environment by id, vectorised for Stable-Baselines3's agents."""

from __future__ import annotations

import difflib
import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gumbelrl.envs.action_masks import ActionMaskInfo
from gumbelrl.envs.driver import BatchedDriver, NonFiniteError, usable_device
from gumbelrl.envs.registration import find_on_device_id, make_task
from gumbelrl.envs.vec_env import OnDeviceVecEnv
from gumbelrl.envs.workers import WorkerEnvs
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.error import Error as GymnasiumError
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    VecTransposeImage,
)

# What to install for environments that Gymnasium does not carry: a word in the id or the entry
# point -> (the package that registers them, our extra).
_EXTRAS = {
    "box2d": ("Box2D", "box2d"),
    "mujoco": ("mujoco", "mujoco"),
    "MinAtar/": ("minatar", "minatar"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "ALE/": ("ale_py", "atari"),
}

Wrapper = str | Mapping[str, Any] | Callable[[gymnasium.Env], gymnasium.Env]


_log = logging.getLogger(__name__)


class MakeEnvError(ValueError):
    """An environment that cannot be made; the message says what was asked for and what to do."""


def make_env(
    id: str,
    *,
    wrappers: Wrapper | Sequence[Wrapper] = (),
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> gymnasium.Env:
    """Make one environment: `gymnasium.make`, the user's wrappers, then episode statistics.

    Returns and lengths are those of the wrapped environment: what the agent trains on is what is
    reported, and an episode that a wrapper ends is an episode. Action masks stand in
    `info["action_mask"]`, whichever way the environment tells them (see `ActionMaskInfo`).

    Args:
        id: a registered id, or `module:Env-v0`, which imports the module first.
        wrappers: one, or several applied in order: a callable, the import path of a wrapper class
            such as "gymnasium.wrappers.FlattenObservation", or `{"wrapper": path, **arguments}`.
        max_episode_steps: time limit in steps, >= 1; None keeps the registered one.
        render_mode: one of the environment's own.
        kwargs: passed to the environment's constructor.

    Raises:
        MakeEnvError: unknown id (names the nearest), a package that is missing (says which to
            install), arguments that the environment or a wrapper refuses, or whatever else they
            raise while they are made.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise MakeEnvError(f"max_episode_steps must be >= 1 or null, got {max_episode_steps}")
    arguments = _constructor_arguments(id, kwargs)
    if render_mode is not None:  # environments that draw nothing need not know the argument
        arguments["render_mode"] = render_mode
    try:
        with warnings.catch_warnings():  # of a mode that the environment lacks: refused below
            warnings.filterwarnings("ignore", message=".*render_mode")
            env = gymnasium.make(
                _import_registrar(id), max_episode_steps=max_episode_steps, **arguments
            )
    except DependencyNotInstalled as error:
        raise MakeEnvError(_missing_package(id, str(error))) from error
    except ModuleNotFoundError as error:
        raise MakeEnvError(f"the environment {id!r} cannot be imported: {error}") from error
    except GymnasiumError as error:
        raise MakeEnvError(_unknown_id(id, str(error))) from error
    except TypeError as error:
        raise MakeEnvError(f"{id} refuses its arguments {arguments}: {error}") from error
    except Exception as error:  # whatever a module raises on import, or a constructor
        raise MakeEnvError(f"{id} could not be made: {_brief(error)}") from error
    _check_render_mode(env, render_mode)
    if isinstance(wrappers, str | Mapping) or callable(wrappers):
        wrappers = [wrappers]
    for wrapper in wrappers:
        env = _wrap(env, wrapper)
    return Monitor(ActionMaskInfo(env))


def make_vec_env(
    id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    vectorization: str = "sync",
    wrappers: Wrapper | Sequence[Wrapper] = (),
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    normalize_obs: bool = False,
    normalize_reward: bool = False,
    gamma: float | None = None,
) -> VecEnv:
    """Make N copies of an environment that step together, for an agent to train on.

    On-device environments ("gumbelrl/..." and registered ones of the user's) are one batch of
    tensors on the CPU, unless they are wrapped or vectorised "async"; the result then has a
    `driver`, and `seed` governs the whole batch.

    Episodes restart in the same step: the observation returned with `done` is the next episode's
    first, `infos[i]["terminal_observation"]` the ended one's last, and
    `infos[i]["TimeLimit.truncated"]` tells a time limit from a termination. A NaN or infinity
    raises `NonFiniteError` before anything is stored.

    Args:
        id: as in `make_env`, like every argument that is not named here.
        n_envs: N, environments that step together, >= 1.
        seed: environment i starts from seed + i; None leaves them unseeded.
        vectorization: "sync" steps them in this process (faster for cheap environments), "async"
            in one process each.
        normalize_obs: subtract the running mean of the observations and divide by their running
            standard deviation (Stable-Baselines3's `VecNormalize`).
        normalize_reward: divide rewards by the running standard deviation of the discounted return.
        gamma: the discount of that return, in [0, 1]; None is 0.99 here and, in train.py, the
            agent's.

    Raises:
        MakeEnvError: as `make_env`; also n_envs < 1, an unknown vectorization, a gamma out of
            range, observations that are no arrays, or such as cannot be normalised.
    """
    if isinstance(n_envs, bool) or not isinstance(n_envs, int) or n_envs < 1:
        raise MakeEnvError(f"n_envs must be an integer >= 1, got {n_envs!r}")
    vectorizers = {"sync": DummyVecEnv, "async": WorkerEnvs}
    if vectorization not in vectorizers:
        raise MakeEnvError(f"vectorization must be 'sync' or 'async', got {vectorization!r}")
    if gamma is not None and not 0 <= gamma <= 1:
        raise MakeEnvError(f"gamma must be a number in [0, 1] or null, got {gamma}")

    def normalized(vec_env: VecEnv) -> VecEnv:
        if not normalize_obs and not normalize_reward:
            return vec_env
        discount = 0.99 if gamma is None else gamma
        if not normalize_obs:  # the agents would transpose images outside, and replay raw ones
            vec_env = _channels_first(vec_env)
        try:
            return VecNormalize(
                vec_env, norm_obs=normalize_obs, norm_reward=normalize_reward, gamma=discount
            )
        except ValueError as error:
            vec_env.close()
            raise MakeEnvError(f"normalize_obs=true on {id}: {error}") from error

    arguments = _constructor_arguments(id, kwargs)
    plain = not wrappers and render_mode is None and vectorization == "sync"
    ours = _on_device_id(id)
    if plain and ours is not None:
        batched = OnDeviceVecEnv(
            make_driver(ours, n_envs, max_episode_steps=max_episode_steps, **arguments)
        )
        batched.seed(seed)
        return normalized(batched)

    def make_one() -> gymnasium.Env:
        env = make_env(
            id,
            wrappers=wrappers,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            kwargs=kwargs,
        )
        _check_arrays(id, env.observation_space)
        return env

    if vectorization == "async":
        make_one().close()  # a mistake is told here, not by a worker that dies
    vec_env = FiniteCheck(vectorizers[vectorization]([make_one] * n_envs))
    if seed is not None:
        vec_env.seed(seed)
    return normalized(vec_env)


def make_driver(
    id: str,
    n_envs: int | tuple[int, ...] = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> BatchedDriver:
    """Make N copies of one of our environments as tensors on a device, differentiable.

    Args:
        id: "gumbelrl/CartPole-v1", or "CartPole-v1" for short.
        n_envs: N >= 1, or leading batch axes such as (n_seeds, N).
        device: where everything lives. On the CPU indices and states are checked in every step;
            elsewhere set `driver.validate = True` for that (it waits for the device).
        seed: of all noise.
        max_episode_steps: time limit; None keeps the environment's.
        kwargs: of the environment's constructor.

    Raises:
        MakeEnvError: unknown id, or arguments that the environment or the driver refuses.
    """
    try:
        device = usable_device(device)
        return BatchedDriver(
            make_task(id, **kwargs),
            n_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_episode_steps,
            validate=device.type == "cpu",
        )
    except ValueError as error:
        raise MakeEnvError(str(error)) from error


class FiniteCheck(VecEnvWrapper):
    """Raises `NonFiniteError` when a reward or an observation is NaN or infinite."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.env_steps = 0

    def reset(self) -> Any:
        obs = self.venv.reset()
        self._check("observation after reset", obs)
        return obs

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.env_steps += self.num_envs
        self._check("reward", rewards)
        self._check("observation", obs)
        return obs, rewards, dones, infos

    def _check(self, field: str, values: Any) -> None:
        if isinstance(values, dict):
            for key, value in values.items():
                self._check(f"{field}[{key!r}]", value)
            return
        # One pass in the ordinary case: a sum is finite unless a term is not (or it overflows).
        if values.dtype.kind != "f" or np.isfinite(values.sum()) or np.isfinite(values).all():
            return
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        place = f" at index {list(index[1:])}" if len(index) > 1 else ""
        raise NonFiniteError(
            f"the environment returned {values[index]} in its {field}{place} "
            f"(environment {index[0]}, env step {self.env_steps} since they were made); nothing "
            "was trained on it. "
            "Repair the environment, or clip in a wrapper such as "
            "gymnasium.wrappers.TransformObservation"
        )


def _check_arrays(id: str, space: spaces.Space) -> None:
    """Refuse observations that Stable-Baselines3's `VecEnv` cannot hold."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not all(isinstance(part, spaces.Tuple) or part.shape is not None for part in parts):
        raise MakeEnvError(
            f"observations of {id} must be an array or a dictionary of arrays, got {space}; nested "
            "ones need the wrapper gymnasium.wrappers.FlattenObservation"
        )


def _channels_first(vec_env: VecEnv) -> VecEnv:
    """Images as the agents' convolutions take them, which they would otherwise see to."""
    space = vec_env.observation_space
    parts: Any = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if any(is_image_space(part) and not is_image_space_channels_first(part) for part in parts):
        return VecTransposeImage(vec_env)
    return vec_env


def _constructor_arguments(id: str, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`kwargs` as a dict; refused where they name what stands beside them."""
    arguments = dict(kwargs or {})
    ours = _on_device_id(id) is not None  # their constructors describe a task: no batch, no seed
    for name in ("id", "max_episode_steps", *(("n_envs", "seed", "device") if ours else ())):
        if name in arguments:
            raise MakeEnvError(
                f"kwargs go to the environment's constructor; give {name}={arguments[name]!r} "
                "beside them"
            )
    return arguments


def _on_device_id(id: str) -> str | None:
    """The full id of an on-device environment, without the module that registers it, or None."""
    module, _, name = id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except Exception:  # Gymnasium imports it again, and its error is told
        return None
    return name if name == find_on_device_id(name) else None


def nearest_ids(id: str, n: int = 3) -> list[str]:
    """Registered ids that look most like `id`."""
    return difflib.get_close_matches(id, list(gymnasium.registry), n=n, cutoff=0.5)


def _import_registrar(id: str) -> str:
    """Import the package that registers `id`, where that is known and installed."""
    spec = gymnasium.registry.get(id)
    if spec is not None and "mujoco" in str(spec.entry_point):
        _keep_mujoco_quiet()
    for word, (module, _) in _EXTRAS.items():
        if id.startswith(word):
            try:
                package = importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise MakeEnvError(_missing_package(id, str(error))) from error
            if module == "minatar" and id not in gymnasium.registry:
                importlib.import_module("minatar.gym").register_envs()
            elif id not in gymnasium.registry:
                gymnasium.register_envs(package)
    return id


@functools.cache
def _keep_mujoco_quiet() -> None:
    """MuJoCo prints its warnings, and adds them to a file in the working folder, whenever a model
    is loaded; environments are made anew many times, and each warning is told once."""
    try:
        import mujoco
    except ImportError:  # told when the environment is made
        return
    mujoco.set_mju_user_warning(functools.cache(lambda text: _log.info("MuJoCo: %s", text)))


def _missing_package(id: str, reason: str) -> str:
    spec = gymnasium.registry.get(id)
    traits = f"{id} {spec.entry_point if spec else ''} {reason}".lower()
    for word, (_, extra) in _EXTRAS.items():
        if word.lower() in traits:
            return f'{id} needs a package that is missing; run: pip install "gumbelrl[{extra}]"'
    return f"{id} needs a package that is missing: {reason}"


def _unknown_id(id: str, reason: str) -> str:
    near = nearest_ids(id)
    if near:
        hint = f"the nearest registered ids are {', '.join(near)}"
    else:
        hint = "nothing registered looks like it; `module:Env-v0` imports your module first"
    return f"no environment {id!r}: {hint} ({reason.splitlines()[0]})"


def _check_render_mode(env: gymnasium.Env, render_mode: str | None) -> None:
    """Gymnasium only warns of a mode that the environment does not know."""
    modes = list(env.metadata.get("render_modes", []))
    if "rgb_array" in modes and "human" not in modes:
        modes.append("human")  # Gymnasium shows the frames in a window itself
    if render_mode is not None and render_mode.removesuffix("_list") not in modes:
        names = ", ".join(modes) or "none"
        raise MakeEnvError(f"no render_mode {render_mode!r}; the environment has: {names}")


def _brief(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _wrap(env: gymnasium.Env, wrapper: Wrapper) -> gymnasium.Env:
    if callable(wrapper):
        return wrapper(env)
    arguments = {"wrapper": wrapper} if isinstance(wrapper, str) else dict(wrapper)
    path = arguments.pop("wrapper", None)
    if not isinstance(path, str) or "." not in path:
        raise MakeEnvError(
            "a wrapper must be an import path such as gymnasium.wrappers.FlattenObservation, or "
            f"a mapping {{wrapper: path, ...arguments}}, got {wrapper!r}"
        )
    module, _, name = path.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module raises on import
        raise MakeEnvError(f"cannot import the wrapper {path!r}: {_brief(error)}") from error
    try:
        return factory(env, **arguments)
    except Exception as error:
        raise MakeEnvError(f"the wrapper {path} refuses {arguments}: {_brief(error)}") from error
