"""Histograms of what the policy does, now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gumbelrl.gumbel import FactoredCategorical
from gumbelrl.tracking.error_text import brief
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.distributions import Bernoulli

OBSERVATIONS = 256  # that the policy is asked about

_log = logging.getLogger(__name__)


class HistogramCallback(BaseCallback):
    """Every `every` env steps: the policy on its last observations, and its gradients' norms.

    | key | values |
    |---|---|
    | `histograms/action_probability` | π(a|s) of every action of every factor |
    | `histograms/logits` | the network's outputs that these come from |
    | `histograms/action_value` | Q(s, a) of agents that have no policy network |
    | `histograms/gradient_norm` | ‖∂loss/∂W‖ of each parameter tensor W in the last update |

    Nothing is drawn and nothing changed, so training is the same without it. Between two of them a
    step costs a comparison; before one the last observations are kept.

    Args:
        every: env steps between histograms, >= 1.
        log: `log(histograms, env_steps)`.

    Raises:
        ValueError: `every` below 1.
    """

    def __init__(self, every: int, log: Callable[[Mapping[str, Tensor], int], None]) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be >= 1 env step, got {every}")
        self.every = every
        self.log = log
        self._number = 0
        self._observations: list[Any] = []
        self._masks: list[Any] = []

    def _on_training_start(self) -> None:
        self._number = self.model.num_timesteps // self.every

    def _on_step(self) -> bool:
        env_steps = self.model.num_timesteps
        if env_steps >= (self._number + 1) * self.every - OBSERVATIONS:
            try:
                self._look(env_steps)
            except Exception as error:  # a policy of the user's own may be built otherwise
                self._number = 2**62
                _log.warning("no histograms of this policy: %s. Training goes on.", brief(error))
        return True

    def _look(self, env_steps: int) -> None:
        self._keep()
        number = env_steps // self.every
        if number > self._number:
            self._number = number
            found = self._histograms()
            self._observations, self._masks = [], []
            self.log(found, env_steps)

    def _keep(self) -> None:
        """The observations that the policy acts on here, as it sees them, and their masks."""
        model: Any = self.model
        if self.locals.get("driver") is not None:  # tensors that never left their device
            self._observations.append(self.locals["obs"].detach())
            return
        self._observations.append(model.policy.obs_to_tensor(model._last_obs)[0])
        if hasattr(model, "_masks_of_last_obs"):
            mask = model._masks_of_last_obs()
        else:
            mask = self.locals.get("action_masks")
        if mask is not None:
            self._masks.append(torch.as_tensor(mask, device=model.device))

    @torch.no_grad()
    def _histograms(self) -> dict[str, Tensor]:
        policy: Any = self.model.policy
        axis = -2 if self.locals.get("driver") is not None else 0  # [S, N, D]: beside one another
        observations = _joined(self._observations, axis)
        masks = torch.cat(self._masks) if self._masks else None
        found = _of_actions(policy, observations, masks)
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        if gradients:
            found["gradient_norm"] = torch.stack(torch._foreach_norm(gradients))
        return {f"histograms/{name}": values.flatten() for name, values in found.items()}


def _joined(observations: list[Any], axis: int) -> Any:
    if isinstance(observations[0], dict):
        return {key: torch.cat([o[key] for o in observations], axis) for key in observations[0]}
    return torch.cat(observations, axis)


def _of_actions(policy: Any, observations: Any, masks: Tensor | None) -> dict[str, Tensor]:
    """What the policy thinks of its actions, by name; nothing where they are continuous."""
    if hasattr(policy, "actions"):  # ours
        if hasattr(policy, "dist"):
            dist = policy.dist(observations, masks)
        else:
            dist = FactoredCategorical(
                policy.actor(observations), policy.actions.nvec, validate=False
            )
        return {"action_probability": dist.probs, "logits": dist.logits}
    if hasattr(policy, "q_net"):
        return {"action_value": policy.q_net(observations)}
    if hasattr(policy, "quantile_net"):
        return {"action_value": policy.quantile_net(observations).mean(1)}
    if not hasattr(policy, "get_distribution"):
        return {}
    given = {} if masks is None else {"action_masks": masks}
    held = policy.get_distribution(observations, **given)
    parts = getattr(held, "distributions", None) or getattr(held, "distribution", None)
    parts = parts if isinstance(parts, list) else [parts]
    if not all(isinstance(p, torch.distributions.Categorical | Bernoulli) for p in parts):
        return {}
    return {
        "action_probability": torch.cat([part.probs.flatten() for part in parts]),
        "logits": torch.cat([part.logits.flatten() for part in parts]),
    }
