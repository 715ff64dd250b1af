"""What the kernels of a network move: bytes of each from DRAM and from L2.

Channels are stored in whole vectors: 32 of them in an int8 tensor for tensor cores (TensorRT's
format CHW32), 16 bytes otherwise. A narrow int8 tensor so takes the memory of a wider one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdcompile.latency_model.tiling import ALIGNMENT, Array, padded

if TYPE_CHECKING:
    from kdcompile.latency_model.kernels import Kernel

LINEAR = ("fp32",)  # stored as the file has it
IMAGE_AXES = 4  # batch, channels, height, width
ROWS = ("gemm", "attention")  # whose tensors have the channels last, and no vectors


def traffic(
    kernels: Sequence["Kernel"], capacity: float, vectors: bool = True
) -> tuple[Array, Array]:
    """Bytes of each kernel from DRAM and from L2.

    A tensor is in L2 as far as the capacity goes, less what was moved since it was written; what a
    kernel writes goes there as far as the capacity goes. Weights were last read one inference ago.

    Args:
        kernels: of one inference.
        capacity: bytes of L2 that a tensor may take.
        vectors: images are stored in whole vectors of channels, as on a GPU.
    """
    stored = {
        tensor: stored_bytes(kernel, size) if vectors else float(size)
        for kernel in kernels
        for tensor, size in kernel.writes.items()
    }
    written: dict[str, float] = {}
    moved = 0.0
    whole = sum(kernel.weight_bytes + kernel.read_bytes for kernel in kernels)
    dram, l2 = np.zeros(len(kernels)), np.zeros(len(kernels))
    for place, kernel in enumerate(kernels):
        l2[place] = min(float(kernel.weight_bytes), max(capacity - whole, 0.0))
        dram[place] = kernel.weight_bytes - l2[place]
        for tensor in kernel.reads:
            size = stored.get(tensor, float(kernel.reads[tensor]))
            room = capacity - (moved - written[tensor]) if tensor in written else 0.0
            kept = min(size, max(room, 0.0))
            l2[place] += kept
            dram[place] += size - kept
        moved += kernel.weight_bytes + kernel.read_bytes
        for tensor in kernel.writes:
            kept = min(stored[tensor], capacity)
            l2[place] += kept
            dram[place] += stored[tensor] - kept
            written[tensor] = moved
    return dram, l2


def stored_bytes(kernel: "Kernel", size: int) -> float:
    """What a tensor of `size` bytes that this kernel writes takes, with its channels in vectors."""
    precision = kernel.output_precision
    if len(kernel.shape) != IMAGE_AXES or kernel.kind in ROWS or precision in LINEAR:
        return float(size)
    channels = kernel.shape[1]
    return size * padded(channels, ALIGNMENT.get(precision, 1)) / channels
