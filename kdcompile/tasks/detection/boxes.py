"""Boxes that a detector found: their overlap, and the suppression of those found twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

CANDIDATES = 1000  # the best of an image that suppression looks at
MOST = 100  # boxes of an image, as COCO's evaluation takes them


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes of one image, the best first.

    Args:
        boxes: float64 [D, 4], x0 y0 x1 y1 in pixels.
        scores: float64 [D], 0 to 1.
        classes: int64 [D], indices.
    """

    boxes: Floats
    scores: Floats
    classes: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: Ints | NDArray[np.bool_]) -> Found:
        """Those at some places, in that order."""
        return Found(self.boxes[places], self.scores[places], self.classes[places])

    def above(self, score: float) -> Found:
        """Those of at least that score."""
        return self.at(self.scores >= score)

    def scaled(self, x: float, y: float, size: tuple[int, int]) -> Found:
        """In other pixels, clipped to an image of height and width `size`; none without area."""
        height, width = size
        limits = np.array([width, height, width, height], np.float64)
        boxes = np.clip(self.boxes * np.array([x, y, x, y]), 0.0, limits)
        moved = Found(boxes, self.scores, self.classes)
        return moved.at((boxes[:, 2:] > boxes[:, :2]).all(1))


def areas(boxes: Floats) -> Floats:
    """Of boxes [..., 4], in square pixels."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1))


def intersections(first: Floats, second: Floats) -> Floats:
    """Common area of each of [A, 4] with each of [B, 4], float64 [A, B]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.asarray(np.prod(np.maximum(high - low, 0.0), axis=-1))


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersection over union of each of [A, 4] with each of [B, 4], float64 [A, B]."""
    common = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - common
    return np.asarray(common / np.maximum(union, 1e-12))


def best(found: Found, most: int) -> Found:
    """The `most` best, the best first; the earlier of equal scores first."""
    return found.at(np.argsort(-found.scores, kind="stable")[:most])


def suppressed(found: Found, overlap: float, most: int = MOST) -> Found:
    """Non-maximum suppression: the best boxes, none of which overlaps a better one of its class.

    Args:
        found: in any order; beyond `CANDIDATES` only the best are looked at.
        overlap: the intersection over union above which the worse of two is left out.
        most: boxes that remain at most.
    """
    found = best(found, CANDIDATES)
    clash = overlaps(found.boxes, found.boxes) > overlap
    clash &= found.classes[:, None] == found.classes[None, :]
    alive = np.ones(len(found), np.bool_)
    for place in range(len(found)):
        if alive[place]:
            alive[place + 1 :] &= ~clash[place, place + 1 :]
    return found.at(np.flatnonzero(alive)[:most])
