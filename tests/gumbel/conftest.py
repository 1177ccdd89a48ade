"""One thread for everything here: the sizes are small and the machine is shared."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels then run on the CPU, in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
