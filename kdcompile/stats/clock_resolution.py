"""What the step of a clock leaves open of a ratio, however many samples there are.

A clock that counts in steps gives quantiles in steps: a change of 0.1 % may look like none, or like
a whole step, in every process alike, so that no spread shows it. CUDA's events had steps of half a
microsecond, 4 % of a network of 12.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def coarseness(sides: Sequence[Iterable[Sequence[Floats]]]) -> float:
    """How far a log ratio of quantiles may be off: one step, half of it for either side.

    The step is the least difference between two latencies, which is next to nothing where the clock
    is fine, and infinite where all are the same: then no step is known.

    Args:
        sides: blocks of each process of candidate and reference, in milliseconds.
    """
    times = [np.concatenate([b for process in side for b in process]) for side in sides]
    steps = np.diff(np.unique(np.concatenate(times)))
    if not len(steps):
        return float("inf")
    return float(np.log1p(steps.min() / min(float(np.median(side)) for side in times)))
