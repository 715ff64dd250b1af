"""Masks of images: the class of each pixel, read when it is needed."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.readers import refuse_endless
from kdcompile.data.photo import BOMBS, Photo
from kdcompile.data.regions import IGNORED as IGNORED
from kdcompile.data.regions import Regions

Mask = NDArray[np.uint8]
MODES = ("P", "L", "1")  # of PNGs whose pixels are indices
DRAW = "write an index PNG of the image's size, one class a pixel, 255 for pixels to leave out"


def require_mask(photo: Photo) -> Path | Mask | Regions:
    """The photo's mask as it was given, neither read nor drawn yet.

    Raises:
        KDError: `mask-missing`.
    """
    if photo.mask is None:
        raise KDError(
            "mask-missing",
            f"{photo.name} has no mask",
            where="[task] kind and [data] format",
            fix='use a format with masks (format = "masks" or "coco", labels = "masks"), or set '
            "Photo.mask in a factory",
        )
    return photo.mask


def mask_of(photo: Photo) -> Mask:
    """The photo's mask, uint8 [H, W], with `IGNORED` where nothing is to be judged.

    Raises:
        KDError: `mask-missing`, `mask-unreadable`, `mask-colours` or `mask-invalid`.
    """
    mask = require_mask(photo)
    if isinstance(mask, Path):
        return _without(read_mask(mask), photo.ignored)
    if isinstance(mask, Regions):
        return _without(mask.drawn(), photo.ignored)
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 2):
        what = f"{getattr(mask, 'dtype', type(mask).__name__)} {list(np.shape(mask))}"
        raise KDError(
            "mask-invalid", f"the mask of {photo.name} is {what}", "[data] format",
            "give Photo.mask as uint8 [H, W], or as the path of an index PNG",
        )  # fmt: skip
    return _without(mask, photo.ignored)


def _without(mask: Mask, ignored: int) -> Mask:
    """The mask with `IGNORED` in place of another index for it."""
    if ignored == IGNORED or not (mask == ignored).any():
        return mask
    return np.where(mask == ignored, np.uint8(IGNORED), mask)


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
    check_size(mask.shape, size, name)
    check_indices(mask, classes, name)


def check_size(mask: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Refuse a mask of another height and width than its photo's.

    Raises:
        KDError: `mask-size`.
    """
    if tuple(mask) != tuple(size):
        raise KDError(
            "mask-size",
            f"the mask of {name} is {mask[1]} x {mask[0]} pixels, the image {size[1]} x {size[0]}",
            where=name,
            fix="write the mask at the size of the upright image",
        )


def check_indices(mask: Mask, classes: int, name: str) -> None:
    """Refuse indices that no class has.

    Raises:
        KDError: `mask-index`.
    """
    beyond = mask[(mask >= classes) & (mask != IGNORED)]
    if beyond.size:
        raise KDError(
            "mask-index",
            f"the mask of {name} has the index {int(beyond.max())} in {beyond.size} pixels, where "
            f"there are {classes} classes, 0 to {classes - 1}",
            where=name,
            fix="set data.ignore_index if that index is for pixels to leave out; else "
            "correct the mask, or use a network with as many classes",
        )


def mask_sha256(photo: Photo) -> str:
    """Hash of the mask's file, regions or array; empty where there is none."""
    if photo.mask is None:
        return ""
    if isinstance(photo.mask, Path):
        return f"{file_sha256(photo.mask)} {photo.ignored}"
    if isinstance(photo.mask, Regions):
        return f"{photo.mask.sha256()} {photo.ignored}"
    return hashlib.sha256(repr(photo.mask.shape).encode() + photo.mask.tobytes()).hexdigest()


def fitted_mask(photo: Photo, seen: tuple[int, int], plane: tuple[int, int]) -> Mask:
    """The mask as a network sees its photo: scaled to `seen`, `IGNORED` in the rest of `plane`."""
    mask = mask_of(photo)
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * whole / size).astype(np.int64), whole - 1)
        for size, whole in zip(seen, mask.shape, strict=True)
    )
    found = np.full(plane, IGNORED, np.uint8)
    found[: seen[0], : seen[1]] = mask[np.ix_(rows, columns)]
    return found
