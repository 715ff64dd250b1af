"""Suggestions of what would decide an undecided latency test, in words of its mark."""

import math
from typing import TYPE_CHECKING

from kdcompile.ci.mark import Settings

if TYPE_CHECKING:
    from kdcompile.latency.report import Judged

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
    from kdcompile.stats.sample_size import more_blocks_of_one_process

    paired, more = judged.comparison.paired, judged.comparison.more_blocks
    if function:
        more = more_blocks_of_one_process(judged.candidate, judged.reference, judged.comparison)
    ways = [
        None if more is None else longer(judged, settings, max(more, 1)),
        None if paired else _runs(judged),
        None if paired
        else "reference=OLD in the call, not the mark's baseline: interleaved, less decides",
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


def longer(judged: "Judged", settings: Settings, more: int) -> str | None:
    """The seconds that take so many more blocks, and a reserve; None where that is too long."""
    from kdcompile.stats.sample_size import growth

    comparison = judged.comparison
    times = RESERVE * growth(comparison, more)
    seconds = math.ceil(settings.seconds * times)
    if seconds > LONGEST_S:
        return None
    sizes = [len(block.ms) for block in judged.candidate.blocks()]
    blocks = round((times - 1) * comparison.blocks)
    samples, side = round(blocks * sum(sizes) / len(sizes)), " of each" * comparison.paired
    taken = f"{blocks} more blocks{side}, some {samples} samples"
    return f"seconds={seconds} in the mark takes {taken}, a reserve among them"


def wider(judged: "Judged") -> str | None:
    """The least margin at which these very samples say: no change."""
    from kdcompile.stats.sample_size import least_margin

    margin = least_margin(judged.candidate, judged.reference, judged.comparison)
    if margin is None:
        return None
    return f"max_regression={margin:g}: so small a change these samples can tell"
