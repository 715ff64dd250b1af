"""Stability of ranges over samples of images, and the distance between two samples."""

from collections.abc import Callable, Sequence

import numpy as np

from kdcompile.calib.histogram import Histogram, merged
from kdcompile.stats.bootstrap import resamples

LEVELS = 128  # bins of a comparison: as many as int8 has magnitudes
DRAWS = 16  # leaves a deviation uncertain by about a fifth


def scale_spread(
    folds: Sequence[Histogram], choose: Callable[[Histogram], float], seed: int = 0
) -> float | None:
    """The relative standard deviation of a scale over resampled calibration sets.

    Bootstrap (Efron 1979) over folds of the images: `DRAWS` times as many folds as there are are
    drawn with replacement, and a range is chosen for their histograms together. None for a single
    fold, of which nothing can be learnt; 0 for a tensor of zeros.

    Args:
        folds: one tensor's histogram for each part of the images.
        choose: the calibrator.
        seed: of the draws.
    """
    if len(folds) < 2:
        return None
    ranges = []
    for picks in resamples(len(folds), DRAWS, seed):
        times = np.bincount(picks, minlength=len(folds))
        drawn = Histogram()
        for fold, count in zip(folds, times, strict=True):
            drawn.merge(fold, int(count))
        ranges.append(choose(drawn))
    mean = float(np.mean(ranges))
    return float(np.std(ranges, ddof=1)) / mean if mean else 0.0


def jensen_shannon(a: Histogram, b: Histogram) -> float:
    """The Jensen-Shannon divergence of two samples' magnitudes, in bits: 0 the same, 1 disjoint.

    Over `LEVELS` equal bins that cover both, so that it sees what int8 can tell apart.
    """
    span = max(a.span, b.span)
    p, q = (h.over(span).reshape(LEVELS, -1).sum(axis=1) / h.total for h in (a, b))
    middle = (p + q) / 2
    return max(0.0, sum(_kl(part, middle) for part in (p, q)) / 2)


def usual_drift(folds: Sequence[Histogram]) -> float | None:
    """The largest divergence of a fold from the others together: what chance alone makes.

    None for a single fold.
    """
    if len(folds) < 2:
        return None
    rests = (merged(other for other in folds if other is not fold) for fold in folds)
    return max(jensen_shannon(fold, rest) for fold, rest in zip(folds, rests, strict=True))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return float(np.sum(p[some] * np.log2(p[some] / q[some])))
