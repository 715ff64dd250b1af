"""The kernels of a network as a device's work: arithmetic for each SM by tile, bytes to move.

A convolution is an implicit matrix product (Chetlur et al., cuDNN, arXiv:1410.0759): M output
pixels by N output channels, K = input channels per group times the window. A kernel cuts it into
blocks of a fixed tile that SMs take one after another, so time goes in whole waves of blocks. Which
tile a builder takes is not known: it times all, so we take the menu's minimum. Each entry rises
with M, N and K, hence so does the minimum.

Channels are stored in whole vectors: 32 of them in an int8 tensor for tensor cores (TensorRT's
format CHW32), 16 bytes otherwise. A narrow int8 tensor so takes the memory of a wider one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Kind = Literal[
    "conv", "depthwise", "grouped", "transposed", "dilated", "gemm", "attention", "pool", "resize",
    "pointwise", "reduction", "softmax", "across", "norm", "copy", "shuffle", "gather", "sort",
    "reformat", "recurrent", "other",
]  # fmt: skip
Precision = Literal["fp32", "fp16", "bf16", "int8"]  # what a weakly typed builder may choose

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
ALIGNMENT = {"fp32": 4, "fp16": 8, "bf16": 8, "int8": 32, "fp8": 16}
"""Channels that are stored and multiplied together: 16 bytes, but TensorRT's int8 tensors for
tensor cores have 32 (its format CHW32)."""
FIRST_CHANNELS = 4  # an image of 3 channels has a layout of its own, of 4
DEPTH_BYTES = 32  # of K in one tensor-core instruction: 32 int8, 16 fp16, 8 TF32
STEP_BYTES = 64  # of K, which a block loads and multiplies between two barriers
PROLOGUE_STEPS = 4  # three loads before the first multiplication, and the outputs' way out
RESIDENT_OUTPUTS, MOST_RESIDENT = 32768, 4
"""Accumulators of an SM's registers, and blocks that share it: while one waits, another works."""
MENU = (
    (256, 128), (256, 64), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32),
    (64, 32), (32, 64), (32, 128),
)  # fmt: skip
SPLITS = (1, 2, 4, 8)
SPLIT_KINDS = ("gemm", "recurrent")
VECTOR_KINDS = ("depthwise",)
PRODUCT_KINDS = ("conv", "dilated", "grouped", "transposed", "gemm", "recurrent")
PARTIAL_BYTES = 8  # a float32 partial sum of split K is written and read


@dataclass(frozen=True)
class Kernel:
    """One launch, or several of the same work.

    `reads` and `writes` give the bytes of each activation by its tensor: what one kernel writes
    another reads under the same name, so a consumer can judge what stays in L2. The parts of a
    concatenation that costs nothing are read one by one, and written so where it is the network's
    output. `weight_bytes` are of the weight, of one bias for each output channel where there is a
    bias, and of the constants of a pointwise or normalising kernel; scales of int8 are left out.

    `in_channels` and `out_channels` of a matrix product are its inner and its last size; `groups`
    is the number of products where neither side is a constant. The three precisions are those of
    the first input, the weight and the first output; arithmetic runs at that of the input.
    `kernel_size`, `stride` and `dilation` have one entry for each image axis, none elsewhere.

    A recurrent layer has a launch for each of its `steps`, which waits for the last one and reads
    the weights again: the product of input and state, side by side, with the weights of all gates,
    in `groups` directions at once. Its MACs and activations are those of all steps.
    """

    name: str
    kind: Kind
    input_precision: str
    weight_precision: str
    output_precision: str
    macs: int
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    weight_bytes: int
    shape: tuple[int, ...]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    nodes: tuple[str, ...]
    steps: int = 1

    @property
    def read_bytes(self) -> int:
        """Of activations."""
        return sum(self.reads.values())

    @property
    def written_bytes(self) -> int:
        """Of activations."""
        return sum(self.writes.values())


class Product(NamedTuple):
    """`groups` matrix products of M x K by K x N, channels padded to the alignment."""

    m: int
    n: int
    k: int
    groups: int


class Work(NamedTuple):
    """For each entry of the menu, of the busiest SM.

    `operations`: waves x tile x K, in operations (two per multiply-add). `steps`: of K, one after
    another, however few the blocks are. `operands`: bytes that the tiles load, every tap of a
    window anew. `partial`: bytes of split K over all SMs.
    """

    operations: Array
    steps: Array
    operands: Array
    partial: Array


_SPLIT = np.array([(*tile, split) for split in SPLITS for tile in MENU], np.float64)
_WHOLE = np.array([(*tile, 1) for _ in SPLITS for tile in MENU], np.float64)  # of the same shape
_ZERO = np.zeros(len(_SPLIT))


def padded(channels: int, alignment: int) -> int:
    """Channels rounded up to whole operand rows; of an image's few, to whole rows of 4 at most."""
    row = min(FIRST_CHANNELS, alignment) if channels <= FIRST_CHANNELS else alignment
    return -(-channels // row) * row


def product_of(kernel: Kernel, alignment: int, packing: int = 1, step: int = 1) -> Product:
    """The matrix product of a convolution or product kernel, of a recurrent one that of a step.

    Groups of fewer than `packing` channels are put together as in a block-diagonal weight. A `step`
    of K lies in one tap of a window: the channels of each fill whole ones, but for an image's few.
    """
    window = math.prod(kernel.kernel_size)
    groups, inner, outer = kernel.groups, kernel.in_channels, kernel.out_channels
    if kernel.kernel_size:
        inner, outer = inner // groups, outer // groups
    m = -(-kernel.macs // (kernel.steps * groups * inner * outer * window))
    packed = max(1, packing // max(inner, outer)) if groups > 1 and kernel.kernel_size else 1
    n, k = padded(outer * packed, alignment), padded(inner * packed, alignment)
    if window > 1 and k > FIRST_CHANNELS:
        k = -(-k // step) * step
    if kernel.kind == "transposed":  # each input pixel gives a window of outputs
        n *= window
    else:
        k *= window
    return Product(m, n, k, -(-groups // packed))


@lru_cache(maxsize=1 << 16)
def gpu_work(product: Product, sms: int, size: int, splits: bool) -> Work:
    """Of a matrix product on tensor cores.

    Args:
        product: M, N, K and groups.
        sms: streaming multiprocessors.
        size: bytes of an operand.
        splits: K may be split over blocks, as matrix products do; convolutions do not.
    """
    m, n, k, groups = product
    rows, columns, split = (_SPLIT if splits else _WHOLE).T
    blocks = np.ceil(m / rows) * np.ceil(n / columns) * groups * split
    step = STEP_BYTES // size
    steps = np.ceil(k / split / step)
    resident = np.clip(RESIDENT_OUTPUTS // (rows * columns), 1, MOST_RESIDENT)
    serial = np.ceil(blocks / (sms * resident)) * (steps + PROLOGUE_STEPS)
    depth = np.ceil(blocks / sms) * steps * step
    partial = np.where(split > 1, PARTIAL_BYTES * split * float(m) * n * groups, 0.0)
    return Work(2 * depth * rows * columns, serial, depth * (rows + columns) * size, partial)


def even_work(operations: float, sms: int) -> Work:
    """Of arithmetic that spreads over all SMs without a remainder."""
    return Work(np.full(len(_SPLIT), operations / sms), _ZERO, _ZERO, _ZERO)


def kernel_work(kernel: Kernel, sms: int, tile: int, cpu: bool) -> Work:
    """Of any kernel.

    Args:
        kernel: whose input precision sets the alignment on a GPU.
        sms: streaming multiprocessors; cores of a CPU.
        tile: channels of a CPU's vector.
        cpu: products have no tiles but the vector's.
    """
    if kernel.kind not in PRODUCT_KINDS or not kernel.macs:
        return even_work(2.0 * kernel.macs, sms)
    if cpu:
        return even_work(2.0 * kernel.steps * math.prod(product_of(kernel, tile)), sms)
    precision = kernel.input_precision if kernel.input_precision in BYTES else "fp32"
    size = BYTES[precision]
    product = product_of(kernel, ALIGNMENT[precision], DEPTH_BYTES // size, STEP_BYTES // size)
    work = gpu_work(product, sms, size, kernel.kind in SPLIT_KINDS)
    return Work(*(kernel.steps * part for part in work)) if kernel.steps > 1 else work


def stacked(rows: Sequence[Work]) -> Work:
    """[menu, kernels] of several kernels, whose minima over the menu are those of whole rows."""
    return Work(*(np.stack(column, axis=1) for column in zip(*rows, strict=True)))


LINEAR = ("fp32",)  # stored as the file has it
IMAGE_AXES = 4  # batch, channels, height, width
ROWS = ("gemm", "attention", "recurrent")  # whose tensors have the channels last, and no vectors


def traffic(
    kernels: Sequence[Kernel], capacity: float, vectors: bool = True
) -> tuple[Array, Array]:
    """Bytes of each kernel from DRAM and from L2.

    A tensor is in L2 as far as the capacity goes, less what was moved since it was written; what a
    kernel writes goes there as far as the capacity goes. Weights were last read one inference ago;
    those of a recurrent layer also one step ago.

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
    plain = {tensor: size for kernel in kernels for tensor, size in kernel.writes.items()}
    written: dict[str, float] = {}
    moved = 0.0
    whole = sum(kernel.weight_bytes + kernel.read_bytes for kernel in kernels)
    dram, l2 = np.zeros(len(kernels)), np.zeros(len(kernels))
    for index, kernel in enumerate(kernels):
        l2[index] = min(float(kernel.weight_bytes), max(capacity - whole, 0.0))
        dram[index] = kernel.weight_bytes - l2[index]
        held = min(float(kernel.weight_bytes), capacity)
        l2[index] += (kernel.steps - 1) * held
        dram[index] += (kernel.steps - 1) * (kernel.weight_bytes - held)
        for tensor in kernel.reads:
            size = float(kernel.reads[tensor])
            if tensor in stored:  # a slice reads a share of it
                size *= stored[tensor] / plain[tensor]
            room = capacity - (moved - written[tensor]) if tensor in written else 0.0
            kept = min(size, max(room, 0.0))
            l2[index] += kept
            dram[index] += size - kept
        moved += kernel.weight_bytes + kernel.read_bytes
        for tensor in kernel.writes:
            kept = min(stored[tensor], capacity)
            l2[index] += kept
            dram[index] += stored[tensor] - kept
            written[tensor] = moved
    return dram, l2


def stored_bytes(kernel: Kernel, size: int) -> float:
    """What a tensor of `size` bytes that this kernel writes takes, with its channels in vectors."""
    precision = kernel.output_precision
    if len(kernel.shape) != IMAGE_AXES or kernel.kind in ROWS or precision in LINEAR:
        return float(size)
    channels = kernel.shape[1]
    return size * padded(channels, ALIGNMENT.get(precision, 1)) / channels
