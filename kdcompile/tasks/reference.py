"""Comparison with a reference network: which images it can have right, and which changed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import Task

Errors = NDArray[np.float64]
Mask = NDArray[np.bool_]


def taught(task: Task, labels: Sequence[float] | Errors, outputs: int) -> Mask:
    """Which images a reference of so many outputs can have right, bool [N].

    All, but where outputs are classes: a network that knows more has the reference's first.
    """
    return np.less(labels, outputs) if task.metric.points else np.ones(len(labels), np.bool_)


def taught_places(task: Task, photos: Sequence[Photo], outputs: int) -> list[int]:
    """The places of the photos of which that is so."""
    known = taught(task, [task.truth(photo) for photo in photos], outputs)
    return [int(place) for place in np.flatnonzero(known)]


class Changes(NamedTuple):
    """Which images a network has worse, and which better, bool [N]; and when one is worse."""

    worse: Mask
    better: Mask
    rule: str


def changes(task: Task, before: Errors, after: Errors, tolerance: float) -> Changes:
    """What became of each image.

    Args:
        task: what the errors are of.
        before: errors of the reference, [N].
        after: of the network, on the same images.
        tolerance: by which an error may change, as a share of the reference's mean absolute error;
            not used for classes.
    """
    grew = np.abs(after) - np.abs(before)
    if task.metric.points:  # errors are 0 or 1
        return Changes(grew > 0, grew < 0, "right before and wrong now")
    allowed = tolerance * MAE(before)
    rule = f"an absolute error that grew by more than {allowed:.4g}"
    return Changes(grew > allowed, grew < -allowed, rule)
