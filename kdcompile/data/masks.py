"""Masks of photos: the class of each pixel, read when it is needed."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, refuse_endless
from kdcompile.data.photo import BOMBS, Photo

Mask = NDArray[np.uint8]
IGNORED = 255  # of pixels that are neither trained on nor judged
MODES = ("P", "L", "1")  # of PNGs whose pixels are indices
DRAW = "write an index PNG of the photo's size, one class a pixel, 255 where none is to be judged"


def mask_of(photo: Photo) -> Mask:
    """The photo's mask, uint8 [H, W].

    Raises:
        KDError: `mask-missing`, `mask-unreadable`, `mask-colours` or `mask-invalid`.
    """
    if photo.mask is None:
        raise KDError(
            "mask-missing",
            f"{photo.name} has no mask",
            where="[task] kind and [data] format",
            fix='use a format with masks (format = "masks"), or set Photo.mask in a factory',
        )
    if isinstance(photo.mask, Path):
        return read_mask(photo.mask)
    mask = photo.mask
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 2):
        what = f"{getattr(mask, 'dtype', type(mask).__name__)} {list(np.shape(mask))}"
        raise KDError(
            "mask-invalid", f"the mask of {photo.name} is {what}", "[data] format",
            "give Photo.mask as uint8 [H, W], or as the path of an index PNG",
        )  # fmt: skip
    return mask


def read_mask(path: Path) -> Mask:
    """An index PNG as uint8 [H, W].

    Raises:
        KDError: `mask-unreadable` or `mask-colours`.
    """
    try:
        refuse_endless(path)
        with Image.open(path) as image:
            if image.format == "PNG" and image.mode in MODES:
                return np.asarray(image, np.uint8)
            found = f"{image.format} of mode {image.mode}"
    except KDError:
        raise
    except (*BOMBS, Exception) as error:  # decoders raise nearly anything on arbitrary bytes
        raise KDError(
            "mask-unreadable", f"the mask cannot be decoded: {error}", str(path), DRAW
        ) from error
    raise KDError(
        "mask-colours",
        f"the mask is a {found}, not a PNG of indices",
        where=str(path),
        fix=f"{DRAW}: an image of colours must be turned into one of indices first",
    )


def check_mask(mask: Mask, size: tuple[int, int], classes: int, name: str) -> None:
    """Refuse a mask of another size than its photo's, and indices that no class has.

    Args:
        mask: of the photo.
        size: height and width of the photo.
        classes: their number.
        name: of the photo.

    Raises:
        KDError: `mask-size` or `mask-index`.
    """
    if mask.shape != tuple(size):
        raise KDError(
            "mask-size",
            f"the mask of {name} is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"the photo {size[1]} x {size[0]}",
            where=name,
            fix="write the mask at the size of the upright photo",
        )
    beyond = mask[(mask >= classes) & (mask != IGNORED)]
    if beyond.size:
        raise KDError(
            "mask-index",
            f"the mask of {name} has the index {int(beyond.max())} in {beyond.size} pixels, the "
            f"network {classes} classes, 0 to {classes - 1}",
            where=name,
            fix=f"write {IGNORED} for pixels that are not judged (data.ignore_index says which "
            "index the files have for them), or use a network with as many classes",
        )


def mask_sha256(photo: Photo) -> str:
    """Hash of the mask's file, or of its array; empty where there is none."""
    if photo.mask is None:
        return ""
    if isinstance(photo.mask, Path):
        return file_sha256(photo.mask)
    return hashlib.sha256(repr(photo.mask.shape).encode() + photo.mask.tobytes()).hexdigest()
