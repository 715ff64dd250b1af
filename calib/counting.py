"""Which implementation counts magnitudes: numpy, or the kernel where a GPU is."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcompile.calib.histogram import BINS, Counter, Counts, numpy_counts


class Counting(NamedTuple):
    """A counter, and the name that the calibration table keeps of it."""

    name: str
    counter: Counter


NUMPY = Counting("numpy", numpy_counts)


def best_counting() -> Counting:
    """The kernel `absmax_histogram` on the first GPU, if it can run there; else numpy."""
    if not _has_driver():  # to know it costs less than to import torch
        return NUMPY
    import torch

    from kdcompile.kernels._runtime import triton_problem

    if torch.cuda.is_available() and triton_problem() is None:
        return Counting("triton", TritonCounts(torch.device("cuda")))
    return NUMPY


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class TritonCounts:
    """`numpy_counts` by the kernel, equal to the last count.

    ONNX Runtime gives activations in host memory, so each is copied to the device first: the copy
    reads and moves every value once, and only the counting itself is saved.
    """

    def __init__(self, device: Any) -> None:
        self._device = device

    def __call__(self, values: NDArray[np.float32], span: float) -> Counts:
        """The counts; see `numpy_counts`."""
        import torch

        from kdcompile.kernels.absmax_histogram import absmax_histogram

        own = np.require(values.reshape(-1), np.float32, ["C", "W"])  # torch warns of read-only
        limit = torch.tensor(span, dtype=torch.float32, device=self._device)
        _, counts = absmax_histogram(torch.from_numpy(own).to(self._device), limit, BINS)
        found: Counts = counts.cpu().numpy()
        return found
