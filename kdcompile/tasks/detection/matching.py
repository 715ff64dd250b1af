"""COCO's matching of an image's boxes with the annotated ones, as a record of fixed width.

At each of ten overlaps a box takes the best annotated box of its class that no better one has
taken. What is annotated as a crowd is neither to be found nor wrong to be found. For boxes of one
size the others are spared likewise, so there is a matching for each range of areas. The same rules,
ties included, as pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcompile.tasks.detection.boxes import MOST, Found, areas, best, intersections, overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

OVERLAPS: Floats = np.linspace(0.5, 0.95, 10)
LEVELS = len(OVERLAPS)
SIZES = {
    "all": (0.0, np.inf),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}  # areas in square pixels, as COCO has them
FIELDS = 4  # numbers of a box in a row: score, class, and two of the bits of two sizes each
ABSENT = -1.0  # the score of a place in a row that no box has


@dataclass(frozen=True, eq=False)
class Matches:
    """The boxes of one image, or of several, with what each is.

    Args:
        scores: float64 [D] of its boxes.
        classes: int64 [D].
        hits: bool [4, 10, D], found: by size, at each of `OVERLAPS`.
        spared: bool [4, 10, D], neither right nor wrong.
        truths: int64 [4, K], the annotated boxes of each class that are to be found.
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


def matched(found: Found, truth: NDArray[np.float32], classes: int) -> Matches:
    """The matches of one image.

    Args:
        found: its boxes, in the truth's pixels; the 100 best count.
        truth: float32 [B, 5], x0 y0 x1 y1 class; a class below 0 marks a crowd of -1 - class.
        classes: how many there are.
    """
    found, own = best(found, MOST), classes_of(truth)
    truths = np.zeros((len(SIZES), classes), np.int64)
    hits = np.zeros((len(SIZES), LEVELS, len(found)), np.bool_)
    spared = hits.copy()
    low, high = (np.array(ends)[:, None] for ends in zip(*SIZES.values(), strict=True))
    for kind in np.union1d(found.classes, own):
        mine = np.flatnonzero(found.classes == kind)
        there = truth[own == kind]
        boxes, crowd = there[:, :4].astype(np.float64), is_crowd(there)
        size = areas(boxes)
        aside = crowd | (size < low) | (size > high)
        if kind < classes:
            truths[:, kind] = np.count_nonzero(~aside, axis=1)
        hits[..., mine], spared[..., mine] = _of_class(found.boxes[mine], boxes, crowd, aside)
    size = areas(found.boxes)
    spared |= ~hits & ((size < low) | (size > high))[:, None]
    return Matches(found.scores, found.classes, hits, spared, truths)


def _of_class(found: Floats, truth: Floats, crowd: Bools, aside: Bools) -> tuple[Bools, Bools]:
    """Which boxes of a class, the best first, hit one and which are spared, bool [4, 10, D] each.

    Args:
        found: the boxes [D, 4].
        truth: annotated boxes [B, 4].
        crowd: which of them are crowds, which any number of boxes may lie in, [B].
        aside: which need not be found: crowds, and those of another size, [4, B].
    """
    hits = np.zeros((len(SIZES), LEVELS, len(found)), np.bool_)
    spared = hits.copy()
    if not len(truth) or not len(found):
        return hits, spared
    shared = overlaps(found, truth)
    in_crowd = intersections(found, truth) / np.maximum(areas(found), 1e-12)[:, None]
    shared[:, crowd] = in_crowd[:, crowd]
    free = np.ones((len(SIZES), LEVELS, len(truth)), np.bool_)
    least = np.minimum(OVERLAPS, 1 - 1e-10)[:, None]
    for place in np.flatnonzero(shared.max(1) >= least.min()):
        fits = (free | crowd) & (shared[place] >= least)
        for part, taken in ((~aside, hits), (aside, spared)):
            own = np.where(fits & part[:, None], shared[place], -1.0)
            pick = len(truth) - 1 - own[..., ::-1].argmax(-1)  # the last of equal overlaps
            size, level = np.nonzero((own.max(-1) >= 0) & ~hits[..., place])
            taken[size, level, place] = True
            free[size, level, pick[size, level]] = False
    return hits, spared


def packed(found: Matches) -> Floats:
    """The matches of an image as a row float64 [4 K + 4 * 100]."""
    row = np.full((MOST, FIELDS), ABSENT)
    count = len(found.scores)
    row[:count, 0], row[:count, 1] = found.scores, found.classes
    bits = np.concatenate([found.hits, found.spared], axis=1)  # [4, 20, D]
    for half in range(2):
        own = bits[2 * half : 2 * half + 2].reshape(4 * LEVELS, count)
        row[:count, 2 + half] = (2.0 ** np.arange(4 * LEVELS)) @ own
    return np.concatenate([found.truths.ravel(), row.ravel()]).astype(np.float64)


def unpacked(rows: Floats) -> tuple[Matches, Ints, Ints]:
    """The matches of rows [M, W]: of all boxes together, the image of each, truths [M, 4, K]."""
    ends = rows.shape[1] - MOST * FIELDS
    boxes = rows[:, ends:].reshape(-1, FIELDS)
    kept = boxes[:, 0] != ABSENT
    image = np.repeat(np.arange(len(rows)), MOST)[kept]
    boxes = boxes[kept]
    halves = boxes[:, 2:].astype(np.int64).T[:, None]
    bits = (halves >> np.arange(4 * LEVELS)[:, None] & 1).astype(np.bool_)
    bits = bits.reshape(len(SIZES), 2 * LEVELS, len(boxes))
    truths = rows[:, :ends].astype(np.int64).reshape(len(rows), len(SIZES), -1)
    found = Matches(
        boxes[:, 0], boxes[:, 1].astype(np.int64), bits[:, :LEVELS], bits[:, LEVELS:], truths.sum(0)
    )
    return found, image, truths
