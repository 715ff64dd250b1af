"""Noninferiority test: a network is worse than another by no more than a margin, on equal images.

With r the reference's metric, s the network's, d how much worse s is (s - r for an error, r - s for
a rate of right answers), and low, high the one-sided 95 % bounds of d over images, each with
both of its errors: by `ratio_interval`, or for a rate by the score interval of paired proportions,
the verdict is

    failed        d > limit, the point estimate is over its limit;
                  or low > margin, it is worse than the margin allows
    inconclusive  otherwise, if high > margin, these images cannot exclude that it is worse;
                  or if there are fewer than `MIN_IMAGES` images, two for a rate
    passed        otherwise

where the limits of an error are shares of r, and those of a rate percentage points; those of an
error that is relative to the reference already are of the error itself. A network over the limit by
chance fails too: a limit on the point estimate is what was asked for.

The margin of an error moves with r, which is as uncertain as s. So the bounds of d are r times what
those of the ratio s / r leave, of mean squares for a root mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.stats.bootstrap import MIN_IMAGES, interval, ratio_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdcompile.core.report import Verdict
    from kdcompile.tasks.metric import Metric

    Floats = NDArray[np.float64]

EQUAL = 1e-4  # an error relative to outputs that are the same but for rounding
CONFIDENCE = 0.9  # two-sided; each end is a one-sided 95 % bound


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on: both metrics, and the bounds of how much worse one is."""

    verdict: Verdict
    reason: str
    reference: float
    value: float
    low: float | None
    high: float | None


def compare(
    metric: Metric,
    reference: Floats,
    errors: Floats,
    *,
    margin: float,
    max_increase: float | None = None,
    seed: int,
    find: Callable[..., tuple[float | None, float | None]] | None = None,
) -> Decision:
    """The verdict by the rule that this module states.

    Args:
        metric: of the errors.
        reference: errors of the reference, [N].
        errors: of the network that is judged, on the same images.
        margin: as a share, 0.15 of "15%".
        max_increase: the limit of the point estimate, as a share; none if absent.
        seed: of the resampling.
        find: the bounds, where others than `bounds`.

    Raises:
        KDError: `accuracy-images`, `accuracy-unpaired` or `accuracy-nonfinite`.
    """
    check_pairs(reference, errors)
    r, s = metric(reference), metric(errors)
    low, high = (find or bounds)(metric, reference, errors, seed)
    verdict, reason = decide(metric, r, s, low, high, margin, max_increase, len(errors))
    return Decision(verdict, reason, r, s, low, high)


def check_pairs(reference: Floats, errors: Floats) -> None:
    """Refuse errors that no verdict can rest on.

    Raises:
        KDError: `accuracy-images`, there are none; `accuracy-unpaired`, they are not of the same
            images; `accuracy-nonfinite`, one is no number.
    """
    if len(reference) != len(errors):
        raise KDError(
            "accuracy-unpaired",
            f"{len(errors)} errors do not pair with {len(reference)}: the test images differ",
            where="[data] test",
            fix="kdcompile verify runs both networks on one test split",
        )
    if not len(errors):
        raise KDError(
            "accuracy-images",
            "there are no test images, so nothing can be decided",
            where="[data] test",
            fix="list the test images in the split's file",
        )
    if not (np.isfinite(reference).all() and np.isfinite(errors).all()):
        raise KDError(
            "accuracy-nonfinite",
            "an error of a test image is NaN or infinite",
            where="the network's output, or the image's label",
            fix="check the weights and the labels; in fp16, a value over 65504 overflows",
        )


def least_images(metric: Metric) -> int:
    """How many images a bound needs: two of a rate, whose interval is wide by itself."""
    return 2 if metric.points else MIN_IMAGES


def bounds(
    metric: Metric,
    reference: Floats,
    errors: Floats,
    seed: int,
    confidence: float = CONFIDENCE,
) -> tuple[float | None, float | None]:
    """The two-sided interval of how much worse a network is; None for too few images."""
    if len(errors) < least_images(metric):
        return None, None
    if metric.points or _is_share(metric, reference, errors):
        return rate_decrease_interval(reference, errors, confidence)
    whole = metric(reference)
    if metric.absolute:
        return interval((reference, errors), _apart(metric), confidence=confidence, seed=seed)
    if not whole:  # of a reference that is never wrong there is no share
        # a bound at 0 decides as one below it: no allowance is negative
        return interval((errors,), metric.of, confidence=confidence, seed=seed, least=0.0)
    powers = (np.abs(values / whole) ** metric.power for values in (reference, errors))
    low, high = ratio_interval(*powers, confidence=confidence, seed=seed)
    low, high = (whole * (end ** (1 / metric.power) - 1) for end in (low, high))
    return with_observed(metric(errors) - whole, low, high)


def with_observed(observed: float, low: float, high: float) -> tuple[float, float]:
    """The bounds, with what was observed between them: rounding must not leave it outside."""
    return float(np.minimum(low, observed)), float(np.maximum(high, observed))


def _is_share(metric: Metric, *errors: Floats) -> bool:
    """Whether images are right or wrong throughout, of a metric that is a share of 1."""
    return metric.most == 1.0 and all(np.isin(each, (0.0, 1.0)).all() for each in errors)


def _apart(metric: Metric) -> Callable[..., Any]:
    """How far apart two networks are by a metric, for the bootstrap."""
    return lambda r, s, axis: metric.of(s, axis=axis) - metric.of(r, axis=axis)


def decide(
    metric: Metric,
    reference: float,
    value: float,
    low: float | None,
    high: float | None,
    margin: float,
    max_increase: float | None,
    n: int,
) -> tuple[Verdict, str]:
    """The verdict of two metrics and the bounds of their difference, and why."""
    if max_increase is not None:
        limit = metric.limit(reference, max_increase)
        if metric.is_better(limit, value):
            relation = "under" if metric.higher else "over"
            shown = f"{metric.name} {metric.text(value)}"
            return "failed", f"{shown} is {relation} the limit of {metric.text(limit)}"
    if low is None or high is None:
        few, least = f"{n} image{'s'[: n > 1]}", least_images(metric)
        return "inconclusive", f"{few}, too few for a bound at 95 %: {least} at least"
    allowance = metric.allowance(reference, margin)
    allowed = f"the margin of {metric.difference(allowance)}"
    worse = f"the {metric.worsening}"
    if low > allowance:
        return "failed", f"{worse} is at least {metric.difference(low)} at 95 %, over {allowed}"
    if not (math.isfinite(high) and high <= allowance):  # no number proves nothing
        shown = metric.difference(high) if math.isfinite(high) else "of any size"
        return "inconclusive", f"{worse} may be {shown} at 95 %, over {allowed}"
    return "passed", f"{worse} is at most {metric.difference(high)} at 95 %, within {allowed}"


def observed_text(metric: Metric, reference: float, value: float) -> str:
    """Both metrics and their difference, such as `mae 4.2 against 4 (+5.0%)`."""
    change = ""
    if metric.absolute:
        own = "" if reference < EQUAL else f" against {metric.text(reference)}"
        return f"{metric.name} {metric.text(value)}{own}"
    if metric.points:
        change = f" ({100 * (value - reference):+.2f} points)"
    elif reference > 0:
        change = f" ({(value / reference - 1):+.1%})"
    return f"{metric.name} {metric.text(value)} against {metric.text(reference)}{change}"


def limits_text(metric: Metric, max_increase: str, margin: str, whose: str) -> str:
    """The limits of a spec in words; `whose` is empty where the reference's own error is 0."""
    if metric.absolute:
        most, bound = (f"{float(text.rstrip('%')) / 100:g}" for text in (max_increase, margin))
        beside = f" over {whose}" if whose else ""
        return f"{metric.name} at most {most}{beside}, 95 % bound at most {bound}{beside}"
    if metric.points:
        max_increase, margin = (f"{text.rstrip('%')} points" for text in (max_increase, margin))
    relation = "under" if metric.higher else "over"
    return f"{metric.name} at most {max_increase} {relation} {whose}, 95 % bound within {margin}"


# intervals of rates: a bootstrap of images that are all right claims to be certain
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
