"""Bootstrap over images or blocks: resamples, percentile and BCa intervals, ratios of means."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RESAMPLES = 9999
BATCH_VALUES = 2_000_000  # bounds the memory of one batch of resamples
# Fewer images decide nothing. Below 5 no bound at 95 % exists without assuming a distribution (all
# n differences lie on one side of their median with probability 2^-n); from 8 on `interval` was
# wrong in at most 12 % of simulated draws for a mean absolute error where 5 % is promised, and in
# 6 % where errors are not skewed (docs/accuracy.md has the table).
MIN_IMAGES = 8


def resamples(count: int, draws: int, seed: int | Sequence[int]) -> Ints:
    """Indices [draws, count] of samples that are drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def resampled(statistic: Callable[[Ints], Floats], count: int, draws: int, seed: int) -> Floats:
    """The statistic of each resample, [draws], computed in batches of bounded memory.

    Args:
        statistic: of indices [batch, count], one value for each row.
        count: samples.
        draws: resamples.
        seed: of the draws; the batches together are those of `resamples`.
    """
    random, batch = np.random.default_rng(seed), max(1, BATCH_VALUES // count)
    sizes = [min(batch, draws - start) for start in range(0, draws, batch)]
    return np.concatenate([statistic(random.integers(count, size=(n, count))) for n in sizes])


def percentile_interval(values: Floats, tail: float = 0.025) -> tuple[float, float]:
    """The percentile interval of a resampled statistic that leaves out `tail` at either end."""
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    samples: tuple[Floats, ...],
    statistic: Callable[..., Any],
    *,
    confidence: float,
    seed: int,
    least: float = -math.inf,
) -> tuple[float, float]:
    """The two-sided interval of a statistic over images.

    The wider, at each end, of two: the bias-corrected and accelerated bootstrap (BCa; Efron, Better
    Bootstrap Confidence Intervals, JASA 1987), which follows a skewed statistic and is too narrow
    for few images; and Student's t on the jackknife's standard error (Tukey, 1958), which is not.
    Each end of a 90 % interval is a one-sided 95 % bound.

    Args:
        samples: float64 [N] each, at least 2 images; resampled together, image by image.
        statistic: `f(*samples, axis)` to one number, vectorised over the other axes.
        confidence: of the interval.
        seed: of the resampling.
        least: the smallest value that the statistic can have, below which no end lies: Student's
            interval is symmetric and would reach there.

    Returns:
        `(low, high)`; both are the statistic itself when no resample changes it.
    """
    found = bca(samples, statistic, confidence=confidence, seed=seed)
    point = float(statistic(*samples, axis=-1))
    reach = jackknife_reach(samples, statistic, confidence)
    # a bound that is no number stays one, and proves nothing
    low, high = np.minimum(found[0], point - reach), np.maximum(found[1], point + reach)
    return float(np.maximum(least, low)), float(high)


def bca(
    samples: tuple[Floats, ...],
    statistic: Callable[..., Any],
    *,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap; takes and gives what `interval` does."""
    point, n = float(statistic(*samples, axis=-1)), len(samples[0])
    if not any(np.ptp(sample) for sample in samples):  # of any size at once
        return point, point

    def drawn(picks: Ints) -> Floats:
        value: Floats = statistic(*(sample[picks] for sample in samples), axis=-1)
        return value

    found = resampled(drawn, n, RESAMPLES, seed)
    scale = max(float(np.abs(sample).max()) for sample in samples)
    if float(np.ptp(found)) <= 1e-12 * scale:  # BCa is undefined where nothing varies
        return point, point
    below = (np.count_nonzero(found < point) + np.count_nonzero(found <= point)) / (2 * RESAMPLES)
    left_out = _left_out(samples, statistic)
    influence = left_out.mean() - left_out
    variance = float(np.square(influence).sum())
    if not (0 < below < 1 and variance > 0):
        return math.nan, math.nan
    acceleration = float((influence**3).sum()) / variance**1.5 / 6
    normal = NormalDist()
    bias, z = normal.inv_cdf(below), normal.inv_cdf(0.5 + confidence / 2)
    edges = [bias + (bias + edge) / (1 - acceleration * (bias + edge)) for edge in (-z, z)]
    low, high = np.quantile(found, [normal.cdf(edge) for edge in edges])
    return float(low), float(high)


def _left_out(samples: tuple[Floats, ...], statistic: Callable[..., Any]) -> Floats:
    """The statistic without each image in turn, [N]."""
    n = len(samples[0])
    kept = ~np.eye(n, dtype=bool)  # np.delete would lose the records of errors that have some
    return np.array([statistic(*(s[rest] for s in samples), axis=-1) for rest in kept])


def jackknife_reach(
    samples: tuple[Floats, ...], statistic: Callable[..., Any], confidence: float
) -> float:
    """How far Student's interval reaches to either side, by the jackknife's standard error.

    Of a mean this is the plain t interval.

    Args:
        samples: float64 [N] each.
        statistic: as `interval` takes it.
        confidence: of the two-sided interval.
    """
    n = len(samples[0])
    left_out = _left_out(samples, statistic)
    error = math.sqrt((n - 1) / n * float(np.square(left_out - left_out.mean()).sum()))
    return t_quantile(0.5 + confidence / 2, n - 1) * error


def t_quantile(share: float, freedom: int) -> float:
    """Student's quantile by the expansion of Abramowitz and Stegun, 26.7.5.

    A board, which judges by this too, has no SciPy. From 9 degrees of freedom on the 95 % quantile
    is right to 1e-4; 1e-3 too low at 4.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


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
        lambda r, s, axis: contrast(np.mean(s, axis=axis), np.mean(r, axis=axis)),
        confidence=confidence,
        seed=seed,
    )
    low, high = _fieller(reference, errors, t_quantile(0.5 + confidence / 2, len(errors) - 1))
    ends = [ratio_of(edge) for edge in drawn]
    return float(np.minimum(ends[0], low)), float(np.maximum(ends[1], high))


def contrast(value: Any, reference: Any) -> Any:
    """(value - reference) / (value + reference), which rises with the ratio and is always a number.

    0 where both are 0: a resample without any error speaks for neither.
    """
    total = np.asarray(value + reference)
    return np.divide(value - reference, total, out=np.zeros_like(total), where=total != 0)


def ratio_of(value: float) -> float:
    """The ratio of a contrast."""
    return 0.0 if value <= -1 else math.inf if value >= 1 else (1 + value) / (1 - value)


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
