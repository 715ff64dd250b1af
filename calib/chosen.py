"""The images that calibrate: who they are, and whether ranges can rest on them."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess

WHERE = "[data] train, [quantize] images"


class ChosenImages:
    """Calibration images, read one at a time.

    Args:
        photos: the images.
        prepare: from pixels to the network's input.

    identities: name and SHA-256 of each.
    constant: names of those of one colour, as far as `inputs` has come.
    """

    def __init__(self, photos: Sequence[Photo], prepare: Preprocess) -> None:
        self.photos = photos
        self.identities = [(photo.name, photo.sha256()) for photo in photos]
        self.constant: list[str] = []
        self._prepare = prepare

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of images with the same content, a list for each content that occurs twice."""
        names: dict[str, list[str]] = {}
        for name, sha in self.identities:
            names.setdefault(sha, []).append(name)
        return [same for same in names.values() if len(same) > 1]

    @property
    def distinct(self) -> int:
        """How many contents there are."""
        return len({sha for _, sha in self.identities})

    def inputs(self) -> Iterator[NDArray[np.float32]]:
        """float32 [1, C, H, W] of each image.

        Raises:
            KDError: `calib-duplicate` before the first, for one image many times over;
                `calib-constant` after the last, where each is of one colour.
        """
        if self.distinct == 1 and len(self.photos) > 1:
            raise KDError(
                "calib-duplicate",
                f"the {len(self.photos)} calibration images are one image, byte for byte",
                where=WHERE,
                fix="list different photos, or set quantize.images = 1 to calibrate on that one",
            )
        self.constant = []
        for photo in self.photos:
            pixels = photo.pixels(self._prepare.channels)
            if (pixels == pixels[:1, :1]).all():
                self.constant.append(photo.name)
            yield self._prepare(pixels)
        if self.photos and len(self.constant) == len(self.photos):
            raise KDError(
                "calib-constant",
                f"each of the {len(self.photos)} calibration images is of one colour: "
                "its activations are no photo's",
                where=WHERE,
                fix="list photos that show something; a factory may be giving empty images",
            )
