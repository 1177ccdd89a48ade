"""Independent seeds from one."""

import zlib

import numpy as np


def final_evaluation_seed(seed: int) -> int:
    """Seed of the environments of a run's final evaluation, from the run's seed."""
    return derive_seed(seed, "final evaluation")


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in [0, 2**31) from a run's seed and the names of what it is for.

    `derive_seed(seed, "evaluation", 3)` is the same on every machine and unrelated to
    `derive_seed(seed, "evaluation", 4)` and to `derive_seed(seed + 1, "evaluation", 3)`.

    Args:
        parts: non-negative integers and strings, in an order that matters.

    Raises:
        ValueError: no parts, or a negative integer.
    """
    if not parts:
        raise ValueError("derive_seed needs at least one part, such as the run's seed")
    words: list[int] = []
    for part in parts:
        if isinstance(part, str):
            # A tag tells "3" from 3; no tag is 0, because SeedSequence pads with zeros.
            words += [1, zlib.crc32(part.encode())]
        elif part < 0:
            raise ValueError(f"the parts of a seed must be >= 0, got {part}")
        else:
            words += [2, int(part)]
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)
