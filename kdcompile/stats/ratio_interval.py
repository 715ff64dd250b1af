"""An interval for the ratio of two mean errors over the same images; tails may be heavy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.stats.bootstrap import bca, t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def ratio_interval(
    reference: Floats, errors: Floats, *, confidence: float, seed: int
) -> tuple[float, float]:
    """The two-sided interval of mean(errors) / mean(reference).

    The wider, at each end, of two: BCa (`bootstrap`), and Fieller's (Some problems in interval
    estimation, JRSS B 16, 1954), which holds every ratio R for which Student's t of
    errors - R reference does not exclude a mean of 0. At the true R both sides of that difference
    have the same tails where the two networks err alike, and tails that cancel do no harm.

    Args:
        reference: [N] at least 0, of a mean over 0; at least 2 images.
        errors: of the same images, at least 0.
        confidence: of the interval; each end of one at 90 % is a one-sided 95 % bound.
        seed: of the resampling.

    Returns:
        `(low, high)`, at least 0; high is infinite where the reference may be 0, NaN where an error
        is too large to compute with.
    """
    drawn = bca(
        (reference, errors),
        lambda r, s, axis: _contrast(np.mean(s, axis=axis), np.mean(r, axis=axis)),
        confidence=confidence,
        seed=seed,
    )
    low, high = _fieller(reference, errors, t_quantile(0.5 + confidence / 2, len(errors) - 1))
    ends = [_ratio(edge) for edge in drawn]
    return float(np.minimum(ends[0], low)), float(np.maximum(ends[1], high))


def _contrast(value: Any, reference: Any) -> Any:
    """(value - reference) / (value + reference), which rises with the ratio and is always a number.

    0 where both are 0: a resample without any error speaks for neither.
    """
    total = np.asarray(value + reference)
    return np.divide(value - reference, total, out=np.zeros_like(total), where=total > 0)


def _ratio(contrast: float) -> float:
    """The ratio of that contrast."""
    return math.inf if contrast >= 1 else (1 + contrast) / (1 - contrast)


def _fieller(reference: Floats, errors: Floats, quantile: float) -> tuple[float, float]:
    """Where (s - R r)^2 = t^2 var(s - R r), of the means r and s."""
    n = len(errors)
    r, s = float(reference.mean()), float(errors.mean())
    (of_r, of_both), (_, of_s) = quantile**2 / n * np.cov(reference, errors)
    a, b, c = r * r - of_r, r * s - of_both, s * s - of_s
    if a <= 0:  # no ratio is too large for a reference that may be 0
        return 0.0, math.inf
    half = math.sqrt(max(0.0, b * b - a * c)) if math.isfinite(b * b - a * c) else math.nan
    return float(np.maximum(0.0, (b - half) / a)), (b + half) / a
