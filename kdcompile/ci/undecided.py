"""What would decide a latency test that was not decided, in words of its mark."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from kdcompile.ci.mark import Settings

if TYPE_CHECKING:
    from kdcompile.latency.report import Judged
    from kdcompile.stats.comparison import Comparison, Decision
    from kdcompile.stats.samples import Samples

TIMES = (2, 3, 4, 6, 8)  # as many blocks: what of them one process can hold
RESERVE = 1.5  # times what should do: how many do is known from few samples
LONGEST_S = 3600  # nobody waits longer for a test
RUNS = 6  # of a baseline: of three the spread is known so badly that 3 % cannot be told
RUNS_MORE = f"a baseline of {RUNS} runs: --kdcompile-save-baseline --kdcompile-runs {RUNS}"
DAYS_MORE = "a baseline of more runs, each on another day: --kdcompile-save-baseline then"
ANYWAY = "undecided='skip' in the mark shows it as skipped"


def to_decide(judged: "Judged", settings: Settings, *, function: bool) -> str:
    """Ways to a decision, the one that changes least first; the last one does without.

    Args:
        judged: an inconclusive comparison.
        settings: of the test.
        function: the candidate is a function: one run in one process, however long it takes.
    """
    paired = judged.comparison.paired
    more = within_process(judged) if function else judged.comparison.more_blocks
    ways = [
        None if more is None else longer(judged, settings, max(more, 1)),
        None if paired else _runs(judged),
        None if paired
        else "reference=OLD in the call, in place of the mark's baseline: in turns, less decides",
        wider(judged),
        ANYWAY,
    ]  # fmt: skip
    return "; or ".join(way for way in ways if way)


def _runs(judged: "Judged") -> str | None:
    """More runs of the baseline, if they would help."""
    from kdcompile.stats.samples import days_apart

    if days_apart(judged.candidate, judged.reference):
        return DAYS_MORE
    return RUNS_MORE if len(judged.reference.runs) < RUNS else None


def within_process(judged: "Judged") -> int | None:
    """Blocks of each side beyond those taken that would decide, all in the one process of a test.

    `Comparison.more_blocks` counts those of other processes, which a test has not: what a process
    is apart from others stays as it is assumed, and only the spread of its blocks shrinks. So the
    same blocks are judged as if they had come several times.

    Args:
        judged: functions. One against a baseline is a run, of which more time makes no two.

    Returns:
        None where `TIMES` as many would not do.
    """
    comparison = judged.comparison
    if not comparison.paired:
        return None
    for times in TIMES:
        sides = _repeated(judged.candidate, times), _repeated(judged.reference, times)
        if _again(*sides, comparison, comparison.ratios[0].margin) != "inconclusive":
            return comparison.blocks * (times - 1)
    return None


def _repeated(samples: "Samples", times: int) -> "Samples":
    run = samples.runs[0]
    build = run.builds[0]
    process = replace(build.processes[0], blocks=build.processes[0].blocks * times)
    return replace(samples, runs=(replace(run, builds=(replace(build, processes=(process,)),)),))


def _again(
    candidate: "Samples", reference: "Samples", comparison: "Comparison", margin: float
) -> "Decision":
    from kdcompile.stats.latency_test import compare

    paired, level = comparison.paired, comparison.level
    return compare(candidate, reference, paired=paired, margin=margin, level=level).decision


def longer(judged: "Judged", settings: Settings, more: int) -> str | None:
    """The seconds that take so many more blocks, and a reserve; None where that is too long."""
    comparison = judged.comparison
    times = RESERVE * (1 + more / comparison.blocks)
    seconds = math.ceil(settings.seconds * times)
    if seconds > LONGEST_S:
        return None
    sizes = [len(block.ms) for block in judged.candidate.blocks()]
    blocks = round((times - 1) * comparison.blocks)
    samples, side = round(blocks * sum(sizes) / len(sizes)), " of each" * comparison.paired
    taken = f"{blocks} more blocks{side}, some {samples} samples"
    return f"seconds={seconds} in the mark takes {taken}, a reserve among them"


def wider(judged: "Judged") -> str | None:
    """The least margin, in steps of 0.001, at which these very samples say: no change."""
    comparison = judged.comparison
    middle = comparison.ratios[0]
    least = max(middle.high, 1 / middle.low) - 1
    margin = (math.floor(1000 * least) + 1) / 1000
    if margin >= 1:
        return None
    if _again(judged.candidate, judged.reference, comparison, margin) != "equivalent":
        return None
    return f"max_regression={margin:g}: so small a change these samples can tell"
