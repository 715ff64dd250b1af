"""Streaming histogram of magnitudes, from which every calibrator chooses its range."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError

BINS = 4096
CHUNK = 1 << 17  # values at a time, so that the scratch arrays stay in the cache
WIDEST = 2.0**127  # a power of two that float32 holds

Counts = NDArray[np.int64]
Counter = Callable[[NDArray[np.float32], float], Counts]


def numpy_counts(values: NDArray[np.float32], span: float) -> Counts:
    """How many magnitudes lie in each of `BINS` equal bins over [0, span], by numpy.

    The last bin takes what lies beyond. A span of 0 has one bin, the first.
    """
    counts = np.zeros(BINS, np.int64)
    if span == 0.0:
        counts[0] = values.size
        return counts
    flat = values.reshape(-1)
    factor = np.float32(BINS / span)
    for start in range(0, flat.size, CHUNK):
        places = np.abs(flat[start : start + CHUNK])
        places *= factor
        bins = np.minimum(places, np.float32(BINS - 1)).astype(np.intp)
        counts += np.bincount(bins, minlength=BINS)
    return counts


def _no_counts() -> Counts:
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, span], and exact extremes.

    The span is the least power of two over the largest magnitude, so that over half of the bins
    are in use. It doubles, merging pairs of bins, when a larger value comes: the range of the data
    need not be known before it is read, and neither the order of the arrays nor their division
    among histograms that are merged later changes a count.
    """

    counts: Counts = field(default_factory=_no_counts)
    span: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    total: int = 0

    @property
    def amax(self) -> float:
        """The largest magnitude seen."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def width(self) -> float:
        """The width of a bin."""
        return self.span / BINS

    def add(self, values: NDArray[np.float32], counter: Counter = numpy_counts) -> None:
        """Count the values of one tensor.

        Raises:
            KDError: `calib-nonfinite`.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())  # either is NaN if any value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise KDError(
                "calib-nonfinite",
                "an activation holds NaN or infinity",
                where="calibration",
                fix="check the student's weights and the calibration images",
            )
        self._extend(low, high, values.size)
        self.counts += counter(values, self.span)

    def merge(self, other: "Histogram", times: int = 1) -> None:
        """Count what `other` counted, `times` over."""
        if not other.total or not times:
            return
        self._extend(other.minimum, other.maximum, times * other.total)
        self.counts += times * other.over(self.span)

    def over(self, span: float) -> Counts:
        """The counts in as many bins over [0, span], a span at least this one's."""
        counts, own = self.counts, self.span
        while 0.0 < own < span:
            counts, own = _halved(counts), own * 2
        return counts

    def clipped(self, amax: float) -> float:
        """The share of values whose magnitude is over `amax`, to the resolution of a bin."""
        if not self.total or amax >= self.amax:
            return 0.0
        first = round(amax / self.width)
        return float(self.counts[first:].sum() / self.total)

    def _extend(self, low: float, high: float, size: int) -> None:
        """Take in the extremes and the number of values, and widen the span for them."""
        self.minimum = min(low, self.minimum) if self.total else low
        self.maximum = max(high, self.maximum) if self.total else high
        self.total += size
        span = _span(self.amax)
        if self.span == 0.0:  # zeros, or next to it, so far: they lie in the first bin
            self.span = span
        while self.span < span:
            self.counts = _halved(self.counts)
            self.span *= 2


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all that several counted."""
    result = Histogram()
    for histogram in histograms:
        result.merge(histogram)
    return result


def _span(amax: float) -> float:
    # a subnormal span would overflow BINS / span; such a tensor is zero in float16 too
    if amax <= float(np.finfo(np.float32).tiny) * BINS:
        return 0.0
    return min(math.ldexp(1.0, math.frexp(amax)[1]), WIDEST)


def _halved(counts: Counts) -> Counts:
    """The counts over twice the span."""
    result = np.zeros_like(counts)
    result[: BINS // 2] = counts.reshape(-1, 2).sum(axis=1)
    return result
