"""A streaming histogram of magnitudes: what every calibrator chooses its range from."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdcompile.errors import KDError

BINS = 4096
CHUNK = 1 << 17  # values at a time, so that the scratch arrays stay in the cache


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, span], and exact extremes.

    The span starts at the first array's largest magnitude and doubles, merging pairs of bins,
    until it covers a larger one; so at least half of the bins stay in use, and the range of the
    data need not be known before it is read.
    """

    counts: NDArray[np.int64] = field(default_factory=_no_counts)
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

    def add(self, values: NDArray[np.float32]) -> None:
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
                fix="check the student's weights and the calibration photos",
            )
        self.minimum = min(low, self.minimum) if self.total else low
        self.maximum = max(high, self.maximum) if self.total else high
        self.total += values.size
        self._cover(self.amax)
        if self.span == 0.0:  # zeros only, so far
            self.counts[0] += values.size
            return
        flat = values.reshape(-1)
        factor = np.float32(BINS / self.span)
        for start in range(0, flat.size, CHUNK):
            places = np.abs(flat[start : start + CHUNK])
            places *= factor
            bins = np.minimum(places, np.float32(BINS - 1)).astype(np.intp)
            self.counts += np.bincount(bins, minlength=BINS)

    def _cover(self, amax: float) -> None:
        if self.span == 0.0:
            # a subnormal span would overflow BINS / span; such a tensor is zero in float16 too
            self.span = amax if amax > float(np.finfo(np.float32).tiny) * BINS else 0.0
        while self.span and amax > self.span:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[BINS // 2 :] = 0
            self.span *= 2

    def clipped(self, amax: float) -> float:
        """The share of values whose magnitude is over `amax`, to the resolution of a bin."""
        if not self.total or amax >= self.amax:
            return 0.0
        first = round(amax / self.width)
        return float(self.counts[first:].sum() / self.total)
