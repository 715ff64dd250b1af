"""Counts of photos by a deployed network."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]


def predict_counts(runner: Runner, photos: Iterable[Photo], preprocess: Preprocess) -> list[float]:
    """People in each photo: the sum of its density.

    Args:
        runner: float32 [1, C, H, W] to density [1, 1, h, w].
        photos: read one at a time, so that a whole split never lies in memory.
        preprocess: the one that the network was exported with.

    Raises:
        KDError: a photo cannot be read.
    """
    counts = []
    for photo in photos:
        density = runner(preprocess(photo.pixels(preprocess.channels)))
        counts.append(float(density.sum(dtype=np.float64)))
    return counts
