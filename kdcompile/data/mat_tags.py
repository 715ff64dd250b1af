"""Are the tags of a MATLAB 5 file sound? SciPy's compiled reader ends the process where not.

Format: "MAT-File Format", The MathWorks, 2019, chapter 1: a header of 128 bytes, then elements of
a tag (type and size, 8 bytes) and data; matrices hold elements, compressed ones hold a matrix.
"""

import struct
import zlib

HEADER, TAG = 128, 8
MATRIX, COMPRESSED = 14, 15
TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18, MATRIX, COMPRESSED}
MOST, DEEPEST = 1 << 28, 32  # bytes once decompressed; matrices in matrices


def check_tags(content: bytes) -> None:
    """Refuse a file whose elements are of unknown types or reach over their end.

    Raises:
        ValueError: with what is wrong.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    _check(content[HEADER:], order, DEEPEST, padded=False)


def _check(content: bytes, order: str, deepest: int, *, padded: bool) -> None:
    """Check elements one after the other; within a matrix they start at multiples of 8 bytes."""
    place = 0
    while place < len(content):
        if place + TAG > len(content):
            raise ValueError("it ends within a tag")
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start, next_one = place + TAG, place + TAG + size
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + TAG // 2
            next_one = place + TAG
        if kind not in TYPES or start + size > min(next_one, len(content)):
            raise ValueError(f"an element of type {kind} and {size} bytes cannot be there")
        own = content[start : start + size]
        if kind in (MATRIX, COMPRESSED):
            if deepest == 0:
                raise ValueError("matrices are nested too deep")
            inner = _decompressed(own) if kind == COMPRESSED else own
            _check(inner, order, deepest - 1, padded=kind == MATRIX)
        place = next_one + (-next_one % TAG if padded else 0)


def _decompressed(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        made = stream.decompress(content, MOST)
    except zlib.error as error:
        raise ValueError(f"a compressed element is torn: {error}") from error
    if not stream.eof:
        raise ValueError(f"a compressed element is torn or over {MOST} bytes")
    return made
