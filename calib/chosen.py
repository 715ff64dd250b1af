"""The images that calibrate: their selection, and checks that ranges can rest on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.data.coreset import cells, described, k_center, nonfinite, space
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import evenly

Select = Literal["even", "random", "pcoreset"]
Outputs = Callable[[Sequence[Photo]], Iterable[NDArray[Any]]]
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
                fix="list different images, or set quantize.images = 1 to calibrate on that one",
            )
        self.constant = []
        for photo in self.photos:
            if photo.is_flat(self._prepare.channels):
                self.constant.append(photo.name)
            yield self._prepare.input_of(photo)
        if self.photos and len(self.constant) == len(self.photos):
            raise KDError(
                "calib-constant",
                f"each of the {len(self.photos)} calibration images is of one colour: "
                "its activations are no real image's",
                where=WHERE,
                fix="list images that show something; a factory may be giving empty ones",
            )


def select_images(
    photos: Sequence[Photo], how: Select, n: int, seed: int, outputs: Outputs
) -> list[Photo]:
    """At most `n` of the photos, the same ones for the same seed.

    `even` spreads them over the split and `random` draws them, both in the split's order.
    `pcoreset` covers what the network answers (`kdcompile.data.coreset`), in the order of choice
    from the split's first photo, so that the first of them are the choice for a smaller `n`.

    Args:
        photos: the split.
        how: the rule.
        n: at least 1.
        seed: of `random`.
        outputs: the network's output [1, ...] for each of some photos, one at a time; called only
            by `pcoreset`, and then for every photo.

    Raises:
        KDError: `output-nonfinite`, by `pcoreset`.
    """
    if how == "even" or n >= len(photos):
        return evenly(photos, n)
    if how == "random":
        drawn = np.random.default_rng(seed).choice(len(photos), n, replace=False)
        return [photos[index] for index in sorted(drawn)]
    seen = []
    for photo, output in zip(photos, outputs(photos), strict=True):
        if not np.isfinite(output).all():
            raise nonfinite("the student's output", photo.name)
        # a map's sums as they are: crowded photos, which weigh most in them, make the widest ranges
        seen.append([cells(output).reshape(1, -1)] if output.ndim == 4 else described(output))
    points = space(seen)
    return [photos[index] for index in k_center(points, points[:0], n)[0]]
