"""The smallest margin that a number of test images can decide."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def smallest_margin(
    n: int, metric: float, std: float, correlation: float = 0.8, power: float = 0.8
) -> float:
    """The non-inferiority margin that `n` images decide, as a fraction of the teacher's metric.

    For a student as accurate as the teacher, whose per-image errors have the deviation `std` and
    go with the teacher's at `correlation`: with this margin the one-sided 95 % bound stays under
    it in a share `power` of the draws. Normal approximation of the paired mean difference.

    Args:
        n: test images, at least 1.
        metric: the teacher's mean error, over 0.
        std: standard deviation of the per-image errors, in the unit of `metric`.
        correlation: of teacher and student errors over images, at most 1.
        power: chance to pass when both are equally accurate.

    Raises:
        ValueError: an argument is out of its range.
    """
    if n < 1 or metric <= 0 or std < 0 or not -1 <= correlation <= 1 or not 0 < power < 1:
        raise ValueError(
            f"smallest_margin(n={n}, metric={metric}, std={std}, "
            f"correlation={correlation}, power={power}) is out of range"
        )
    normal = NormalDist()
    quantiles = normal.inv_cdf(CONFIDENCE) + normal.inv_cdf(power)
    return quantiles * std * math.sqrt(2 * (1 - correlation) / n) / metric
