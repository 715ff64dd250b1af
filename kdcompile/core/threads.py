"""How many threads of a CPU PyTorch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU a thread alone: many small operations cost several more time to meet than to compute.

    Beside other work that keeps the cores busy each waits milliseconds for the others. What runs
    later, such as a backward pass, has all threads again.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
