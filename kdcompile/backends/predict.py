"""Densities of photos by a deployed network."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]


def predict_maps(runner: Runner, photos: Iterable[Photo], preprocess: Preprocess) -> list[Floats]:
    """The density of each photo, [1, 1, h, w]; a photo's count is its sum.

    Args:
        runner: float32 [1, C, H, W] to density [1, 1, h, w].
        photos: read one at a time, so that a whole split never lies in memory.
        preprocess: the one that the network was exported with.

    Raises:
        KDError: a photo cannot be read.
    """
    return [runner(preprocess(photo.pixels(preprocess.channels))) for photo in photos]


def counts_of(maps: Iterable[Floats]) -> list[float]:
    """The sum of each map, in float64."""
    return [float(density.sum(dtype=np.float64)) for density in maps]
