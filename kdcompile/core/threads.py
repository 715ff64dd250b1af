"""A limit of the CPU threads that PyTorch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU a thread alone, where several would wait for each other longer than they compute.

    Beside other work that keeps the cores busy each operation waits milliseconds for all threads.
    What runs later, such as a backward pass, has them again.
    """
    if device.type != "cpu" or torch.get_num_threads() == 1:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
