"""Average precision over the records of images, for many resamples of them at once.

COCO's: of each class the precision at 101 recalls, each the best at that recall or more, averaged
over them, over overlaps, and over the classes of which a box is annotated. An image that is drawn
twice counts twice: boxes are sorted once, and a resample only weighs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdcompile.tasks.detection.matching import OVERLAPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kdcompile.tasks.detection.matching import Record

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RECALLS: Floats = np.linspace(0.0, 1.0, 101)
AT_ONCE = 1 << 22  # values of a table of resamples and boxes


class Table:
    """The boxes of some images, sorted once.

    Args:
        records: of the images.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        counts = [len(record.scores) for record in records]
        image = np.repeat(np.arange(len(records)), counts)
        scores = np.concatenate([record.scores for record in records])
        order = np.argsort(-scores, kind="stable")
        self._image, self._scores = image[order], scores[order]
        self._classes = np.concatenate([record.classes for record in records])[order]
        self._hits = np.concatenate([record.hits for record in records], axis=1)[:, order]
        spared = np.concatenate([record.spared for record in records], axis=1)[:, order]
        self._misses = ~self._hits & ~spared
        self._truths = np.stack([record.truths for record in records]).astype(np.float64)
        self.images = len(records)

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._truths.shape[1]

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
                each = [self._average(own, level, drawn, truths[part, kind]) for level in chosen]
                found[part, kind] = np.mean(each, axis=0)
        return found

    def _average(self, own: Ints, level: int, drawn: Floats, truths: Floats) -> Floats:
        """Of one class at one overlap, float64 [R].

        Args:
            own: places of the class's boxes.
            level: of the overlap.
            drawn: how often each box is drawn, float64 [R, D].
            truths: annotated boxes in each resample, float64 [R].
        """
        counts = self._hits[level, own] | self._misses[level, own]
        right = np.cumsum(drawn * self._hits[level, own], axis=1)[:, counts]
        seen = np.cumsum(drawn * counts, axis=1)[:, counts]
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(seen > 0, right / seen, 0.0)
            recall = right / truths[:, None]
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        result = np.full(len(drawn), np.nan)
        for row in np.flatnonzero(truths > 0):
            place = np.searchsorted(recall[row], RECALLS)
            result[row] = precision[row][place[place < precision.shape[1]]].sum() / len(RECALLS)
        return result

    def curve(self, kind: int, level: int = 0) -> tuple[Floats, Floats, Floats]:
        """Score, precision and recall of a class as the threshold falls, float64 [D] each."""
        own = np.flatnonzero(self._classes == kind)
        own = own[self._hits[level, own] | self._misses[level, own]]
        right = np.cumsum(self._hits[level, own])
        truths = max(float(self._truths[:, kind].sum()), 1.0)
        return self._scores[own], right / np.arange(1, len(own) + 1), right / truths

    def at_threshold(self, score: float, level: int = 0) -> tuple[Ints, Ints, Ints]:
        """Boxes found, missed and false of each class at least so sure, int64 [K] each."""
        sure = self._scores >= score
        found, false = (
            np.bincount(self._classes[sure & which[level]], minlength=self.classes)[: self.classes]
            for which in (self._hits, self._misses)
        )
        truths = self._truths.sum(0).astype(np.int64)
        return found, truths - found, false


def multiplicities(places: Ints, count: int) -> Floats:
    """How often each of `count` images is drawn, float64 [R, count], of places [R, M]."""
    rows = np.arange(len(places))[:, None] * count
    drawn = np.bincount((rows + places).ravel(), minlength=len(places) * count)
    return np.asarray(drawn.reshape(len(places), count), np.float64)
