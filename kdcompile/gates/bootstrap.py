"""Bootstrap intervals over images."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
RESAMPLES = 9999
BATCH_VALUES = 2_000_000  # bounds the memory of one batch of resamples


def interval(
    samples: tuple[Floats, ...],
    statistic: Callable[..., Any],
    *,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """The two-sided interval of a statistic, bias-corrected and accelerated (BCa).

    Each end of a 90 % interval is a one-sided 95 % bound.

    Args:
        samples: float64 [N] each, at least 2 images; resampled together, image by image.
        statistic: `f(*samples, axis)` to one number, vectorised over the other axes.
        confidence: of the interval.
        seed: of the resampling.

    Returns:
        `(low, high)`; both are the statistic itself when no resample changes it.
    """
    batch = max(1, BATCH_VALUES // len(samples[0]))
    draw = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    point = float(statistic(*samples, axis=-1))
    spread = float(np.ptp(draw.bootstrap_distribution))
    scale = max(float(np.abs(sample).max()) for sample in samples)
    if spread <= 1e-12 * scale:  # BCa is undefined where nothing varies
        return point, point
    found = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=0,
        batch=batch,
        confidence_level=confidence,
        method="BCa",
        bootstrap_result=draw,
    ).confidence_interval
    return float(found.low), float(found.high)
