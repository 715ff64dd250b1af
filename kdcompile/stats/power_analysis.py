"""What a number of test images can be expected to decide, and how much of it is luck."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kdcompile.stats.bootstrap import t_quantile
from kdcompile.stats.noninferiority import CONFIDENCE, least_images
from kdcompile.stats.proportion_interval import decrease_interval
from kdcompile.tasks.metric import TOP1, Metric

POWER, CORRELATION = 0.8, 0.8
DRAWS = 1000


@dataclass(frozen=True)
class Forecast:
    """What students that are as accurate as the teacher would get of the accuracy gate.

    Args:
        margin: under which the upper bound stays in a share `POWER` of the draws of images, as a
            share (of the teacher's value, or in points over 100); None where no margin is wide
            enough for so few images.
        over_limit: the share of draws that is over `max_increase` by chance, and so fails.
    """

    margin: float | None
    over_limit: float


def forecast(
    metric: Metric,
    n: int,
    mean: float,
    deviation: float,
    max_increase: float,
    correlation: float = CORRELATION,
) -> Forecast:
    """What n images decide for a student as accurate as the teacher.

    Of an error by the normal approximation of Fieller's part of `ratio`; of a rate by the gate's
    own interval, over draws of images that only one of the two has right.

    Args:
        metric: that the gate judges.
        n: test images, at least 1.
        mean: of the teacher's |error| to the metric's power, over images, or its rate.
        deviation: over images, of the same.
        max_increase: the limit of the point estimate, as a share.
        correlation: of that over images, of teacher and student, from -1 to 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    if n < 1 or mean < 0 or deviation < 0 or not -1 <= correlation <= 1:
        raise ValueError(
            f"forecast(n={n}, mean={mean}, deviation={deviation}, correlation={correlation}) "
            "is out of range"
        )
    if metric.points:
        return _of_a_rate(n, 2 * (1 - correlation) * deviation**2, max_increase)
    if not deviation:
        return Forecast(0.0 if n >= least_images(metric) else None, 0.0)
    normal, error = NormalDist(), deviation / mean / math.sqrt(n)
    limit = (1 + max_increase) ** metric.power  # of the ratio of means
    apart = math.sqrt(max(0.0, 1 + limit**2 - 2 * correlation * limit))  # times `error`
    over = 1 - normal.cdf((limit - 1) / (error * apart)) if apart else 0.0
    if n < least_images(metric):
        return Forecast(None, over)
    wanted = (t_quantile(0.5 + CONFIDENCE / 2, n - 1) + normal.inv_cdf(POWER)) * error
    if wanted >= 1:
        return Forecast(None, over)
    # the ratio R whose (R - 1) is `wanted` times sqrt(1 + R^2 - 2 correlation R)
    middle = (1 - wanted**2 * correlation) / (1 - wanted**2)
    ratio = middle + math.sqrt(max(0.0, middle**2 - 1))
    return Forecast(ratio ** (1 / metric.power) - 1, over)


def _of_a_rate(n: int, variance: float, max_increase: float) -> Forecast:
    """An image's difference is 1, 0 or -1: its variance is the share of images that differ."""
    rng = np.random.default_rng(0)
    differ = rng.binomial(n, min(1.0, variance), DRAWS)
    lost = rng.binomial(differ, 0.5)
    pairs, counts = np.unique([lost, differ - lost], axis=1, return_counts=True)
    highs = [decrease_interval(int(a), int(b), n, CONFIDENCE)[1] for a, b in pairs.T]
    margin = float(np.quantile(np.repeat(highs, counts), POWER, method="higher"))
    over = float(np.mean(2 * lost - differ > max_increase * n))
    return Forecast(None if n < least_images(TOP1) else margin, over)
