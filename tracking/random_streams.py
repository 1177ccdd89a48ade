"""The global random streams of Python, NumPy and torch as JSON data."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Where the streams stand."""
    version, keys, position, *gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    python = random.getstate()
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [version, keys.tolist(), position, *gauss],  # type: ignore[union-attr]
        "torch": torch.get_rng_state().tolist(),
        # Asking CUDA for its state would start it where it is not in use.
        "cuda": [s.tolist() for s in torch.cuda.get_rng_state_all()] if _cuda_runs() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from `random_state()`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python[0], tuple(python[1]), python[2]))
    np.random.set_state((numpy[0], np.array(numpy[1], np.uint32), *numpy[2:]))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    cuda = [torch.tensor(s, dtype=torch.uint8) for s in state.get("cuda", ())]
    if cuda and torch.cuda.device_count() == len(cuda):  # else a machine with other devices
        torch.cuda.set_rng_state_all(cuda)


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
