"""Pictures of class maps: a palette, index PNGs, and images under the colours of their classes."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.bundle.figures import LIGHT, Picture, png, style
from kdcompile.data.masks import IGNORED, Mask

SHARE = 0.6  # of a class's colour over the photo in grey
MOST_NAMED = 24  # classes in a legend
BESIDE = 1.4  # inches of a legend
DIFFERS = 1  # its colour where two class maps differ


def palette() -> NDArray[np.uint8]:
    """The colour of each class, uint8 [256, 3]: PASCAL VOC's from its second on; `IGNORED` grey.

    The samples of a bundle have the same.
    """
    found = np.zeros((256, 3), np.uint8)
    index = np.arange(1, 257)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    found[IGNORED] = 128
    return found


def index_png(mask: Mask) -> bytes:
    """A class map, uint8 [H, W], as a PNG of its indices with the palette."""
    image = Image.fromarray(mask)
    image.putpalette(palette().ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask_png(
    pixels: NDArray[np.uint8], mask: Mask, title: str, classes: Sequence[str] | None = None
) -> bytes:
    """The photo in grey under the colours of its classes, with a legend, as a PNG.

    Args:
        pixels: uint8 [H, W, C], one or three channels.
        mask: uint8 [H, W], the photo alone where it is `IGNORED`.
        title: written above.
        classes: names by index; without them the indices.
    """
    height, width = mask.shape
    grey = pixels.mean(2)[..., None] * 0.8 + 51
    known = (mask != IGNORED)[..., None]
    drawn = np.where(known, SHARE * palette()[mask] + (1 - SHARE) * grey, grey).astype(np.uint8)
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORED]
    order = [int(k) for k in np.argsort(-counts, kind="stable")[:MOST_NAMED] if counts[k]]
    names = {k: classes[k] if classes and k < len(classes) else str(k) for k in order}
    with style(LIGHT):
        picture = Picture(height, width, BESIDE, title)
        picture.axes.imshow(drawn, aspect="auto", interpolation="nearest")
        picture.legend([(palette()[k] / 255, names[k]) for k in order])
        return png(picture.figure)


def difference(one: Mask, other: Mask, truth: Mask) -> Mask:
    """Where two class maps differ, of what is judged: `DIFFERS`, else `IGNORED`."""
    differs = (one != other) & (truth != IGNORED)
    return np.where(differs, np.uint8(DIFFERS), np.uint8(IGNORED))
