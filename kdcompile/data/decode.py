"""From an image file's bytes to pixels: one definition of what an odd file is read as.

EXIF orientation is applied: pixels, and the points on them, are as a viewer shows the image. CMYK
and palettes become RGB; of 16 bits a channel the upper 8 are kept. Refused are other depths, images
over Pillow's limit of pixels, and a single pixel, which often stands for an image that was lost.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdcompile.core.errors import KDError
from kdcompile.core.files import refuse_endless

BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
REPLACE = "replace the file, or take its line out of the split"

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
