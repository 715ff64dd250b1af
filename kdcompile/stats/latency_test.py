"""Decide whether the latency of one artifact differs from another's (reasons: docs/gates.md)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.stats.comparison import (
    MIN_BLOCKS,
    MIN_INFERENCES,
    Comparison,
    Decision,
    Ratio,
    reason,
)
from kdcompile.stats.hierarchical import Estimate, half_width, unpaired
from kdcompile.stats.hierarchical import paired as in_pairs
from kdcompile.stats.pairing import by_runs, interleaved, leans
from kdcompile.stats.sample_size import more_blocks
from kdcompile.stats.samples import Samples, sessions

NAMES = ("p50", "p90", "p99")
SHARES = (0.8, 0.1, 0.1)  # of the level: an alarm of any of the three is an alarm
WIDER = (1.0, 10 / 3, 25 / 3)  # times the margin: 3 %, 10 % and 25 %
# of the margin that the ratio itself must pass: half of it for the median, so that a regression of
# the margin is found; all of it for the tails, which a few wild inferences can move
BEYOND = (0.5, 1.0, 1.0)
UNBOUNDED = math.log(1000)  # to either side, where no spread is known: JSON has no infinity
LARGEST = 700.0  # a logarithm


def compare(
    candidate: Samples,
    reference: Samples,
    *,
    paired: bool,
    margin: float = 0.03,
    level: float = 0.005,
    seed: int = 0,
) -> Comparison:
    """Whether a candidate's latency has changed from the reference's.

    The ratio's interval leaves out `level` on either side, shared among p50, p90 and p99. At each:

        equivalent    the interval lies within 1 / (1 + m) and 1 + m, m the quantile's margin:
                      two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987)
        regressed     else, if it lies above 1 and the ratio above (1 + m) ** BEYOND
        improved      the same downwards
        inconclusive  else

    Disturbed blocks are left out. What was interleaved was disturbed alike by all that comes
    from outside: where one side was disturbed far more often, it is the artifact's own doing, and
    all blocks count. Taken apart, nothing tells one from the other, and a verdict must hold both
    ways.

    Args:
        candidate: what is judged.
        reference: what it is held against.
        paired: the two were interleaved, in the same processes, block next to block. Else
            they are compared from their samples alone, and the run is the top level, or the
            session where they were measured on more than one.
        margin: a change of the median that counts as none, as a share.
        level: chance of `regressed` where nothing changed.
        seed: of the draws of blocks.

    Raises:
        KDError: `samples-invalid`, `samples-empty`, `samples-unpaired`, `margin-invalid`,
            `level-invalid`.
    """
    _check(margin, level)

    def judge(every: bool) -> Comparison:
        return _judge((candidate, reference), paired, margin, level, seed, every=every)

    lean = leans(candidate, reference, paired=paired)
    if lean and paired:
        return _said(judge(True), f"disturbed blocks are in it, as most are of {lean}")
    found = judge(False)
    if lean and judge(True).decision != found.decision:
        text = (
            f"{found.decision} without the disturbed blocks, not with them, and most are of {lean}"
        )
        return _said(replace(found, decision="inconclusive", more_blocks=None), text)
    return found


def _said(comparison: Comparison, more: str) -> Comparison:
    return replace(comparison, reason=f"{comparison.reason}; {more}")


def _judge(
    both: tuple[Samples, Samples], paired: bool, margin: float, level: float, seed: int,
    *, every: bool,
) -> Comparison:  # fmt: skip
    """A verdict without the disturbed blocks, or on every block."""
    if paired:
        pairs, left_out = interleaved(*both, every=every)
        sides = [[side[i] for build in pairs for side in build] for i in (0, 1)]
        estimate = in_pairs(pairs, seed)
    else:
        runs, started, gone = zip(*(by_runs(side, every=every) for side in both), strict=True)
        sides = [[p for run in side for build in run for p in build] for side in runs]
        left_out, estimate = sum(gone), unpaired(runs, seed, sessions(started, both[1].name))
    blocks = min(sum(len(process) for process in side) for side in sides)
    inferences = min(sum(len(b) for process in side for b in process) for side in sides)
    enough = blocks >= MIN_BLOCKS and inferences >= MIN_INFERENCES
    coarse = coarseness(sides)
    ratios = _ratios(estimate, margin, level, coarse, enough=enough)
    decision = _verdict(ratios)
    more = None
    if decision == "inconclusive" and estimate.level != "session":  # measuring on makes no more
        wanted = _wanted(abs(float(estimate.value[0])), math.log1p(margin)) - coarse
        more = more_blocks(estimate, level * SHARES[0], wanted, blocks, inferences)
    text = reason(decision, ratios, more, estimate, coarse, paired=paired, enough=enough)
    return Comparison(decision, text, ratios, level, paired, blocks, left_out, more)


def _check(margin: float, level: float) -> None:
    if not 0 < margin < 1:
        raise KDError(
            "margin-invalid",
            f"a margin is a share between 0 and 1, not {margin}",
            where="margin",
            fix="give 0.03 for 3 %",
        )
    if not 0 < level < 0.5:
        raise KDError(
            "level-invalid",
            f"a level is a chance between 0 and 0.5, not {level}",
            where="level",
            fix="give 0.005 for one false alarm in 200",
        )


def _ratios(
    estimate: Estimate, margin: float, level: float, coarse: float, *, enough: bool
) -> tuple[Ratio, ...]:
    import numpy as np

    halves = half_width(estimate, level * np.array(SHARES)) + coarse
    made = []
    for i, name in enumerate(NAMES):
        value = float(estimate.value[i])
        half = min(float(halves[i]), UNBOUNDED + abs(value))
        low, high = value - half, value + half
        own = margin * WIDER[i]
        decided = _decide(value, low, high, math.log1p(own), BEYOND[i])
        made.append(
            Ratio(
                name, _exp(value), _exp(low), _exp(high), own,
                decided if enough else "inconclusive",
            )
        )  # fmt: skip
    return tuple(made)


def _exp(log: float) -> float:
    """A ratio of its logarithm, within what a float holds."""
    return math.exp(min(max(log, -LARGEST), LARGEST))


def _decide(value: float, low: float, high: float, margin: float, beyond: float) -> Decision:
    """On the logarithms of a ratio, its interval and its margin."""
    if -margin < low and high < margin:
        return "equivalent"
    if low > 0 and value > beyond * margin:
        return "regressed"
    if high < 0 and value < -beyond * margin:
        return "improved"
    return "inconclusive"


def _wanted(value: float, margin: float) -> float:
    """The half-width at which a median's log ratio of this size is decided."""
    return value if value > BEYOND[0] * margin else margin - value


def _verdict(ratios: tuple[Ratio, ...]) -> Decision:
    if any(ratio.decision == "regressed" for ratio in ratios):
        return "regressed"
    return ratios[0].decision


Floats = NDArray[np.float64]


def coarseness(sides: Sequence[Iterable[Sequence[Floats]]]) -> float:
    """How far a log ratio of quantiles may be off: one step, half of it for either side.

    The step is the least difference between two latencies, which is next to nothing where the clock
    is fine, and infinite where all are the same: then no step is known.

    Args:
        sides: blocks of each process of candidate and reference, in milliseconds.
    """
    times = [np.concatenate([b for process in side for b in process]) for side in sides]
    steps = np.diff(np.unique(np.concatenate(times)))
    if not len(steps):
        return float("inf")
    return float(np.log1p(steps.min() / min(float(np.median(side)) for side in times)))
