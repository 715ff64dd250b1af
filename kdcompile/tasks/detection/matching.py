"""Which of an image's boxes are right: COCO's matching, as a small record that metrics add up.

At each of ten overlaps a box takes the best annotated box of its class that no better one has
taken. What is annotated as a crowd is neither to be found nor wrong to be found. The same rules,
ties included, as pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcompile.tasks.detection.boxes import MOST, Found, areas, intersections, overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

OVERLAPS: Floats = np.linspace(0.5, 0.95, 10)
EVERY = (0.0, np.inf)  # areas of boxes, in square pixels
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


@dataclass(frozen=True, eq=False)
class Record:
    """What is kept of one image.

    Args:
        scores: float64 [D] of its boxes.
        classes: int64 [D].
        hits: bool [10, D], found at each of `OVERLAPS`.
        spared: bool [10, D], neither right nor wrong.
        truths: int64 [K], the annotated boxes of each class that are to be found.
    """

    scores: Floats
    classes: Ints
    hits: Bools
    spared: Bools
    truths: Ints


def is_crowd(truth: NDArray[np.float32]) -> Bools:
    """Which annotated boxes [B, 5] are crowds: their class is below 0."""
    return np.asarray(truth[:, 4] < 0)


def classes_of(truth: NDArray[np.float32]) -> Ints:
    """The classes of annotated boxes [B, 5], int64 [B]: that of a crowd is -1 - class."""
    given = truth[:, 4].astype(np.int64)
    return np.asarray(np.where(given < 0, -1 - given, given))


def matched(
    found: Found, truth: NDArray[np.float32], classes: int, sizes: tuple[float, float] = EVERY
) -> Record:
    """The record of one image.

    Args:
        found: its boxes, in the truth's pixels; of each class the 100 best count.
        truth: float32 [B, 5], x0 y0 x1 y1 class; a class below 0 marks a crowd of -1 - class.
        classes: how many there are.
        sizes: least and largest area of the boxes that count; others are spared.
    """
    own = classes_of(truth)
    truths = np.zeros(classes, np.int64)
    parts: list[Record] = []
    for kind in np.union1d(found.classes, own):
        some = found.at(np.flatnonzero(found.classes == kind))
        some = some.at(np.argsort(-some.scores, kind="stable")[:MOST])
        there = truth[own == kind]
        boxes, crowd = there[:, :4].astype(np.float64), is_crowd(there)
        size = areas(boxes)
        aside = crowd | (size < sizes[0]) | (size > sizes[1])
        if kind < classes:
            truths[kind] = np.count_nonzero(~aside)
        hits, spared = _of_class(some, boxes, crowd, aside)
        off = areas(some.boxes)
        spared |= ~hits & ~spared & ((off < sizes[0]) | (off > sizes[1]))
        parts.append(Record(some.scores, some.classes, hits, spared, truths))
    if not parts:
        none = np.zeros((len(OVERLAPS), 0), np.bool_)
        return Record(np.zeros(0), np.zeros(0, np.int64), none, none, truths)
    return Record(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.hits for part in parts], axis=1),
        np.concatenate([part.spared for part in parts], axis=1),
        truths,
    )


def _of_class(found: Found, truth: Floats, crowd: Bools, aside: Bools) -> tuple[Bools, Bools]:
    """Which boxes of a class, the best first, hit one and which are spared, bool [10, D] each.

    Args:
        found: the boxes.
        truth: annotated boxes [B, 4].
        crowd: which of them are crowds, which any number of boxes may lie in.
        aside: which need not be found: crowds, and those of another size.
    """
    shape = len(OVERLAPS), len(found)
    hits, spared = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    if not len(truth) or not len(found):
        return hits, spared
    shared = overlaps(found.boxes, truth)
    in_crowd = intersections(found.boxes, truth) / np.maximum(areas(found.boxes), 1e-12)[:, None]
    shared[:, crowd] = in_crowd[:, crowd]
    free = np.ones((len(OVERLAPS), len(truth)), np.bool_)
    least = np.minimum(OVERLAPS, 1 - 1e-10)[:, None]
    for place in np.flatnonzero(shared.max(1) >= least.min()):
        fits = (free | crowd) & (shared[place] >= least)
        for part, taken in ((~aside, hits), (aside, spared)):
            own = np.where(fits & part, shared[place], -1.0)
            # the last of equal overlaps
            pick = own.shape[1] - 1 - own[:, ::-1].argmax(1)
            rows = np.flatnonzero((own.max(1) >= 0) & ~hits[:, place])
            taken[rows, place] = True
            free[rows, pick[rows]] = False
    return hits, spared
