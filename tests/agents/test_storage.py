"""Spaces as data."""

import numpy as np
import pytest
from gumbelrl.agents.storage import decode_space, encode_space
from gymnasium import spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.float32([1.1, np.inf]), (2,)),
        spaces.Box(np.float64([[0.1]]), np.float64([[1e300]]), dtype=np.float64),
        spaces.Box(0, 255, (3, 2), np.uint8),
        spaces.Box(np.zeros((2, 2), bool), np.array([[True, False], [True, True]]), dtype=bool),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5], start=[1, 0]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((3,)),
        spaces.MultiBinary((2, 3)),
    ],
)
def test_a_space_comes_back_as_it_was(space):
    assert decode_space(encode_space(space)) == space
