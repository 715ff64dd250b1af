"""Average precision over the records of images, for many resamples of them at once.

COCO's: of each class the precision at 101 recalls, each the best at that recall or more, averaged
over them, over overlaps, and over the classes of which a box is annotated. An image that is drawn
twice counts twice: boxes are sorted once, and a resample only weighs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdcompile.tasks.detection.matching import OVERLAPS, SIZES, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RECALLS: Floats = np.linspace(0.0, 1.0, 101)
AT_ONCE = 1 << 22  # values of a table of resamples and boxes


class Table:
    """The boxes of some images, sorted once.

    Args:
        rows: of the images, float64 [N, W] as `matching.packed` makes them.
        size: of the boxes that count, a key of `SIZES`.
    """

    def __init__(self, rows: Floats, size: str = "all") -> None:
        found, image, truths = unpacked(rows)
        place = list(SIZES).index(size)
        order = np.argsort(-found.scores, kind="stable")
        self._image, self._scores = image[order], found.scores[order]
        self._classes = found.classes[order]
        self._hits = found.hits[place][:, order]
        self._misses = ~self._hits & ~found.spared[place][:, order]
        self._truths = truths[:, place].astype(np.float64)

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._truths.shape[1]

    @property
    def truths(self) -> Floats:
        """The annotated boxes of each class in all images, float64 [K]."""
        return np.asarray(self._truths.sum(0))

    def mean(self, weights: Floats, levels: Sequence[int] | None = None) -> Floats:
        """Mean average precision of each resample, float64 [R]; NaN where nothing is annotated.

        Args:
            weights: float64 [R, N], how often each image is drawn.
            levels: places in `OVERLAPS`; all of them by default.
        """
        of_classes = self.by_class(weights, levels)
        known = np.isfinite(of_classes)
        total = np.where(known, of_classes, 0.0).sum(1)
        count = known.sum(1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def by_class(self, weights: Floats, levels: Sequence[int] | None = None) -> Floats:
        """Average precision of each class, float64 [R, K]; NaN where none is annotated."""
        chosen = list(range(len(OVERLAPS))) if levels is None else list(levels)
        found = np.full((len(weights), self.classes), np.nan)
        truths = weights @ self._truths
        for kind in range(self.classes):
            own = np.flatnonzero(self._classes == kind)
            step = max(1, AT_ONCE // max(len(own), 1))
            for first in range(0, len(weights), step):
                part = slice(first, first + step)
                drawn = weights[part][:, self._image[own]]
                seen = np.cumsum(drawn, axis=1)
                each = [
                    self._average(own, level, (drawn, seen), truths[part, kind]) for level in chosen
                ]
                found[part, kind] = np.mean(each, axis=0)
        return found

    def _average(
        self, own: Ints, level: int, draws: tuple[Floats, Floats], truths: Floats
    ) -> Floats:
        """Of one class at one overlap, float64 [R]; NaN where nothing is annotated.

        Both precision and recall matter at hits alone: between them the one falls and the other
        stays.

        Args:
            own: places of the class's boxes.
            level: of the overlap.
            draws: how often each box is drawn, float64 [R, D], and the sum up to each.
            truths: annotated boxes in each resample, float64 [R].
        """
        (drawn, seen), hits = draws, self._hits[level, own]
        spared = ~(hits | self._misses[level, own])
        if spared.any():
            seen = seen - np.cumsum(drawn * spared, axis=1)
        right, seen = np.cumsum(drawn[:, hits], axis=1), seen[:, hits]
        precision = right / np.maximum(seen, 1)  # where nothing is seen nothing is right
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = right / np.maximum(truths, 1)[:, None]
        reached = np.searchsorted(RECALLS, recall, side="right")
        steps = np.diff(reached, axis=1, prepend=0)
        return np.where(truths > 0, (precision * steps).sum(1) / len(RECALLS), np.nan)

    def curve(self, kind: int, level: int = 0) -> Floats:
        """The best precision of a class at each of `RECALLS` or more, float64 [101]; 0 beyond."""
        own = np.flatnonzero(self._classes == kind)
        own = own[self._hits[level, own] | self._misses[level, own]]
        right = np.cumsum(self._hits[level, own])
        precision = np.maximum.accumulate((right / np.arange(1, len(own) + 1))[::-1])[::-1]
        recall = right / max(float(self._truths[:, kind].sum()), 1.0)
        place = np.searchsorted(recall, RECALLS)
        return np.append(precision, 0.0)[np.minimum(place, len(own))]

    def at_threshold(self, score: float, level: int = 0) -> tuple[Ints, Ints, Ints]:
        """Boxes found, missed and false of each class at least so sure, int64 [K] each."""
        sure = self._scores >= score
        found, false = (
            np.bincount(self._classes[sure & which[level]], minlength=self.classes)[: self.classes]
            for which in (self._hits, self._misses)
        )
        truths = self._truths.sum(0).astype(np.int64)
        return found, truths - found, false
