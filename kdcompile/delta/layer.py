"""The encodings of one tensor's change, and the tensor that is decoded from each.

    0 same    the base's tensor
    1 exact   the new tensor's own bytes: integers, and what a half cannot hold
    2 half    the change in fp16
    3 step    integers times one step; a large step leaves few that are not 0
    4 rank    a sum of outer products of integer columns, each with a scale in fp32

What is made is the same to the last bit on every machine: integers, and one IEEE 754 operation
after another on float64, each rounded, in a fixed order and without BLAS.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompile.delta import packing
from kdcompile.delta.packing import corrupt

SAME, EXACT, HALF, STEP, RANK = range(5)
KINDS = ("same", "exact", "half", "step", "rank")
WIDE, MIDDLE = 2, 16  # columns before which a column has 8 bits, and 4; 2 after them
MOST_COLUMNS = 64
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One tensor's change as it is written.

    kind: index of `KINDS`; stream: its bytes; bits: of an integer of `step`; step: its size, a
    decimal of few digits; rank: columns of `rank`; error: |made - new| / |new - base| as measured.
    """

    kind: int
    stream: bytes = b""
    bits: int = 0
    step: float = 0.0
    rank: int = 0
    error: float = 0.0

    @property
    def cost(self) -> int:
        """Bytes of the stream and about what its record takes."""
        return len(self.stream) + (8 if self.kind == SAME else 24)

    def record(self) -> list[Any]:
        """Everything but the stream, as JSON: kind, bytes, error, and the kind's own numbers."""
        numbers: dict[int, list[Any]] = {STEP: [self.bits, self.step], RANK: [self.rank]}
        own = numbers.get(self.kind, [])
        return [self.kind, len(self.stream), float(f"{self.error:.2g}"), *own]


def parse(record: Any, stream: bytes) -> Layer:
    """The layer of a record that anybody may have written.

    Raises:
        KDError: `delta-corrupt`.
    """
    kind, _, error, *own = record
    wanted = {SAME: 0, EXACT: 0, HALF: 0, STEP: 2, RANK: 1}
    if type(kind) is not int or len(own) != wanted.get(kind) or not _is_number(error):
        raise corrupt(f"a record of it is {str(record)[:40]}")
    if kind == STEP:
        bits, step = own
        if type(bits) is not int or bits not in packing.BITS or not _is_number(step):
            raise corrupt(f"a step of {str(bits)[:20]} bits")
        return Layer(kind, stream, bits=bits, step=float(step), error=error)
    if kind == RANK and (type(own[0]) is not int or not 0 < own[0] <= MOST_COLUMNS):
        raise corrupt(f"a rank of {str(own[0])[:20]}")
    return Layer(kind, stream, rank=own[0] if own else 0, error=error)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def column_bits(index: int) -> int:
    """Bits of an integer of a column, counted from 0."""
    return 8 if index < WIDE else 4 if index < MIDDLE else 2


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: a convolution's is [C_out, C_in k k]."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // max(1, rows)


def raw_size(layer: Layer, base: Tensor) -> int:
    """Bytes of the layer's stream before it was squeezed, by the base's shape alone."""
    count = base.numel()
    if layer.kind == RANK:
        sides = sum(as_matrix(tuple(base.shape)))
        return sum(4 + packing.packed_size(sides, column_bits(i)) for i in range(layer.rank))
    sizes = {
        SAME: 0,
        EXACT: count * base.element_size(),
        HALF: 2 * count,
        STEP: packing.packed_size(count, layer.bits or 8),
    }
    return sizes[layer.kind]


def rebuild(layer: Layer, base: Tensor) -> Tensor:
    """The new tensor, of the base's shape and type.

    Raises:
        KDError: `delta-corrupt`, the stream is not of this tensor.
    """
    if layer.kind > EXACT and not base.is_floating_point():
        raise corrupt(f"a {KINDS[layer.kind]} of integers")
    if layer.rank > min(as_matrix(tuple(base.shape))):
        raise corrupt(f"a rank of {layer.rank} in a tensor of {tuple(base.shape)}")
    data = packing.release(layer.stream, raw_size(layer, base))
    if layer.kind == SAME or not base.numel():
        return base.clone()
    if layer.kind == EXACT:
        whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return whole.view(base.dtype).reshape(base.shape)
    with np.errstate(all="ignore"):  # an edited step overflows, and the result's hash tells
        return rounded(values(base) + change(layer, data, tuple(base.shape)), base.dtype)


def change(layer: Layer, data: bytes, shape: tuple[int, ...]) -> Floats:
    """The change of a tensor of a shape, of `half`, `step` or `rank`."""
    if layer.kind == HALF:
        return np.frombuffer(data, "<f2").astype(np.float64).reshape(shape)
    count = math.prod(shape)
    if layer.kind == STEP:
        found = packing.unpack(data, count, layer.bits) * np.float64(layer.step)
        return np.asarray(found.reshape(shape))
    rows, columns = as_matrix(shape)
    total, at = np.zeros((rows, columns)), 4 * layer.rank
    scales = np.frombuffer(data[:at], "<f4").astype(np.float64)
    for index, scale in enumerate(scales):
        bits = column_bits(index)
        size = packing.packed_size(rows + columns, bits)
        column = packing.unpack(data[at : at + size], rows + columns, bits)
        total += scale * np.multiply.outer(column[:rows], column[rows:])
        at += size
    return total.reshape(shape)


def values(tensor: Tensor) -> Floats:
    """A tensor of any float type in float64, exactly."""
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy())


def rounded(found: Floats, dtype: torch.dtype) -> Tensor:
    """Float64 to a tensor of a type, to the nearest; of 16 bits by way of float32."""
    if dtype == torch.float64:
        return torch.from_numpy(np.array(found))
    return torch.from_numpy(np.asarray(found.astype(np.float32))).to(dtype)
