"""The result of comparing two latencies, its explanation, and repeated looks at one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK
from kdcompile.stats.hierarchical import Estimate
from kdcompile.stats.samples import Samples

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


LOOKS = 5

Decide = Callable[[list[Samples], float], Comparison]


@dataclass
class Looks:
    """A group-sequential test: looks after 1, 2, 4 and 8 times the first rounds of a measurement.

    Who looks after every block and stops at the first alarm finds one in the end, whatever is
    true. So at most `LOOKS` looks are taken, and each may spend only its share of the level:
    Bonferroni's inequality, which holds however the looks depend on each other. The boundary of
    Pocock (Biometrika 64, 1977) is a few per cent narrower, but only for means of normal samples
    that come in equal groups. The samples double from look to look, because a look that adds little
    could hardly tell more than the last.

    The last look is kept for `final`, when the time or the rounds are at an end.

    Args:
        decide: a comparison of what was measured so far, at a level.
        level: chance of a false alarm that all looks may spend together.
        first: rounds before the first look; at least 1.
    """

    decide: Decide
    level: float
    first: int = 1
    rounds: int = 0
    taken: int = 0
    looked_at: int = 0
    last: Comparison | None = None

    @property
    def share(self) -> float:
        """The level of one look."""
        return self.level / LOOKS

    @property
    def most_rounds(self) -> int:
        """How many rounds there is a look for; more would be measured for nothing."""
        return int(self.first * 2 ** (LOOKS - 1))

    def __call__(self, found: list[Samples]) -> bool:
        """One more round is measured: whether it decides."""
        self.rounds += 1
        if self.taken == LOOKS - 1 or self.rounds != self.first * 2**self.taken:
            return False
        return self._look(found).decision != "inconclusive"

    def final(self, found: list[Samples]) -> Comparison:
        """The verdict when the measurement has ended: the one that stopped it, or the last look."""
        decided = self.last is not None and self.last.decision != "inconclusive"
        if self.last is not None and (decided or self.looked_at == self.rounds):
            return self.last
        return self._look(found)

    def _look(self, found: list[Samples]) -> Comparison:
        self.taken, self.looked_at = self.taken + 1, self.rounds
        self.last = self.decide(found, self.share)
        return self.last
