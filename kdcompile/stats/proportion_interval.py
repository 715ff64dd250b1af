"""Intervals of rates over images, which hold for rates near 0 and 1 and for few images too.

A bootstrap of images that are all right never draws a wrong one, and so claims to be certain.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SURE = 1e-9  # how near a difference of rates comes to -1 and 1


def rate_interval(errors: Floats, confidence: float) -> tuple[float, float]:
    """The two-sided score interval (Wilson, 1927) of the share of images without an error.

    Args:
        errors: [N], 1 where an image is wrong and 0 where it is right.
        confidence: of the interval.
    """
    z, n = _quantile(confidence), len(errors)
    rate = 1.0 - float(errors.mean())
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate_decrease_interval(
    teacher: Floats, student: Floats, confidence: float
) -> tuple[float, float]:
    """The two-sided score interval (Tango, 1998) of how much lower the student's rate is.

    Args:
        teacher: [N], 1 where an image is wrong and 0 where it is right.
        student: of the same images.
        confidence: of the interval; each end of one at 90 % is a one-sided 95 % bound.
    """
    lost = int(((teacher == 0) & (student == 1)).sum())
    won = int(((teacher == 1) & (student == 0)).sum())
    return decrease_interval(lost, won, len(teacher), confidence)


def decrease_interval(lost: int, won: int, n: int, confidence: float) -> tuple[float, float]:
    """The same by how many of n images only the teacher, and only the student, has right."""
    z = _quantile(confidence)

    def inside(difference: float) -> bool:
        return abs(_score(difference, lost, won, n)) <= z

    observed = (lost - won) / n
    low = -1.0 if observed <= -1 + SURE else _edge(inside, observed, -1 + SURE)
    high = 1.0 if observed >= 1 - SURE else _edge(inside, observed, 1 - SURE)
    return low, high


def _edge(inside: Callable[[float], bool], start: float, limit: float) -> float:
    """Where a condition that holds at `start` ends on the way to `limit`, by bisection."""
    near, far = start, limit
    for _ in range(100):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return (near + far) / 2


def _score(difference: float, lost: int, won: int, n: int) -> float:
    """Tango's statistic: standard normal where the rates differ by `difference`."""
    a = 2 * n
    b = -lost - won + (2 * n - lost + won) * difference
    c = -won * difference * (1 - difference)
    only_student = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * only_student + difference * (1 - difference))
    gap = lost - won - n * difference
    return gap / math.sqrt(variance) if variance > 0 else (0.0 if gap == 0 else math.inf)


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
