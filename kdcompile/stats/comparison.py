"""The result of comparing two latencies, and its explanation in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK
from kdcompile.stats.hierarchical import Estimate

Decision = Literal["regressed", "improved", "equivalent", "inconclusive"]
EXIT: Mapping[Decision, int] = {
    "regressed": EXIT_GATE, "improved": EXIT_OK, "equivalent": EXIT_OK,
    "inconclusive": EXIT_INCONCLUSIVE,
}  # fmt: skip

MIN_BLOCKS = 8  # of each side: all of them on one side is a chance of 1 in 256 (sign test)
MIN_INFERENCES = 40  # of each side: four of them lie above a p90


@dataclass(frozen=True)
class Ratio:
    """Latency of the candidate over that of the reference, at one quantile.

    Args:
        quantile: `p50`, `p90` or `p99`.
        value: of the samples.
        low, high: the interval at `level` of the comparison.
        margin: what counts as no change: a ratio within 1 / (1 + margin) and 1 + margin.
        decision: at this quantile alone.
    """

    quantile: str
    value: float
    low: float
    high: float
    margin: float
    decision: Decision


@dataclass(frozen=True)
class Comparison:
    """A verdict with what it rests on.

    Args:
        decision: of the median; a `regressed` wider gate of p90 or p99 makes it `regressed` too.
        reason: one sentence.
        ratios: p50 first.
        level: chance of a false alarm that was allowed.
        paired: the two were interleaved, in one run.
        blocks: of each side that were used, and `left_out` as disturbed.
        more_blocks: how many more of each side would decide, as far as it can be told.
    """

    decision: Decision
    reason: str
    ratios: tuple[Ratio, ...]
    level: float
    paired: bool
    blocks: int
    left_out: int
    more_blocks: int | None = None

    @property
    def exit_code(self) -> int:
        """3 for a regression, 5 for no decision, 0 otherwise."""
        return EXIT[self.decision]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"exit_code": self.exit_code}


COARSE = 0.25  # of the margin: more than that, and the clock is what stands in the way
STEPS = (
    "the clock counts in steps too large for so short a latency, which no number of samples makes "
    "finer: time a larger input or --batch"
)
SESSIONS_NEEDED = (
    "more measuring does not show how much this device varies between sessions: measure the "
    "reference with it, or add sessions to the baseline (kdcompile baseline update --add)"
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
        paired: interleaved.
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
    if estimate.level == "session":
        return SESSIONS_NEEDED
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
        return f"from samples alone, {units} against {counts[1]}, not interleaved"
    if counts[0] == 1:
        return "interleaved in one process, so that the spread of processes is assumed"
    return f"interleaved, {_count(counts[0], estimate.level)}"


def _count(count: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{count} {what if count == 1 else plural}"


def _range(ratio: Ratio) -> str:
    return f"{_percent(ratio.low)} to {_percent(ratio.high)}"


def _percent(ratio: float) -> str:
    if ratio >= 100:
        return f"x {ratio:.0f}"
    return f"{100 * (ratio - 1):+.1f} %"
