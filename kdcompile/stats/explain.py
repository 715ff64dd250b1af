"""A verdict in a sentence."""

import math

from kdcompile.stats.comparison import Decision, Ratio
from kdcompile.stats.hierarchical import Estimate
from kdcompile.stats.sample_size import MIN_BLOCKS, MIN_INFERENCES

COARSE = 0.25  # of the margin: more than that, and the clock is what stands in the way
STEPS = (
    "the clock counts in steps too large for so short a latency, which no number of samples makes "
    "finer: time a larger input or --batch"
)
OCCASIONS = (
    "measuring on does not tell how much this device moves from one occasion to the next: run the "
    "reference beside it, or add occasions to the baseline (kdcompile baseline update --add)"
)
WORDS = {"p50": "the median", "p90": "p90", "p99": "p99"}


def reason(
    decision: Decision,
    ratios: tuple[Ratio, ...],
    more: int | None,
    estimate: Estimate,
    coarse: float,
    *,
    paired: bool,
    enough: bool,
) -> str:
    """One sentence: what was found, and what it rests on where that is little.

    Args:
        decision: of the comparison.
        ratios: p50 first.
        more: blocks of each side that would decide.
        estimate: that the ratios are of.
        coarse: what the clock's step leaves open of them, as a log ratio.
        paired: measured in turns.
        enough: there were as many blocks and inferences as a verdict needs.
    """
    median = ratios[0]
    if decision == "equivalent":
        said = f"the median changed by less than {100 * median.margin:.3g} %: {_range(median)}"
    elif decision == "improved":
        said = f"the median changed by {_percent(median.value)} ({_range(median)})"
    elif decision == "regressed":
        worse = next(ratio for ratio in ratios if ratio.decision == "regressed")
        gate = "" if worse is median else f", beyond its gate of {_percent(1 + worse.margin)}"
        said = f"{WORDS[worse.quantile]} changed by {_percent(worse.value)} ({_range(worse)}){gate}"
    else:
        missing = _missing(more, estimate, paired=paired, enough=enough)
        if more is None and coarse > COARSE * math.log1p(median.margin):
            missing = STEPS
        said = f"the median may have changed by {_range(median)}; {missing}"
    return f"{said}; {_basis(estimate, paired=paired)}"


def _missing(more: int | None, estimate: Estimate, *, paired: bool, enough: bool) -> str:
    if estimate.level == "occasion":
        return OCCASIONS
    if more is None:
        what = "processes or builds" if paired else "runs of the reference"
        return f"more {what} are needed to decide"
    whose = "of each" if paired else "of the candidate, in more runs,"
    if estimate.level == "build":
        whose += ", in more builds,"
    asked = f"about {more} more blocks {whose} would decide"
    if enough:
        return asked
    return f"{asked}, and no verdict is given on fewer than {MIN_BLOCKS} blocks and " + (
        f"{MIN_INFERENCES} inferences of each"
    )


def _basis(estimate: Estimate, *, paired: bool) -> str:
    counts = estimate.units
    if not paired:
        units = _count(counts[0], estimate.level)
        return f"from samples alone, {units} against {counts[1]}, not in turns"
    if counts[0] == 1:
        return "in turns in one process, so that the spread of processes is assumed"
    return f"in turns, {_count(counts[0], estimate.level)}"


def _count(count: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{count} {what if count == 1 else plural}"


def _range(ratio: Ratio) -> str:
    return f"{_percent(ratio.low)} to {_percent(ratio.high)}"


def _percent(ratio: float) -> str:
    if ratio >= 100:
        return f"x {ratio:.0f}"
    return f"{100 * (ratio - 1):+.1f} %"
