"""Outputs for photos by a deployed network."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]


def predict_outputs(
    runner: Runner, photos: Iterable[Photo], preprocess: Preprocess
) -> list[Floats]:
    """The network's output for each photo, [1, ...]; `Task.predictions` says what it means.

    Args:
        runner: float32 [1, C, H, W] to the output.
        photos: read one at a time, so that a whole split never lies in memory.
        preprocess: the one that the network was exported with.

    Raises:
        KDError: a photo cannot be read.
    """
    return [runner(preprocess(photo.pixels(preprocess.channels))) for photo in photos]
