"""Reduce interleaved latency samples: a median, and the ratio of two, each with its interval.

And the verdict of an interval against a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.stats.bootstrap import percentile_interval, resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdcompile.core.report import Verdict

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RESAMPLES = 4000  # of the blocks


@dataclass(frozen=True, eq=False)
class PairedTimes:
    """Milliseconds a call, one sample a block; sample i of `a` and of `b` are neighbours in time.

    Args:
        a: float64 [blocks].
        b: float64 [blocks].
        repeats: calls in each block, which its sample stands for.
    """

    a: Floats
    b: Floats
    repeats: int


def ratio_interval(times: PairedTimes, seed: int) -> tuple[float, float, float]:
    """How many times faster B is than A, with a 95 % interval.

    The ratio is that of the medians. The interval is a percentile bootstrap over blocks; a block
    is drawn with both of its samples, so what slowed both cancels.

    Returns:
        `(ratio, low, high)`.

    Raises:
        KDError: `time-zero`, the clock saw no time pass in B.
    """
    if not float(np.median(times.b)) > 0:
        raise KDError(
            "time-zero",
            "a timed call took no measurable time",
            where="paired latency",
            fix="time a larger input, so that one call takes at least some microseconds",
        )

    def ratios(picks: Ints) -> Floats:
        found: Floats = np.median(times.a[picks], axis=1) / np.median(times.b[picks], axis=1)
        return found

    drawn = percentile_interval(resampled(ratios, len(times.a), RESAMPLES, seed))
    return float(np.median(times.a) / np.median(times.b)), *drawn


def limit_verdict(low: float, high: float, limit: float, *, is_least: bool = False) -> Verdict:
    """Passed when the whole interval keeps a limit, failed when none of it does.

    Args:
        low: lower end of the interval; of a number without one the number.
        high: its upper end.
        limit: the most that is allowed.
        is_least: then it is the least that is.
    """
    if is_least:
        low, high, limit = -high, -low, -limit
    return "passed" if high <= limit else "failed" if low > limit else "inconclusive"


def median_interval(samples: Floats, seed: int) -> tuple[float, float, float]:
    """The median of one side's samples with a 95 % percentile bootstrap interval.

    Returns:
        `(median, low, high)` in the unit of `samples`.
    """

    def medians(picks: Ints) -> Floats:
        return np.asarray(np.median(samples[picks], axis=1))

    drawn = percentile_interval(resampled(medians, len(samples), RESAMPLES, seed))
    return float(np.median(samples)), *drawn
