"""Intervals of rates over images, which hold for rates near 0 and 1 and for few images too.

A bootstrap of images that are all right never draws a wrong one, and so claims to be certain.
"""

import math
from statistics import NormalDist

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


def share_bounds(count: int, n: int, confidence: float = 0.9) -> tuple[float, float]:
    """The two-sided exact interval (Clopper and Pearson, 1934) of a share of images.

    Each end is wrong no more often than it says, for any number of images: of none in n the upper
    one at 95 % is 1 - 0.05^(1/n), about 3/n.

    Args:
        count: images that have a property.
        n: images, at least 1.
        confidence: of the interval; each end of one at 90 % is a one-sided 95 % bound.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(count, n - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return float(low), float(high)


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
    from scipy.optimize import brentq

    z = _quantile(confidence)

    def excess(difference: float) -> float:
        return _score(difference, lost, won, n) ** 2 - z * z

    observed = (lost - won) / n
    low = -1.0 if observed <= -1 + SURE else brentq(excess, -1 + SURE, observed)
    high = 1.0 if observed >= 1 - SURE else brentq(excess, observed, 1 - SURE)
    return float(low), float(high)


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
