"""One annotated image."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kdcompile.artifact import file_sha256
from kdcompile.errors import KDError


def read_pixels(path: Path, channels: int) -> NDArray[np.uint8]:
    """The image file as [H, W, C], grey for one channel and RGB for three.

    Raises:
        KDError: `image-unreadable`.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise KDError(
            "image-unreadable",
            f"the image cannot be decoded: {error}",
            where=str(path),
            fix="replace the file, or take its line out of the split",
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


@dataclass(frozen=True, eq=False)
class Photo:
    """An image, on disk or in memory, and the points to be counted in it.

    Args:
        name: unique within its split.
        points: float32 [P, 2], x right and y down in pixels, origin at the top left corner.
        path: the file, for formats that have one.
        array: uint8 [H, W, C], for factories that make their images.
    """

    name: str
    points: NDArray[np.float32]
    path: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """The number of annotated points."""
        return len(self.points)

    def pixels(self, channels: int) -> NDArray[np.uint8]:
        """The image as uint8 [H, W, channels]."""
        if self.array is None:
            assert self.path is not None, "a photo has a path or an array"
            return read_pixels(self.path, channels)
        if self.array.ndim != 3 or self.array.shape[2] != channels:
            raise KDError(
                "image-channels",
                f"{self.name} has shape {self.array.shape}, the network takes {channels} channels",
                where="the data factory",
                fix="return uint8 [H, W, C] arrays with C = export.shape[1]",
            )
        return self.array

    def sha256(self) -> str:
        """Hash of the file's bytes, or of the array and its shape."""
        if self.array is None:
            assert self.path is not None, "a photo has a path or an array"
            return file_sha256(self.path)
        return hashlib.sha256(repr(self.array.shape).encode() + self.array.tobytes()).hexdigest()
