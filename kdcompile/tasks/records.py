"""Metrics of whole sets: what is kept of each image, and metrics of the kept records together.

A task whose truth is not one number predicts a row for an image: its own error first, at least 0,
and behind it a record of fixed width (confusion counts, scored matches). `Recorded` are errors of
images that carry these rows: as numbers they are the images' own errors, which flips, worst images
and noise go by, and a metric of the set reads the records behind them. Whatever picks images of
them (a stratum, a resample, the same for teacher and student) picks their records. Nothing else is
kept, so that nothing grows with the evaluations of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BATCH_VALUES = 4_000_000  # bounds the memory of the weights of some resamples


class Recorded(np.ndarray[Any, np.dtype[np.float64]]):
    """Errors of images with their records: float64 of any shape, [N] or [draws, N].

    rows: float64 [M, W], a record for each image that was evaluated, without its error.
    places: int64 of the errors' shape, whose record each one has.

    What is computed from them is a plain array.
    """

    rows: Floats
    places: Ints

    @classmethod
    def of(cls, predicted: Sequence[Any] | Floats) -> Floats:
        """The errors of predictions [N, 1 + W]; predictions [N], which have no record, stay."""
        table = np.asarray(predicted, np.float64)
        if table.ndim == 1:
            return table
        found = np.ascontiguousarray(table[:, 0]).view(cls)
        found.rows, found.places = table[:, 1:], np.arange(len(table))
        return found

    def __getitem__(self, key: Any) -> Any:
        """Some of the errors, with their records."""
        found = self.view(np.ndarray)[key]
        if np.ndim(found) == 0:
            return found
        picked = found.view(Recorded)
        picked.rows, picked.places = self.rows, self.places[key]
        return picked

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Of the numbers alone."""
        plain = [one.view(np.ndarray) if isinstance(one, Recorded) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **options)


def value_of(prediction: Any) -> float:
    """The number of one image's prediction: itself, or the error in front of its record."""
    return float(np.ravel(prediction)[0])


def over_records(score: Callable[[Floats, Ints], Any]) -> Callable[..., Any]:
    """`Metric.of` by the records behind errors; NaN where errors have none.

    Args:
        score: `score(rows, places)` of rows [M, W] and int64 places [..., N], one number for each
            set of N places: vectorised over the other axes.
    """

    def of(errors: Floats, axis: int = -1) -> Any:
        assert axis in (-1, errors.ndim - 1), "images are the last axis"
        if not isinstance(errors, Recorded):
            return np.full(errors.shape[:-1], np.nan)
        return score(errors.rows, errors.places)

    return of


def over_sums(score: Callable[[Floats], Any]) -> Callable[..., Any]:
    """`Metric.of` by the sum of the records.

    Args:
        score: of sums [..., W], one number each.
    """
    return over_records(lambda rows, places: score(summed(rows, places)))


def weights_of(places: Ints, count: int) -> Floats:
    """How often each of `count` records is among places int64 [D, N], float64 [D, count]."""
    offsets = np.arange(len(places))[:, None] * count
    found = np.bincount((places + offsets).ravel(), minlength=len(places) * count)
    return found.reshape(len(places), count).astype(np.float64)


def summed(rows: Floats, places: Ints) -> Floats:
    """The sum of the records at each set of places: [M, W] and [..., N] to [..., W]."""
    sets = places.reshape(-1, places.shape[-1])
    step = max(1, BATCH_VALUES // max(len(rows), 1))
    parts = [weights_of(sets[i : i + step], len(rows)) @ rows for i in range(0, len(sets), step)]
    return np.concatenate(parts).reshape(*places.shape[:-1], rows.shape[1])
