"""How many more blocks would decide a comparison."""

import math

import numpy as np

from kdcompile.stats.hierarchical import Estimate, Floats

MIN_BLOCKS = 8  # of each side: all of them on one side is a chance of 1 in 256 (sign test)
MIN_INFERENCES = 40  # of each side: four of them lie above a p90
MOST_UNITS = 4096


def half_width(estimate: Estimate, tail: Floats) -> Floats:
    """Half of the interval of a log ratio, for the chance `tail` [3] outside on either side: [3].

    Student's t on the estimate's degrees of freedom.
    """
    from scipy.special import stdtrit

    width: Floats = stdtrit(estimate.df, 1 - tail) * estimate.error
    return width


def more_blocks(
    estimate: Estimate, tail: float, wanted: float, blocks: int, inferences: int
) -> int | None:
    """Blocks of each side beyond `blocks` that would decide, if the ratio stays what it is.

    They come as more processes or builds like those that were taken; where the two sides were
    taken apart, as more runs of the candidate.

    Args:
        estimate: of which the median is asked.
        tail: chance outside the interval on either side.
        wanted: the half-width at which it would be decided, as a log ratio.
        blocks, inferences: of each side that were used.

    Returns:
        None where no number of them would do: the reference's own runs are too few.
    """
    from scipy.special import stdtrit

    few = max(MIN_BLOCKS - blocks, math.ceil(MIN_INFERENCES * blocks / inferences) - blocks, 0)
    first = estimate.units[0]
    more = np.arange(MOST_UNITS)
    ours, *theirs = (float(variance[0]) for variance in estimate.variances)
    variance = ours * first / (first + more) + sum(theirs)
    enough = stdtrit(estimate.df + more, 1 - tail) * np.sqrt(variance) <= wanted
    if not enough.any():
        return None
    return max(few, math.ceil(int(np.argmax(enough)) * blocks / first))
