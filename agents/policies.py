"""Categorical policies: observation -> FactoredCategorical over the action's factors."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gumbelrl.agents.action_masks import mask_tensor
from gumbelrl.agents.action_spaces import FactoredActions
from gumbelrl.agents.checks import check_choice, check_int
from gumbelrl.agents.critics import CRITICS
from gumbelrl.agents.features import ImageExtractor
from gumbelrl.agents.networks import check_net_arch, ensemble_mlp, mlp
from gumbelrl.gumbel import FactoredCategorical
from gumbelrl.gumbel.choices import DoesNotApply
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor


def check_extractor(space: spaces.Space, extractor: type[BaseFeaturesExtractor]) -> None:
    """Raise when the policy's features extractor cannot read such observations."""
    if issubclass(extractor, CombinedExtractor) and not isinstance(space, spaces.Dict):
        raise DoesNotApply(
            f"'MultiInputPolicy' is for dictionaries, and the observations are {space}: use "
            "'MlpPolicy', or 'CnnPolicy' for images"
        )


class CategoricalPolicy(BasePolicy):
    """A perceptron from features to the logits of M categorical factors.

    Args:
        observation_space: the environment's.
        action_space: Discrete, MultiDiscrete or MultiBinary.
        lr_schedule: Stable-Baselines3's schedule; unused here, the agents own their optimisers.
        net_arch: hidden widths of every network of the agent.
        activation: one of `networks.ACTIVATIONS`.
        features_extractor_class: Stable-Baselines3 features extractor.
    """

    _masks: Tensor | None = None  # of the call to `predict` that is running

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        net_arch: Sequence[int] = (64, 64),
        activation: str = "relu",
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_extractor(observation_space, features_extractor_class)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
        )
        self.actions = FactoredActions(action_space)
        self.net_arch, self.activation = net_arch, activation
        self.features_extractor = self.make_features_extractor()
        self.features_dim = self.features_extractor.features_dim
        # Vectors of the networks' dtype are features as they are: no need to look at each batch.
        self._vectors = (
            type(self.features_extractor) is FlattenExtractor
            and isinstance(observation_space, spaces.Box)
            and len(observation_space.shape) == 1
        )
        self.actor = mlp(self.features_dim, net_arch, self.actions.n_categories, activation)
        self.action_start: Tensor
        self.register_buffer("action_start", torch.as_tensor(self.actions.start), persistent=False)
        self.generator: torch.Generator | None = None  # set by the agent; draws every action
        self.forward_temperature: float | Tensor = 1.0  # set by the agent, which may schedule it

    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor
    ) -> Tensor:
        """Preprocessed observation through an extractor, [B, D]."""
        if self._vectors and isinstance(obs, Tensor) and obs.dtype == torch.float32:
            return obs
        return super().extract_features(obs, features_extractor)

    def features(self, obs: PyTorchObs) -> Tensor:
        """Preprocessed observation through the actor's extractor, [B, D]."""
        return self.extract_features(obs, self.features_extractor)

    def dist(
        self,
        obs: PyTorchObs,
        mask: Tensor | None = None,
        *,
        uniform_mix: float | Tensor = 0.0,
        validate: bool | None = False,
    ) -> FactoredCategorical:
        """The action distribution of each observation, batch shape [B].

        Args:
            obs: preprocessed as Stable-Baselines3's `obs_to_tensor` does.
            mask: bool [B, ΣK], True where allowed.
            uniform_mix: share of uniformly random allowed actions mixed in, in [0, 1].
            validate: look at the values, which waits for a GPU.
        """
        logits = self.actor(self.features(obs))  # (B, ΣK)
        return self.dist_of(logits, mask, uniform_mix=uniform_mix, validate=validate)

    def dist_of(
        self,
        logits: Tensor,
        mask: Tensor | None = None,
        *,
        uniform_mix: float | Tensor = 0.0,
        validate: bool | None = False,
    ) -> FactoredCategorical:
        """`dist` of what the actor gave, [B, ΣK]."""
        return FactoredCategorical(
            logits,
            self.actions.nvec,
            mask,
            uniform_mix=uniform_mix,
            forward_temperature=self.forward_temperature,
            validate=validate,
        )

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's `predict`, with the masks of the observations.

        Args:
            observation: of one environment, or a batch [N, ...] of them.
            state, episode_start: of recurrent policies; passed through and ignored.
            deterministic: the most likely action instead of a sampled one.
            action_masks: bool [ΣK] or [N, ΣK], all factors side by side; None allows everything.
        """
        self._masks = mask_tensor(action_masks, self.actions, self.device)
        try:
            return super().predict(observation, state, episode_start, deterministic)
        finally:
            self._masks = None

    def set_training_mode(self, mode: bool) -> None:
        """Stable-Baselines3's walks over every module at every step; this one on a change."""
        if self.training != mode:
            super().set_training_mode(mode)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        dist = self.dist(observation, self._masks)
        indices = dist.mode() if deterministic else dist.sample(self.generator)  # (B, M)
        return indices + self.action_start


class GumbelSACPolicy(CategoricalPolicy):
    """Actor, critics and target critics of GumbelSAC.

    Args:
        critic: "heads" (one output per action, Discrete only), "action_in" (perceptron on
            observation and one-hot), "multilinear" (linear in each factor given the others), or
            "auto": heads on Discrete, action_in elsewhere.
        n_critics: ensemble size; targets take the minimum over it.
        layer_norm: normalise the critics' hidden layers.

    The other arguments are `CategoricalPolicy`'s.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        net_arch: Sequence[int] = (64, 64),
        activation: str = "relu",
        critic: str = "auto",
        n_critics: int = 2,
        layer_norm: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation,
            features_extractor_class,
            features_extractor_kwargs,
        )
        check_choice("critic", critic, ("auto", *CRITICS))
        check_int("n_critics", n_critics, minimum=1)
        if critic == "auto":
            critic = "heads" if self.actions.n_factors == 1 else "action_in"
        self.critic_features_extractor = self.make_features_extractor()
        self.critic = CRITICS[critic](
            self.features_dim,
            self.actions.nvec,
            net_arch,
            n_critics,
            activation,
            layer_norm,
        )
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        self.critic_target_features_extractor = deepcopy(
            self.critic_features_extractor
        ).requires_grad_(False)

    def critic_features(self, obs: PyTorchObs) -> Tensor:
        """Preprocessed observation through the critics' extractor, [B, D]."""
        return self.extract_features(obs, self.critic_features_extractor)

    def target_features(self, obs: PyTorchObs) -> Tensor:
        """Preprocessed observation through the target critics' extractor, [B, D]."""
        return self.extract_features(obs, self.critic_target_features_extractor)


class GumbelSACCnnPolicy(GumbelSACPolicy):
    """`GumbelSACPolicy` for images and grids; arguments are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": ImageExtractor, **kwargs})


class GumbelSACMultiInputPolicy(GumbelSACPolicy):
    """`GumbelSACPolicy` for dictionaries of arrays; arguments are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


class ReinforcePolicy(CategoricalPolicy):
    """Actor and value baseline of REINFORCE; arguments are `CategoricalPolicy`'s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.value_features_extractor = self.make_features_extractor()
        self.value_net = mlp(self.features_dim, self.net_arch, 1, self.activation)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """The baseline V(s), [B, 1]."""
        return self.value_net(self.extract_features(obs, self.value_features_extractor))

    def forward(self, obs: PyTorchObs) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled actions [B, M], values [B, 1] and log-probabilities [B], for rollouts."""
        dist = self.dist(obs)
        indices = dist.sample(self.generator)
        return indices + self.action_start, self.predict_values(obs), dist.log_prob(indices)


class ReinforceCnnPolicy(ReinforcePolicy):
    """`ReinforcePolicy` for images and grids; arguments are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": ImageExtractor, **kwargs})


class ReinforceMultiInputPolicy(ReinforcePolicy):
    """`ReinforcePolicy` for dictionaries of arrays; arguments are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


class ShacPolicy(BasePolicy):
    """Actors and critics of S seeds, batched; `predict` is seed number 0's.

    The activation is smooth by default, because the actor climbs the critic's slope.

    Args:
        n_members: S.

    The other arguments are `CategoricalPolicy`'s.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        net_arch: Sequence[int] = (64, 64),
        activation: str = "elu",
        n_members: int = 1,
    ) -> None:
        super().__init__(observation_space, action_space)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise DoesNotApply(f"observations must be vectors (Box), got {observation_space}")
        self.actions = FactoredActions(action_space)
        n_inputs, widths = observation_space.shape[0], check_net_arch(net_arch)
        n_logits = self.actions.n_categories
        self.actor = ensemble_mlp(n_members, n_inputs, widths, n_logits, activation)
        self.value_net = ensemble_mlp(n_members, n_inputs, widths, 1, activation)
        self.value_target = deepcopy(self.value_net).requires_grad_(False)
        self.action_start: Tensor
        self.register_buffer("action_start", torch.as_tensor(self.actions.start), persistent=False)
        self.generator: torch.Generator | None = None

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        logits = self.actor(observation.float())[0]  # (B, ΣK)
        dist = FactoredCategorical(logits, self.actions.nvec, validate=False)
        indices = dist.mode() if deterministic else dist.sample(self.generator)
        return indices + self.action_start
