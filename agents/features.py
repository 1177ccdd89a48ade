"""Features extractors that Stable-Baselines3 does not have."""

from __future__ import annotations

import torch
from gumbelrl.gumbel.choices import DoesNotApply
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

SMALLEST_ATARI = 36  # pixels a side below which the strides of NatureCNN leave nothing


class ImageExtractor(BaseFeaturesExtractor):
    """Convolutions over an image [B, C, H, W], or over a small grid [B, H, W, C] -> [B, D].

    Images (uint8, channels first as `VecTransposeImage` hands them) of 36 pixels or more a side go
    through Stable-Baselines3's `NatureCNN`; smaller ones, and grids of any dtype with their
    channels last, through one 3x3 convolution and one dense layer. (Mnih et al. 2015; Young and
    Tian 2019, MinAtar, arXiv 1903.03176.)

    Args:
        observation_space: a Box of three axes.
        features_dim: D; None is 512 for NatureCNN, 128 for a grid.

    Raises:
        ValueError: observations without three axes.
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int | None = None) -> None:
        shape = observation_space.shape
        if not isinstance(observation_space, spaces.Box) or len(shape) != 3:
            raise DoesNotApply(
                f"'CnnPolicy' needs images or grids of three axes, got {observation_space}: use "
                "'MlpPolicy'"
            )
        self.channels_last = not is_image_space(observation_space, check_channels=False)
        height, width = shape[:2] if self.channels_last else shape[1:]
        channels = shape[2] if self.channels_last else shape[0]
        atari = not self.channels_last and min(height, width) >= SMALLEST_ATARI
        super().__init__(observation_space, features_dim or (512 if atari else 128))
        self.net: nn.Module
        if atari:
            self.net = NatureCNN(observation_space, self.features_dim)
        else:
            self.net = nn.Sequential(
                nn.Conv2d(channels, 16, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(16 * height * width, self.features_dim),
                nn.ReLU(),
            )

    def forward(self, observations: Tensor) -> Tensor:
        if self.channels_last:
            observations = torch.movedim(observations, -1, 1)
        return self.net(observations)
