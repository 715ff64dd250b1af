"""Intervals of a metric of whole sets, each value of which costs a user's time: few resamples.

A module of its own, as boards judge by no such metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.stats.bootstrap import contrast, ratio_of, resamples, t_quantile
from kdcompile.stats.noninferiority import CONFIDENCE, bounds, least_images, with_observed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdcompile.tasks.metric import Metric

    Floats = NDArray[np.float64]


def bounds_of(metric: Metric) -> Callable[..., tuple[float | None, float | None]]:
    """What finds the bounds of how much worse a network is by a metric."""
    return bounds if metric.draws is None else drawn_bounds


def drawn_bounds(
    metric: Metric,
    reference: Floats,
    errors: Floats,
    seed: int,
    confidence: float = CONFIDENCE,
) -> tuple[float | None, float | None]:
    """`bounds` of a metric of sets: those of the ratio of both networks' values.

    The set is resampled, `metric.draws` times, the same for both.
    """
    if len(errors) < least_images(metric):
        return None, None
    options: dict[str, Any] = {"confidence": confidence, "seed": seed, "draws": metric.draws}
    whole = metric(reference)
    if not whole:
        low, high = drawn_interval((errors,), metric.of, **options)
        return (-high, -low) if metric.higher else (float(np.maximum(0.0, low)), high)
    found = drawn_interval(
        (reference, errors),
        lambda r, s, axis: contrast(metric.of(s, axis=axis), metric.of(r, axis=axis)),
        **options,
    )
    low, high = (whole * (ratio_of(end) - 1) for end in found)
    if metric.higher:
        low, high = -high, -low
    return with_observed(float(metric.worse_by(metric(errors), whole)), low, high)


def drawn_interval(
    samples: tuple[Floats, ...],
    statistic: Callable[..., Any],
    *,
    confidence: float,
    seed: int,
    draws: int,
) -> tuple[float, float]:
    """The two-sided interval of a statistic that is costly, by `draws` resamples and no more.

    The wider, at each end, of two: the bias-corrected bootstrap (Efron, 1981), and Student's t with
    the standard error of the resamples, enlarged by n / (n - 1) as n images vary less than what
    they are drawn from. There is no jackknife, which would compute the statistic once an image.

    Args:
        samples: float64 [N] each, at least 2 images; resampled together, image by image.
        statistic: `f(*samples, axis)` to one number, vectorised over the other axes.
        confidence: of the interval.
        seed: of the resampling.
        draws: how often the statistic is computed, beside once for all images.

    Returns:
        `(low, high)`; both are the statistic itself when no resample changes it, NaN where one has
        no number.
    """
    point, n = float(statistic(*samples, axis=-1)), len(samples[0])
    picks = resamples(n, draws, seed)
    found: Floats = np.asarray(statistic(*(sample[picks] for sample in samples), axis=-1))
    if not np.isfinite(found).all():
        return math.nan, math.nan
    spread = float(found.std(ddof=1)) * math.sqrt(n / (n - 1))
    if spread <= 1e-12 * abs(point):
        return point, point
    normal, tail = NormalDist(), 0.5 + confidence / 2
    below = (np.count_nonzero(found < point) + np.count_nonzero(found <= point)) / (2 * draws)
    bias = normal.inv_cdf(min(max(below, 0.5 / draws), 1 - 0.5 / draws))
    edges = [normal.cdf(2 * bias + edge * normal.inv_cdf(tail)) for edge in (-1, 1)]
    low, high = np.quantile(found, edges)
    reach = t_quantile(tail, n - 1) * spread
    return float(min(low, point - reach)), float(max(high, point + reach))
