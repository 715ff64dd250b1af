"""Small integers as bytes: several a byte where they are small enough, then deflated.

Huffman codes alone are at least a bit a symbol; of two or four integers in a symbol they come as
near to the entropy as an arithmetic coder does.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError

BITS = (2, 4, 8)
WHERE = "the delta"  # until the reader says which file
Integers = NDArray[np.int64]


def largest(bits: int) -> int:
    """The largest integer of so many bits; the smallest is its negative."""
    return int(2 ** (bits - 1) - 1)


def bits_for(values: Integers) -> int | None:
    """The fewest bits that hold every value, None where 8 are too few."""
    most = int(np.abs(values).max(initial=0))
    return next((bits for bits in BITS if most <= largest(bits)), None)


def pack(values: Integers, bits: int) -> bytes:
    """Integers [N] of `bits` each as ceil(N bits / 8) bytes, the first in the lowest bits."""
    each = 8 // bits
    raised = np.zeros(-(-values.size // each) * each, np.uint8)
    raised[: values.size] = values + largest(bits)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    return bytes((raised.reshape(-1, each) << shifts).sum(1, dtype=np.uint8).tobytes())


def unpack(data: bytes, count: int, bits: int) -> Integers:
    """The `count` integers that `pack` took; `data` is as long as those need."""
    raised = np.frombuffer(data, np.uint8)[:, None]
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    fields = (raised >> shifts) & np.uint8(2**bits - 1)
    return fields.reshape(-1)[:count].astype(np.int64) - largest(bits)


def packed_size(count: int, bits: int) -> int:
    """How many bytes `pack` gives."""
    return -(-count * bits // 8)


def squeeze(data: bytes) -> bytes:
    """The shorter of the data and their deflated form; the length tells which it is."""
    found = [data]
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        found.append(coder.compress(data) + coder.flush())
    return min(found, key=len)


def release(stream: bytes, size: int) -> bytes:
    """The `size` bytes that `squeeze` took; never more than that is held.

    Raises:
        KDError: `delta-corrupt`, the stream gives another number of bytes.
    """
    if len(stream) == size:
        return stream
    coder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = coder.decompress(stream, size + 1)
    except zlib.error as error:
        raise corrupt("a stream of it is no deflated data") from error
    if len(data) != size or not coder.eof or coder.unused_data:
        raise corrupt(f"a stream of it does not give the {size} bytes that its tensor needs")
    return data


def corrupt(what: str) -> KDError:
    """The error of a delta that is not as `make` wrote it; the reader adds the file."""
    return KDError(
        "delta-corrupt",
        f"the delta is damaged: {what}",
        where=WHERE,
        fix="copy the file again, or make it again: kdcompile delta make BASE NEW -o FILE",
    )
