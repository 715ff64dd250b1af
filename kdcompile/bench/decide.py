"""The verdict on two artifacts' latencies. docs/gates.md has the reasons and what it finds."""

import math

from kdcompile.bench.hierarchy import Estimate, apart
from kdcompile.bench.hierarchy import paired as in_pairs
from kdcompile.bench.matched import by_runs, in_turns
from kdcompile.bench.needed import MIN_BLOCKS, MIN_INFERENCES, half_width, more_blocks
from kdcompile.bench.reason import reason
from kdcompile.bench.samples import Samples
from kdcompile.bench.verdict import Comparison, Decision, Ratio
from kdcompile.errors import KDError

NAMES = ("p50", "p90", "p99")
SHARES = (0.8, 0.1, 0.1)  # of the level: an alarm of any of the three is an alarm
WIDER = (1.0, 10 / 3, 25 / 3)  # times the margin: 3 %, 10 % and 25 %
# of the margin that the ratio itself must pass: half of it for the median, so that a regression of
# the margin is found; all of it for the tails, which a few wild inferences can move
BEYOND = (0.5, 1.0, 1.0)
UNBOUNDED = math.log(1000)  # where no spread is known, and JSON has no infinity


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

    Args:
        candidate: what is judged.
        reference: what it is held against.
        paired: the two were measured in turns, in the same processes, block beside block. Else
            they are compared from their samples alone, and the run is the top level.
        margin: a change of the median that counts as none, as a share.
        level: chance of `regressed` where nothing changed.
        seed: of the draws of blocks.

    Raises:
        KDError: `samples-invalid`, `samples-empty`, `samples-unpaired`, `margin-invalid`,
            `level-invalid`.
    """
    _check(margin, level)
    if paired:
        pairs, left_out = in_turns(candidate, reference)
        sides = [[side[i] for build in pairs for side in build] for i in (0, 1)]
        estimate = in_pairs(pairs, seed)
    else:
        ours, gone = by_runs(candidate)
        theirs, gone_there = by_runs(reference)
        sides = [[p for run in side for build in run for p in build] for side in (ours, theirs)]
        left_out, estimate = gone + gone_there, apart((ours, theirs), seed)
    blocks = min(sum(len(process) for process in side) for side in sides)
    inferences = min(sum(len(b) for process in side for b in process) for side in sides)
    enough = blocks >= MIN_BLOCKS and inferences >= MIN_INFERENCES
    ratios = _ratios(estimate, margin, level, enough=enough)
    decision = _verdict(ratios)
    more = None
    if decision == "inconclusive":
        wanted = _wanted(abs(float(estimate.value[0])), math.log1p(margin))
        more = more_blocks(estimate, level * SHARES[0], wanted, blocks, inferences)
    text = reason(decision, ratios, more, estimate, paired=paired, enough=enough)
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


def _ratios(estimate: Estimate, margin: float, level: float, *, enough: bool) -> tuple[Ratio, ...]:
    import numpy as np

    halves = half_width(estimate, level * np.array(SHARES))
    made = []
    for i, name in enumerate(NAMES):
        value, half = float(estimate.value[i]), float(halves[i])
        low, high = max(value - half, -UNBOUNDED), min(value + half, UNBOUNDED)
        own = margin * WIDER[i]
        decided = _decide(value, low, high, math.log1p(own), BEYOND[i])
        made.append(
            Ratio(
                name, math.exp(value), math.exp(low), math.exp(high), own,
                decided if enough else "inconclusive",
            )
        )  # fmt: skip
    return tuple(made)


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
