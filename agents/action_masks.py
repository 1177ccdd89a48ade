"""Which actions the environments allow, read from their infos and from nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gumbelrl.agents.action_spaces import FactoredActions
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor


class ActionMasks:
    """Masks of a `VecEnv`'s N environments, kept in step with its observations.

    | call | returns |
    |---|---|
    | `of(obs)` | masks of the observation that actions are chosen for now |
    | `follow(new_obs, dones, infos)` | masks of what the step led to, final observations included |

    Both are bool [N, ΣK] on the CPU, True where allowed, or None where the environments have none.

    Args:
        env: the agent's environments.
        actions: its action space.
    """

    def __init__(self, env: VecEnv, actions: FactoredActions) -> None:
        self.env = env
        self._actions = actions
        self._obs: Any = None  # the observation that `_masks` belong to
        self._masks: Tensor | None = None

    def of(self, obs: Any) -> Tensor | None:
        """Masks of `obs`, the `VecEnv`'s last observation.

        An observation that did not come from the last step came from a reset, whoever made it.

        Raises:
            ValueError: a mask of another shape, or one that allows nothing.
        """
        if obs is not self._obs:
            self._masks = self._read(self.env.unwrapped.reset_infos)
            self._obs = obs
            if self._masks is None and self.env.has_attr("action_masks"):
                raise ValueError(
                    "the environment has action_masks(), but its infos carry no mask, so an "
                    "episode's last mask would be lost: make it with gumbelrl.envs.make_vec_env, "
                    "or wrap each one in gumbelrl.envs.ActionMaskInfo"
                )
        return self._masks

    def follow(self, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Tensor | None:
        """Masks after a step, and go on to `new_obs`.

        Where an episode ended, the mask returned is that of its final observation, which a
        truncated episode's bootstrap needs, and the one kept for `of` is the new episode's.

        Raises:
            ValueError: as `of`, or masks that come and go.
        """
        had_masks = self._masks is not None
        # A terminal state may allow nothing: no action is taken there, and no value asked for.
        terminal = [
            bool(done) and not info.get("TimeLimit.truncated", False)
            for done, info in zip(dones, infos, strict=True)
        ]
        reached = self._read(infos, terminal)
        if (reached is not None) != had_masks:
            raise ValueError(
                "the environment's masks come and go: info['action_mask'] must be in every info "
                "or in none"
            )
        self._obs, self._masks = new_obs, reached
        if reached is not None and dones.any():
            fresh = self.env.unwrapped.reset_infos
            started = self._read([fresh[i] if dones[i] else infos[i] for i in range(len(infos))])
            self._masks = started
        return reached

    def _read(self, infos: Any, terminal: list[bool] | None = None) -> Tensor | None:
        found = ["action_mask" in info for info in infos]
        if not any(found):
            return None
        if not all(found):
            raise ValueError(
                f"environment {found.index(False)} gives no info['action_mask'], others do; all "
                "of them must"
            )
        rows = [
            self._row(info["action_mask"], i, terminal is not None and terminal[i])
            for i, info in enumerate(infos)
        ]
        return torch.from_numpy(np.stack(rows))

    def _row(self, mask: Any, index: int, terminal: bool) -> np.ndarray:
        """One environment's mask, bool [ΣK], all factors side by side."""
        parts = mask if isinstance(mask, tuple | list) else (mask,)
        row = np.concatenate([np.ravel(part) for part in parts])
        width = self._actions.n_categories
        if len(row) != width:
            raise ValueError(
                f"environment {index} gives a mask of {len(row)} entries, its actions need {width}:"
                f" one per category of nvec={list(self._actions.nvec)}, all factors side by side"
            )
        row = row.astype(bool)
        if terminal:
            return np.ones_like(row) if _dead_ends(row, self._actions).any() else row
        if _dead_ends(row, self._actions).any():
            raise ValueError(
                f"environment {index} gives a mask that allows nothing in some factor: "
                f"{row.astype(int).tolist()} for nvec={list(self._actions.nvec)}; every state that "
                "goes on needs an allowed action"
            )
        return row


class MaskedPrediction(BaseAlgorithm):
    """What an agent needs so that no masked action is taken: masks to act by, and `predict`'s."""

    action_masks: ActionMasks | None = None

    def _masks_of_last_obs(self) -> Tensor | None:
        """Masks of the observations to act on now, bool [N, ΣK] on the CPU, or None."""
        env = self.get_env()
        assert env is not None
        if self.action_masks is None or self.action_masks.env is not env:
            self.action_masks = ActionMasks(env, FactoredActions(self.action_space))
        return self.action_masks.of(self._last_obs)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's `predict` with the argument that sb3-contrib's MaskablePPO has.

        Args:
            observation: of one environment, or a batch [N, ...] of them.
            state, episode_start: passed through.
            deterministic: the most likely action instead of a sampled one.
            action_masks: bool [ΣK] or [N, ΣK], all factors side by side; None allows everything.

        Raises:
            ValueError: masks of another width, or that allow nothing.
        """
        return self.policy.predict(  # type: ignore[call-arg]
            observation, state, episode_start, deterministic, action_masks=action_masks
        )


def mask_tensor(action_masks: Any, actions: FactoredActions, device: torch.device) -> Tensor | None:
    """Masks that a caller of `predict` gives, [ΣK] or [N, ΣK], as bool [N, ΣK].

    Raises:
        ValueError: another number of entries, or a factor in which nothing is allowed.
    """
    if action_masks is None:
        return None
    masks = np.asarray(action_masks).astype(bool)
    if masks.size % actions.n_categories:
        raise ValueError(
            f"action_masks must have {actions.n_categories} entries per environment, got shape "
            f"{list(masks.shape)}"
        )
    masks = masks.reshape(-1, actions.n_categories)
    dead_ends = _dead_ends(masks, actions)
    if dead_ends.any():
        row = int(dead_ends.argmax())
        raise ValueError(
            f"action_masks allow nothing in some factor of row {row}: "
            f"{masks[row].astype(int).tolist()} for nvec={list(actions.nvec)}"
        )
    return torch.from_numpy(masks).to(device)


def _dead_ends(masks: np.ndarray, actions: FactoredActions) -> np.ndarray:
    """Masks [..., ΣK] -> bool [...], true where some factor has no allowed category."""
    allowed = np.logical_or.reduceat(masks, actions.offsets, axis=-1)  # [..., M]
    return np.asarray(~allowed.all(-1))
