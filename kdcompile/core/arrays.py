"""The arrays of an .npz archive that anybody may have written.

numpy's reader believes the archive: it makes the array that a header asks for before a byte of it
is there, unpacks what a kilobyte of zeros becomes, and takes the second of two parts of one name.
Here the directory of the zip file is held against a limit before anything is unpacked, and a header
against its part's size before an array is made.
"""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdcompile.core.escape import first_line
from kdcompile.core.readers import MIB, open_regular

MOST_PARTS = 100_000  # arrays of an archive
LARGEST = 1024 * MIB  # unpacked, of an archive that a bundle or a test pack carries
NUMBERS, WORDS = "biuf", "SU"  # numpy's kinds; neither objects nor structures nor complex numbers
LONGEST_REASON = 200  # characters of what a library says
SUFFIX, FLAG_ENCRYPTED = ".npy", 0x1


class TooLargeError(ValueError):
    """What it would unpack to is over the limit."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"its arrays are {size} bytes, over {most}")
        self.size = size


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays by name, in the order of the archive; each is read when it is asked for."""

    def __init__(self, archive: ZipFile, parts: Mapping[str, ZipInfo]) -> None:
        self._archive, self._parts = archive, parts

    def __getitem__(self, name: str) -> NDArray[Any]:
        part = self._parts[name]
        try:
            with self._archive.open(part) as stream:
                return _array(stream, part.file_size)
        except Exception as error:  # of zlib, zipfile and numpy, nearly anything
            raise ValueError(f"{name}: {first_line(error)[:LONGEST_REASON]}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@contextmanager
def open_arrays(source: Path | bytes, most: int = LARGEST) -> Iterator[Arrays]:
    """The arrays of an archive, for a block that reads some of them.

    Args:
        source: the file, or its content.
        most: bytes of all its arrays, unpacked.

    Raises:
        TooLargeError: they are more.
        ValueError: it is no archive of arrays alone, each of another name; or in the block, an
            array is torn or not of real numbers or text.
        OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
        try:
            archive = ZipFile(stream)
        except OSError:
            raise
        except Exception as error:  # of arbitrary bytes
            raise ValueError(
                f"it is no .npz archive: {first_line(error)[:LONGEST_REASON]}"
            ) from error
        with archive:
            yield Arrays(archive, _parts(archive.infolist(), most))


def read_arrays(source: Path | bytes, most: int = LARGEST) -> dict[str, NDArray[Any]]:
    """All arrays of an archive, as `open_arrays`."""
    with open_arrays(source, most) as arrays:
        return dict(arrays)


def _parts(directory: list[ZipInfo], most: int) -> dict[str, ZipInfo]:
    """The archive's parts by the names of their arrays, none of them unpacked."""
    size = sum(part.file_size for part in directory)
    if size > most:
        raise TooLargeError(size, most)
    if len(directory) > MOST_PARTS:
        raise ValueError(f"it has over {MOST_PARTS} parts")
    found: dict[str, ZipInfo] = {}
    for part in directory:
        name = part.filename.removesuffix(SUFFIX)
        if name == part.filename:
            raise ValueError(f"{name!r:.80} in it is no array")
        if name in found:
            raise ValueError(f"{name!r:.80} is there twice")
        packed = part.compress_type not in (ZIP_STORED, ZIP_DEFLATED)
        if packed or part.flag_bits & FLAG_ENCRYPTED:
            raise ValueError(f"{name!r:.80} is packed as numpy packs nothing")
        found[name] = part
    return found


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a part, whose header must ask for as many bytes as are there."""
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its version is {version}")
    shape, is_fortran, dtype = read(stream)
    if dtype.kind not in NUMBERS + WORDS or dtype.itemsize == 0:
        raise ValueError(f"it is of {dtype}: neither real numbers nor text")
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted != size - stream.tell():
        raise ValueError(f"an array {list(shape)} of {dtype} has {size - stream.tell()} bytes")
    flat = np.empty(math.prod(shape), dtype)
    room, place = flat.view(np.uint8), 0
    while part := stream.read(MIB):  # to the end, where the sum is checked
        room[place : place + len(part)] = np.frombuffer(part, np.uint8)
        place += len(part)
    if place != wanted:
        raise ValueError("it is torn")
    return flat.reshape(shape, order="F" if is_fortran else "C")


def check_finite(arrays: Mapping[str, NDArray[Any]], kinds: str = NUMBERS) -> None:
    """Refuse arrays that are not of finite numbers, of some of numpy's kinds.

    Raises:
        ValueError: the name of the first.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} is of {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} is not of finite numbers")
