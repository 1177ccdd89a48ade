"""One place for action masks: `info["action_mask"]` of every step and reset."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class ActionMaskInfo(gymnasium.Wrapper):
    """Writes the mask of the observation just returned into `info["action_mask"]`.

    Environments tell which actions are allowed in one of two ways: a method `action_masks()`
    (sb3-contrib's convention) or `info["action_mask"]` itself (Gymnasium's Taxi). With this wrapper
    both are there, whichever the environment has; the method counts where it has both. Inside a
    `VecEnv`, an ended episode's last info holds the mask of its final observation, and
    `reset_infos` that of the next episode's first.

    An environment without masks is left as it is.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._method = env.get_wrapper_attr("action_masks") if _has_method(env) else None
        self._mask: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._with_mask(info)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, self._with_mask(info)

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get("action_mask") if self._method is None else self._method()
        if mask is not None:
            # A copy: environments may return the same array and go on writing to it.
            info = {**info, "action_mask": _flat(mask)}
        self._mask = info.get("action_mask")
        return info

    @property
    def action_masks(self) -> Any:
        """A function that returns the current mask, bool [ΣK], all factors side by side.

        Raises:
            AttributeError: the environment has no masks, so that `hasattr` says so.
        """
        if self._method is None and self._mask is None:
            raise AttributeError(f"{self.env} has no action masks")
        return self._current_mask

    def _current_mask(self) -> np.ndarray:
        return _flat(self._method()) if self._method is not None else self._mask


def _flat(mask: Any) -> np.ndarray:
    """All factors side by side, bool [ΣK]; a MultiDiscrete space may have one mask per factor."""
    parts = mask if isinstance(mask, tuple | list) else (mask,)
    return np.concatenate([np.ravel(part) for part in parts]).astype(bool)


def _has_method(env: gymnasium.Env) -> bool:
    try:
        return callable(env.get_wrapper_attr("action_masks"))
    except AttributeError:
        return False
