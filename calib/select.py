"""Which training images calibrate."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.coreset import cells, described, k_center, nonfinite, space
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly

Select = Literal["even", "random", "pcoreset"]
Outputs = Callable[[Sequence[Photo]], Iterable[NDArray[Any]]]


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
