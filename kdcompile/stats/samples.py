"""Latency samples as they were taken: blocks of inferences in processes, builds, runs, sessions.

What repeats together varies together: inferences of one block share clocks and caches, blocks of
one process its memory layout, processes of one engine the kernels that its builder chose, and all
of a run the state of the machine. So a sample keeps its place in this tree.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from kdcompile.core.errors import KDError


@dataclass(frozen=True)
class Block:
    """One burst of inferences.

    Args:
        ms: of each inference, by the clock that the run's mode names; at least one.
        at_s: when it began, in seconds since its run did.
        disturbed: what disturbed it, such as a clock that fell; None where nothing was seen.
    """

    ms: tuple[float, ...]
    at_s: float
    disturbed: str | None = None


@dataclass(frozen=True)
class Process:
    """The blocks of one process, in the order in which they were taken."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Build:
    """One build of an artifact.

    Args:
        sha256: of what ran: the engine, or the ONNX file that a session was made of.
        processes: that loaded it, each at least once.
    """

    sha256: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Run:
    """One measuring run: everything between one look at the machine and the next.

    Args:
        started: UTC, ISO 8601.
        environment: what a latency depends on (`environment.py`), plain JSON values.
        mode: how it was measured: clock, batch, warm-up, whether copies count, plain JSON values.
        builds: at least one.
    """

    started: str
    environment: Mapping[str, Any]
    mode: Mapping[str, Any]
    builds: tuple[Build, ...]


@dataclass(frozen=True)
class Samples:
    """All latencies of one artifact.

    Args:
        name: of the artifact, for people.
        sha256: of the file that was named: the same for every build of an ONNX file.
        runs: at least one.
    """

    name: str
    sha256: str
    runs: tuple[Run, ...]

    def blocks(self, *, disturbed: bool = False) -> Iterator[Block]:
        """Every block, with `disturbed` also those that something disturbed."""
        for _, _, process in self.processes():
            yield from (b for b in process.blocks if disturbed or b.disturbed is None)

    def processes(self) -> Iterator[tuple[str, Build, Process]]:
        """Every process, with its position in words and the build that it loaded."""
        for r, run in enumerate(self.runs, 1):
            for b, build in enumerate(run.builds, 1):
                for p, process in enumerate(build.processes, 1):
                    yield f"run {r}, build {b}, process {p}", build, process

    def with_blocks(self, change: Callable[[tuple[Block, ...]], tuple[Block, ...]]) -> "Samples":
        """The same samples with other blocks in each process."""

        def build(one: Build) -> Build:
            changed = (replace(process, blocks=change(process.blocks)) for process in one.processes)
            return replace(one, processes=tuple(changed))

        runs = (replace(run, builds=tuple(map(build, run.builds))) for run in self.runs)
        return replace(self, runs=tuple(runs))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `samples_from_json` reads them back."""
        return asdict(self)


def samples_from_json(data: Mapping[str, Any]) -> Samples:
    """The samples that `Samples.to_json` gave.

    Raises:
        ValueError: the data are not such samples, with the first field at fault.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Samples).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for number, run in enumerate(found.runs):
        if not isinstance(run.environment.get("facts", {}), dict):
            raise ValueError(f"runs.{number}.environment.facts: Input should be an object")
    return found


APART = timedelta(minutes=10)  # between runs of two sessions


def sessions(sides: Sequence[Sequence[str]], where: str = "") -> list[list[int]] | None:
    """By side, the number of each run's session.

    Args:
        sides: when each run of a side started: ISO 8601, UTC where it says nothing else.
        where: for the error.

    Returns:
        None where all runs of all sides are of one session.

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
    """Whether the two were measured on more than one session."""
    started = [[run.started for run in side.runs] for side in (ours, theirs)]
    return sessions(started, theirs.name) is not None


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
