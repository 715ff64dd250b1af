"""Arrays, cells and structs of a MATLAB 5 file, read from bytes that anybody may have written.

SciPy's compiled reader (1.17) trusts types and sizes: an unknown type of numbers, or
cells in cells, ends the process by a segmentation fault, and a cell that declares 30,000 x 30,000
parts takes 7 GB. To refuse such files first, every tag must be read, which is all that is here.
Nothing is made that the bytes of the file do not hold.

Format: "MAT-File Format", The MathWorks, 2019, chapter 1. A header of 128 bytes, then elements of a
tag (type and size, 8 bytes) and data; a matrix holds elements, a compressed one holds a matrix.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER, TAG = 128, 8
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
CELL, STRUCT, NUMERIC = 1, 2, range(6, 16)  # classes of a matrix
MOST, DEEPEST = 1 << 26, 16  # bytes of a file once decompressed; matrices in matrices

Element = tuple[int, bytes]


def read_mat(content: bytes) -> dict[str, Any]:
    """The variables by name.

    A numeric array comes as float64 of its dimensions, a cell as a list of its values and a struct
    as a list of dicts, one each, both in MATLAB's order; what is neither is None.

    Raises:
        ValueError: with what is wrong.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    found = {}
    for kind, data in _elements(content[HEADER:], order, padded=False):
        inner = _decompressed(data) if kind == COMPRESSED else data
        matrices = _elements(inner, order) if kind == COMPRESSED else iter([(kind, inner)])
        for of, matrix in matrices:
            if of == MATRIX:
                name, value = _matrix(matrix, order, DEEPEST)
                found[name] = value
    return found


def _elements(content: bytes, order: str, *, padded: bool = True) -> Iterator[Element]:
    """Type and data one after the other; within a matrix they start at multiples of 8 bytes."""
    place = 0
    while place < len(content):
        if place + TAG > len(content):
            raise ValueError("it ends within a tag")
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start = place + TAG
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + TAG // 2
            if size > TAG // 2:
                raise ValueError(f"{size} bytes cannot be in a tag")
            place += TAG
        else:
            place = start + size
            place += -place % TAG if padded else 0
        if start + size > len(content):
            raise ValueError("an element reaches over the end")
        yield kind, content[start : start + size]


def _decompressed(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        made = stream.decompress(content, MOST)
    except zlib.error as error:
        raise ValueError(f"a compressed element is torn: {error}") from error
    if not stream.eof:
        raise ValueError(f"a compressed element is torn or over {MOST} bytes")
    return made


def _matrix(content: bytes, order: str, deepest: int) -> tuple[str, Any]:
    """Name and value of a matrix."""
    if deepest == 0:
        raise ValueError("matrices are nested too deep")
    if not content:  # how MATLAB writes an empty one
        return "", np.zeros((0, 0))
    elements = _elements(content, order)
    flags = int(_taken(elements, UINT32, order)[0])
    dimensions = [int(n) for n in _taken(elements, INT32, order)]
    name = _text(next(elements, (0, b"")))
    if min(dimensions) < 0:
        raise ValueError("a dimension is negative")
    count, own = math.prod(dimensions), flags & 0xFF
    if own == CELL:
        return name, [_inner(elements, order, deepest) for _ in _so_many(count, content)]
    if own == STRUCT:
        return name, _structs(elements, count, order, deepest, content)
    if own not in NUMERIC:
        return name, None
    values = _numbers(next(elements, (0, b"")), order)
    if len(values) != count:
        raise ValueError(f"an array of {dimensions} has {len(values)} values")
    return name, values.astype(np.float64).reshape(dimensions, order="F")


def _structs(
    elements: Iterator[Element], count: int, order: str, deepest: int, content: bytes
) -> list[dict[str, Any]]:
    length = int(_taken(elements, INT32, order)[0])
    names = _text(next(elements, (0, b"")), strip=False)
    if length < 1 or len(names) % length:
        raise ValueError("the names of a struct's fields are torn")
    fields = [names[i : i + length].split("\0")[0] for i in range(0, len(names), length)]
    return [
        {field: _inner(elements, order, deepest) for field in fields}
        for _ in _so_many(count, content)
    ]


def _so_many(count: int, content: bytes) -> range:
    """A range over the parts of a matrix, each of which has at least a tag."""
    if count * TAG > len(content):
        raise ValueError(f"{count} parts are not in {len(content)} bytes")
    return range(count)


def _inner(elements: Iterator[Element], order: str, deepest: int) -> Any:
    kind, data = next(elements, (0, b""))
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} stands for a matrix")
    return _matrix(data, order, deepest - 1)[1]


def _taken(elements: Iterator[Element], kind: int, order: str) -> NDArray[Any]:
    """The next element's numbers, of a type, at least one."""
    found, data = next(elements, (0, b""))
    values = _numbers((found, data), order)
    if found != kind or not len(values):
        raise ValueError(f"an element of type {found} stands for one of type {kind}")
    return values


def _numbers(element: Element, order: str) -> NDArray[Any]:
    kind, data = element
    if kind not in NUMBERS:
        raise ValueError(f"an element of type {kind} has no numbers")
    number = np.dtype(order + NUMBERS[kind])
    if len(data) % number.itemsize:
        raise ValueError("an array's last number is torn")
    return np.frombuffer(data, number)


def _text(element: Element, *, strip: bool = True) -> str:
    kind, data = element
    if kind != INT8:
        raise ValueError(f"an element of type {kind} stands for a name")
    text = data.decode("latin-1")
    return text.split("\0")[0] if strip else text
