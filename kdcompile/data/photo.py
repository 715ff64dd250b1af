"""One annotated image, or sample of named tensors: its decoded pixels, and checks of its points."""

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.readers import refuse_endless
from kdcompile.data.regions import Regions

BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
REPLACE = "replace the file, or take its line out of the split"
# of an image's points, how many may stand twice: published annotations have up to 8.5 %
MOST_TWICE = 0.25
LEAST_TWICE = 3


def read_pixels(path: Path, channels: int) -> NDArray[np.uint8]:
    """The image file as [H, W, C], grey for one channel and RGB for three.

    Raises:
        KDError: those of `decoded`.
    """
    return decoded(path, channels, str(path))


@dataclass(frozen=True, eq=False)
class Photo:
    """An image, on disk or in memory, and what is to be predicted of it.

    Args:
        name: unique within its split.
        points: float32 [P, 2], x right and y down in pixels, origin at the top left corner; to be
            counted. Empty for the other tasks.
        path: the file, for formats that have one.
        array: uint8 [H, W, C], for pixels in memory.
        encoded: the bytes of an image file in memory.
        label: the class's index or the value to be predicted; None where points are counted.
        tensors: an array for each named input of a network that takes other tensors than an image.
        mask: the class of each pixel, an index PNG, uint8 [H, W] or the regions of classes.
        ignored: the index in it of pixels that are not judged; 255 is none either.
        boxes: float32 [B, 5], the annotated objects: x0, y0, x1, y1 in pixels of the upright photo,
            and the class's index.
    """

    name: str
    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    path: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, repr=False)
    encoded: bytes | None = field(default=None, repr=False)
    label: float | None = None
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    mask: Path | NDArray[np.uint8] | Regions | None = field(default=None, repr=False)
    ignored: int = 255
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 5), np.float32))

    @property
    def count(self) -> int:
        """The number of annotated points."""
        return len(self.points)

    @property
    def held(self) -> int:
        """The bytes of what it shows that are in memory."""
        arrays = (self.array, self.mask, *self.tensors.values())
        held = sum(one.nbytes for one in arrays if isinstance(one, np.ndarray))
        return held + len(self.encoded or b"")

    def labelled(self) -> float:
        """The label.

        Raises:
            KDError: `label-missing`.
        """
        if self.label is None:
            raise KDError(
                "label-missing",
                f"{self.name} has no label",
                where="[task] kind and [data] format",
                fix="use a format with labels (imagefolder, npz), or set Photo.label in a factory",
            )
        return float(self.label)

    def pixels(self, channels: int) -> NDArray[np.uint8]:
        """The image as uint8 [H, W, channels]."""
        if self.encoded is not None:
            return decoded(io.BytesIO(self.encoded), channels, self.name)
        if self.tensors:
            raise KDError(
                "sample-tensors",
                f"{self.name} is no image: it has {', '.join(self.tensors)}",
                where="[data] format",
                fix='set task.kind = "generic" and export.inputs, which take named tensors',
            )
        if self.array is None:
            assert self.path is not None, "a photo has a path, an array or encoded bytes"
            return read_pixels(self.path, channels)
        if self.array.ndim != 3 or self.array.shape[2] != channels:
            raise KDError(
                "image-channels",
                f"{self.name} has shape {self.array.shape}, the network takes {channels} channels",
                where="[data] format and [export] shape",
                fix="give uint8 [H, W, C] arrays with C = export.shape[1]",
            )
        return self.array

    @cached_property
    def answer(self) -> dict[str, NDArray[np.float32]]:
        """The teacher's outputs for it by name, for a task that imitates them, once they are known.

        Who runs the teacher fills it.
        """
        return {}

    def is_flat(self, channels: int) -> bool:
        """Whether it is of one colour, or of one value throughout."""
        if self.tensors:
            return all(np.size(a) == 0 or (a == a.flat[0]).all() for a in self.tensors.values())
        pixels = self.pixels(channels)
        return bool((pixels == pixels[:1, :1]).all())

    def sha256(self) -> str:
        """Hash of the file's bytes, or of the arrays and their shapes; read once."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        if self.encoded is not None:
            return hashlib.sha256(self.encoded).hexdigest()
        if self.tensors:
            found = hashlib.sha256()
            for name, array in sorted(self.tensors.items()):
                found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
            return found.hexdigest()
        if self.array is None:
            assert self.path is not None, "a photo has a path, an array or encoded bytes"
            return file_sha256(self.path)
        return hashlib.sha256(repr(self.array.shape).encode() + self.array.tobytes()).hexdigest()


warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # as Pillow advises


def decoded(source: Path | io.BytesIO, channels: int, where: str) -> NDArray[np.uint8]:
    """The image as uint8 [H, W, C], grey for one channel and RGB for three.

    Raises:
        KDError: `image-unreadable`, `image-huge`, `image-depth` or `image-tiny`.
    """
    try:
        if isinstance(source, Path):
            refuse_endless(source)
        with Image.open(source) as image:
            if image.size == (1, 1):
                raise KDError("image-tiny", "the image is a single pixel", where, REPLACE)
            pixels = np.asarray(_eight_bits(image, where).convert("L" if channels == 1 else "RGB"))
    except KDError:
        raise
    except BOMBS as error:
        raise KDError(
            "image-huge",
            f"the image is too large to be decoded safely: {error}",
            where=where,
            fix=f"scale it, and its points, to {Image.MAX_IMAGE_PIXELS} pixels at most, or take it "
            "out of its split",
        ) from error
    except Exception as error:  # decoders raise nearly anything on arbitrary bytes
        raise KDError(
            "image-unreadable", f"the image cannot be decoded: {error}", where, REPLACE
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """The image upright, with 8 bits a channel."""
    upright = ImageOps.exif_transpose(image)
    # Pillow before 11 opens grey of 16 bits as I, and itself takes the upper 8 of colours
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise KDError(
            "image-depth",
            f"its pixels are {'floats' if upright.mode == 'F' else 'integers of 32 bits'}: "
            "what is white in it is not known",
            where=where,
            fix="save it with 8 or 16 bits a channel",
        )
    return upright


def checked_points(given: Any, name: str, source: Path | None) -> NDArray[np.float32]:
    """The points of the image of that name as float32 [P, 2], x right and y down in pixels.

    A few points that stand twice are left, as two heads may be annotated alike; a list that was
    joined to itself is refused.

    Raises:
        KDError: `annotation-invalid` or `annotation-duplicate`.
    """
    where = "[data] format" if source is None else str(source)
    if (other := _no_number(given)) is not None:  # NumPy makes numbers of "1" and true
        raise _invalid(name, f"have a coordinate that is no number, {other!r:.40}", where)
    try:
        points = np.asarray(given, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise _invalid(name, f"are not [x, y] pairs: {error}", where) from error
    if points.shape == (0,):
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise _invalid(name, f"are no list of [x, y] pairs, but {list(points.shape)}", where)
    if not np.isfinite(points).all():
        raise _invalid(name, "have a coordinate that is not a finite number", where)
    if (points < 0).any():
        raise _invalid(name, f"have a negative coordinate, {_first(points, points < 0)}", where)
    twice = len(points) - len(set(map(tuple, points.tolist())))
    if twice >= LEAST_TWICE and twice > MOST_TWICE * len(points):
        raise KDError(
            "annotation-duplicate",
            f"{twice} of the {len(points)} points of {name} stand there more than once",
            where=where,
            fix="keep one of each; a list may have been joined to itself",
        )
    with np.errstate(over="ignore"):  # what becomes infinite lies in no image
        return points.astype(np.float32)


def _no_number(given: Any) -> Any:
    """The first coordinate that is text or a truth value; None where there is none."""
    pairs = (
        given.tolist() if isinstance(given, np.ndarray) and given.dtype.kind in "bSUO" else given
    )
    if not isinstance(pairs, list | tuple):
        return None
    rows = (pair for pair in pairs if isinstance(pair, list | tuple))
    return next((one for row in rows for one in row if isinstance(one, str | bytes | bool)), None)


def check_within(points: NDArray[np.float32], size: tuple[int, int], name: str, where: str) -> None:
    """Every point must lie in its image of height and width `size`, its far borders included.

    Raises:
        KDError: `annotation-outside`.
    """
    height, width = size
    outside = points > np.array([width, height], np.float32)
    if outside.any():
        count = int(outside.any(axis=1).sum())
        raise KDError(
            "annotation-outside",
            f"{count} of the {len(points)} points of {name} lie outside its {width} x {height} "
            f"pixels, the first at {_first(points, outside)}",
            where=where,
            fix="give x right and y down in pixels of the upright image; take out points that are "
            "not on it",
        )


def _first(points: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    x, y = points[int(wrong.any(axis=1).argmax())]
    return f"[{x:g}, {y:g}]"


def _invalid(name: str, problem: str, where: str) -> KDError:
    return KDError(
        "annotation-invalid",
        f"the points of {name} {problem}",
        where=where,
        fix='write "points": [[x, y], ...], x right and y down in pixels from the top left corner',
    )
