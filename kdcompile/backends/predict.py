"""Outputs for photos by a deployed network."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]


def predict_outputs(
    runner: Runner, photos: Iterable[Photo], preprocess: Preprocess
) -> tuple[list[Floats], list[Frame]]:
    """The network's output for each photo, [1, ...], and where the photo lay in its input.

    `Task.within` and `Task.predictions` say what both mean.

    Args:
        runner: float32 [1, C, H, W] to the output.
        photos: read one at a time, so that a whole split never lies in memory.
        preprocess: the one that the network was exported with.

    Raises:
        KDError: a photo cannot be read.
    """
    outputs, frames = [], []
    for photo in photos:
        pixels = photo.pixels(preprocess.channels)
        outputs.append(runner(preprocess(pixels)))
        frames.append(preprocess.frame(*pixels.shape[:2]))
    return outputs, frames


def predictions(task: Task, outputs: Iterable[Floats], frames: Iterable[Frame]) -> list[float]:
    """What the outputs of `predict_outputs` say of each photo, without their padding."""
    each = zip(outputs, frames, strict=True)
    return [float(task.predictions(task.within(output, frame))[0]) for output, frame in each]
