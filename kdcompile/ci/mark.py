"""Settings of the pytest mark `kdcompile_latency`, and suggestions for an undecided test."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from kdcompile.core.errors import KDError, nearest

if TYPE_CHECKING:
    from kdcompile.latency.report import Judged


DAY_S = 86400
Undecided = Literal["fail", "skip"]


FIXES = {
    "baseline": "give the path of a baseline file",
    "max_regression": "give a number above 0 and below 1",
    "undecided": f"give {' or '.join(get_args(Undecided))}",
    "seconds": f"give a number above 0 and below {DAY_S}",
    "via": "give python:PATH or ssh://[user@]host[:port]",
    "allow": "give a list of names, such as ['python_version']",
}


class Settings(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The words of the mark.

    Args:
        baseline: file; relative to pytest's rootdir, like every path here.
        max_regression: the margin of the median, as a share.
        undecided: what becomes of a test whose verdict is inconclusive; it never passes.
        seconds: that measuring may take.
        via: where an artifact is measured, as `--via`.
        allow: conditions that may differ from the baseline's, as `--allow`.
    """

    baseline: str | os.PathLike[str] | None = None
    max_regression: Annotated[float, Field(gt=0, lt=1)] = 0.03
    undecided: Undecided = "fail"
    seconds: Annotated[float, Field(gt=0, lt=DAY_S)] = 10.0
    via: str | None = None
    allow: Annotated[
        list[str] | tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ] = ()


def settings_of(args: Sequence[Any], words: Mapping[str, Any]) -> Settings:
    """The mark's words, checked.

    Raises:
        KDError: `mark-invalid`.
    """
    if args:
        raise _mark("it takes words only by name", f"use {', '.join(FIXES)}")
    try:
        return Settings(**words)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
    if name not in FIXES:
        raise _mark(f"it takes no word {name!r}{nearest(name, FIXES)}", f"use {', '.join(FIXES)}")
    near = nearest(str(words[name]), get_args(Undecided)) if name == "undecided" else ""
    raise _mark(f"{name} is {words[name]!r}{near}", FIXES[name])


def _mark(message: str, fix: str) -> KDError:
    return KDError("mark-invalid", message, where="@pytest.mark.kdcompile_latency", fix=fix)


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
