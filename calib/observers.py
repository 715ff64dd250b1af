"""Calibrators: from the histogram of a tensor to the magnitude that int8 shall reach.

Each takes a `Histogram` and returns `amax`; values beyond it are clipped, and the scale is
`amax / 127`. One from outside is such a function under `register("calibrators", NAME)` or an entry
point of `kdcompile.calibrators`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kdcompile.calib.histogram import Histogram
from kdcompile.core import plugins
from kdcompile.core.plugins import register

LEVELS = 128  # magnitudes of symmetric int8: 0 to 127
PERCENTILE = 99.99
STRIDE = 8  # bins between the ranges that a search tries
Floats = NDArray[np.float64]
Calibrator = Callable[[Histogram], float]


@register("calibrators", "minmax")
def minmax(histogram: Histogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.amax


@register("calibrators", "percentile")
def percentile(histogram: Histogram) -> float:
    """The smallest range that clips at most 0.01 % of the values."""
    if not histogram.span:
        return histogram.amax
    inside = np.cumsum(histogram.counts)
    edge = int(np.searchsorted(inside, PERCENTILE / 100 * histogram.total)) + 1
    return _edge(histogram, edge)


@register("calibrators", "mse")
def mse(histogram: Histogram) -> float:
    """The range with the least squared error, rounding and clipping together.

    Every bin counts as its centre; exact zeros and the like in the first bin have no part, since
    they cost nothing at any range.
    """
    counts = _used(histogram)
    if len(counts) <= LEVELS:
        return histogram.amax
    centres: Floats = (np.arange(len(counts), dtype=np.float64) + 0.5) * histogram.width
    edges = _candidates(len(counts))
    errors = [_squared_error(counts, centres, edge * histogram.width) for edge in edges]
    return _edge(histogram, edges[int(np.argmin(errors))])


@register("calibrators", "entropy")
def entropy(histogram: Histogram) -> float:
    """The range whose 128 levels lose least information (Kullback-Leibler divergence).

    Reference P: the histogram up to the range, what is beyond it added to its last bin. Candidate
    Q: the same without what is beyond, its bins merged into 128 levels and spread again over the
    bins that are in use. The first bin is left out: the zeros of a ReLU would outweigh all else,
    and int8 represents them exactly. Where most bins are empty, as for the pixels of an 8-bit
    image, what a range loses hangs on how the values fall among the bins: nothing is clipped.
    """
    counts = _used(histogram)
    if len(counts) <= LEVELS or _is_gappy(counts):
        return histogram.amax
    edges = _candidates(len(counts))
    return _edge(histogram, edges[int(np.argmin(divergences(counts, edges)))])


def find_calibrator(name: str) -> Calibrator:
    """The calibrator of that name.

    Raises:
        KDError: `calibrator-unknown`, or those of `plugins.find`.
    """
    found: Calibrator = plugins.find("calibrators", name, Callable, "[quantize] calibrator")
    return found


def divergences(counts: Floats, edges: Sequence[int]) -> Floats:
    """KL(P || Q) of each range in 128 levels; infinite where Q lacks what P has.

    P adds c log c of each bin, Q the logarithm of each level's mean: with the sums up to every bin,
    a range costs as much as its levels, however many bins it has.

    Args:
        counts: whole numbers by bin, some of them over 0.
        edges: the ranges, as numbers of bins.
    """
    ends, total = np.asarray(edges), float(counts.sum())
    upto, used, entropy = (
        np.concatenate([[0.0], np.cumsum(values)])
        for values in (counts, counts > 0, _times_log(counts))
    )
    limits = np.arange(LEVELS + 1) * ends[:, None] // LEVELS
    mass = np.diff(upto[limits])
    share = np.log(np.maximum(mass / np.maximum(np.diff(used[limits]), 1), 1))
    kept, last = upto[ends], counts[ends - 1]
    beyond = total - kept
    p = entropy[ends] - _times_log(last) + _times_log(last + beyond) - _times_log(total)
    q = (mass * share).sum(axis=1) + beyond * share[:, -1] - total * np.log(np.maximum(kept, 1))
    lacks = (kept == 0) | ((beyond > 0) & (last == 0))
    return np.where(lacks, np.inf, (p - q) / total)


def _times_log(counts: Floats | float) -> Floats:
    """c log c, 0 for 0."""
    return np.asarray(counts * np.log(np.maximum(counts, 1)))


def _used(histogram: Histogram) -> Floats:
    """Counts up to the last bin in use, the first bin left out of them."""
    if not histogram.span:
        return np.zeros(0)
    last = int(np.flatnonzero(histogram.counts)[-1]) + 1
    counts = histogram.counts[:last].astype(np.float64)
    counts[0] = 0.0
    return counts


def _is_gappy(counts: Floats) -> bool:
    """Whether over half of the bins that 99 % of the values span are empty."""
    inside = np.cumsum(counts)
    bulk = counts[1 : int(np.searchsorted(inside, 0.99 * inside[-1])) + 1]
    return bool(np.mean(bulk > 0) < 0.5)


def _candidates(bins: int) -> list[int]:
    """Ranges to try, as numbers of bins; all of them is always one."""
    return [*range(LEVELS, bins, STRIDE), bins]


def _squared_error(counts: Floats, centres: Floats, amax: float) -> float:
    scale = amax / (LEVELS - 1)
    rounded = np.minimum(np.rint(centres / scale), LEVELS - 1) * scale
    return float(counts @ np.square(centres - rounded))


def _edge(histogram: Histogram, bins: int) -> float:
    """The magnitude at a bin's upper edge, never over what was seen."""
    return min(bins * histogram.width, histogram.amax)
