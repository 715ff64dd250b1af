"""Which runs were measured on the same occasion.

A device is not the same on two days: it is warmer, its host is busier, its clocks are others. Runs
that follow each other know nothing of that, however many there are.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from kdcompile.core.errors import KDError
from kdcompile.stats.samples import Samples

APART = timedelta(minutes=10)  # between runs of two occasions


def occasions(sides: Sequence[Sequence[str]], where: str = "") -> list[list[int]] | None:
    """By side, the number of each run's occasion.

    Args:
        sides: when each run of a side started: ISO 8601, UTC where it says nothing else.
        where: for the error.

    Returns:
        None where all runs of all sides are of one occasion.

    Raises:
        KDError: `samples-invalid`, a time that cannot be read.
    """
    times = [[_time(text, where) for text in side] for side in sides]
    ordered = sorted(time for side in times for time in side)
    begins = [b for a, b in pairwise(ordered) if b - a > APART]
    if not begins:
        return None
    return [[sum(begin <= time for begin in begins) for time in side] for side in times]


def days_apart(ours: Samples, theirs: Samples) -> bool:
    """Whether the two were measured on more than one occasion."""
    started = [[run.started for run in side.runs] for side in (ours, theirs)]
    return occasions(started, theirs.name) is not None


def _time(text: str, where: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise KDError(
            "samples-invalid",
            f"a run that started at {text!r}, which is no time",
            where=where,
            fix="measure again: kdcompile bench ARTIFACT --save FILE",
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
