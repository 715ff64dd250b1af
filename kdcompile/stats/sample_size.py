"""Sample sizes: how many more blocks, runs or images would decide an undecided verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kdcompile.stats.bootstrap import t_quantile
from kdcompile.stats.comparison import MIN_BLOCKS, MIN_INFERENCES, Comparison, Decision
from kdcompile.stats.hierarchical import Estimate
from kdcompile.stats.noninferiority import CONFIDENCE, decrease_interval, least_images
from kdcompile.stats.samples import Samples
from kdcompile.tasks.metric import TOP1, Metric

MOST_UNITS = 4096
TIMES = (2, 3, 4, 6, 8)  # as many blocks: what of them one process can hold
MOST = 10_000_000  # images; more are no advice
POWER, CORRELATION = 0.8, 0.8
DRAWS = 1000


def more_blocks(
    estimate: Estimate, tail: float, wanted: float, blocks: int, inferences: int
) -> int | None:
    """Blocks of each side beyond `blocks` that would decide, if the ratio stays what it is.

    They come as more processes or builds like those that were taken; where the two sides were
    not interleaved, as more runs of the candidate.

    Args:
        estimate: of which the median is asked.
        tail: chance outside the interval on either side.
        wanted: the half-width at which it would be decided, as a log ratio.
        blocks, inferences: of each side that were used.

    Returns:
        None where no number of them would do: the reference's own runs are too few.
    """
    from scipy.special import stdtrit

    few = max(MIN_BLOCKS - blocks, math.ceil(MIN_INFERENCES * blocks / inferences) - blocks, 0)
    first = estimate.units[0]
    more = np.arange(MOST_UNITS)
    ours, *theirs = (float(variance[0]) for variance in estimate.variances)
    variance = ours * first / (first + more) + sum(theirs)
    enough = stdtrit(estimate.df + more, 1 - tail) * np.sqrt(variance) <= wanted
    if not enough.any():
        return None
    return max(few, math.ceil(int(np.argmax(enough)) * blocks / first))


def growth(comparison: Comparison, more: int | None = None) -> float:
    """How many times the blocks that were taken would decide.

    Args:
        comparison: an inconclusive one.
        more: blocks of each side beyond those taken; `comparison.more_blocks` if absent.
    """
    more = comparison.more_blocks if more is None else more
    assert more is not None, "some number of blocks would decide"
    return 1 + more / comparison.blocks


def more_blocks_of_one_process(
    candidate: Samples, reference: Samples, comparison: Comparison
) -> int | None:
    """Blocks of each side beyond those taken that would decide, all in one process.

    `more_blocks` counts those of other processes. Where there are none, what a process is apart
    from others stays as it is assumed, and only the spread of its blocks shrinks. So the same
    blocks are compared as if they had come several times.

    Args:
        candidate: one run of one process.
        reference: the same; one that was measured with it.
        comparison: of the two, inconclusive.

    Returns:
        None where `TIMES` as many would not do, or the two were not interleaved.
    """
    if not comparison.paired:
        return None
    for times in TIMES:
        ours, theirs = (_repeated(side, times) for side in (candidate, reference))
        if _again(ours, theirs, comparison, comparison.ratios[0].margin) != "inconclusive":
            return comparison.blocks * (times - 1)
    return None


def least_margin(candidate: Samples, reference: Samples, comparison: Comparison) -> float | None:
    """The least margin, in steps of 0.001, at which these very samples are equivalent.

    Args:
        candidate: samples.
        reference: samples.
        comparison: of the two, inconclusive.
    """
    middle = comparison.ratios[0]
    least = max(middle.high, 1 / middle.low) - 1
    margin = (math.floor(1000 * least) + 1) / 1000
    if margin >= 1 or _again(candidate, reference, comparison, margin) != "equivalent":
        return None
    return margin


def _repeated(samples: Samples, times: int) -> Samples:
    return samples.with_blocks(lambda blocks: blocks * times)


def _again(
    candidate: Samples, reference: Samples, comparison: Comparison, margin: float
) -> Decision:
    from kdcompile.stats.latency_test import compare

    paired, level = comparison.paired, comparison.level
    return compare(candidate, reference, paired=paired, margin=margin, level=level).decision


def least_number(enough: Callable[[int], bool], more_than: int = 0) -> int | None:
    """The least n for which a condition holds that stays true once it is; None over `MOST`.

    Where it may turn false again for a while, as by rounding, an n for which it holds.

    Args:
        enough: of a number of images.
        more_than: a number, at least 0, that is known to be too few.
    """
    few, many = more_than, more_than + 1
    while not enough(many):
        if many >= MOST:
            return None
        few, many = many, min(2 * many, MOST)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


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
