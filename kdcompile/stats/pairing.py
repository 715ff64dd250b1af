"""Select the blocks that a comparison uses: undisturbed ones, each with its neighbour."""

import math
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.stats.hierarchical import Blocks
from kdcompile.stats.samples import Block, Samples

LEANING = 0.005  # chance of so many disturbed blocks on one side where both are alike
FEWEST = 2  # undisturbed blocks of a process: one alone has no spread, and would weigh most
Runs = list[list[list[Blocks]]]  # of builds of processes, none of them empty


def interleaved(
    ours: Samples, theirs: Samples, *, every: bool = False
) -> tuple[list[list[tuple[Blocks, Blocks]]], int]:
    """Neighbouring blocks of two sides that were interleaved.

    A block is used where neither of the two was disturbed, with `every` also else. Processes of
    the same pair of engines are together, in whichever run they were.

    Returns:
        By pair of engines, the blocks of both sides in each process; and how many pairs of blocks
        were left out.

    Raises:
        KDError: `samples-unpaired`, the two do not lie alike; `samples-invalid`; `samples-empty`.
    """
    check(ours)
    check(theirs)
    found: dict[tuple[str, str], list[tuple[Blocks, Blocks]]] = {}
    processes: list[tuple[tuple[str, str], list[tuple[Block, Block]]]] = []
    left_out = 0
    for where, engines, pairs in _pairs(ours, theirs):
        if len(pairs[0]) != len(pairs[1]):
            _unpaired(f"{where}: {len(pairs[0])} blocks against {len(pairs[1])}")
        both = list(zip(*pairs, strict=True))
        whole = [(a, b) for a, b in both if every or not (a.disturbed or b.disturbed)]
        left_out += len(pairs[0]) - len(whole)
        processes.append((engines, whole))
    least = _least(len(whole) for _, whole in processes)
    for engines, whole in processes:
        if len(whole) < least:
            left_out += len(whole)
        else:
            sides = _times(a for a, _ in whole), _times(b for _, b in whole)
            found.setdefault(engines, []).append(sides)
    if not found:
        _empty(ours.name, left_out)
    return list(found.values()), left_out


def by_runs(samples: Samples, *, every: bool = False) -> tuple[Runs, list[str], int]:
    """The undisturbed blocks of one side, or every block.

    Returns:
        Blocks by run, build and process; when each run started; how many blocks were left out.

    Raises:
        KDError: `samples-invalid`, `samples-empty`.
    """
    check(samples)
    runs: Runs = []
    started = []
    left_out = 0
    least = _least(
        sum(every or not b.disturbed for b in process.blocks)
        for _, _, process in samples.processes()
    )
    for run in samples.runs:
        builds = []
        for build in run.builds:
            whole = [
                _times(b for b in p.blocks if every or not b.disturbed) for p in build.processes
            ]
            kept = [blocks for blocks in whole if len(blocks) >= least]
            left_out += sum(len(p.blocks) for p in build.processes) - sum(map(len, kept))
            if kept:
                builds.append(kept)
        if builds:
            runs.append(builds)
            started.append(run.started)
    if not runs:
        _empty(samples.name, left_out)
    return runs, started, left_out


def leans(ours: Samples, theirs: Samples, *, paired: bool) -> str | None:
    """The side that was disturbed far more often than chance has it, `candidate` or `reference`.

    In turns of the pairs in which one block was (sign test); apart of all blocks, by how many each
    side has. A burst of other work leans too, but in one process: so most of them must. None where
    neither side does.
    """
    from scipy.special import bdtrc

    flags = _disturbed(ours), _disturbed(theirs)
    if paired:
        # interleaved refuses what does not lie alike
        pairs = [(a, b) for a, b in zip(*flags, strict=False) if len(a) == len(b)]
        flags = [a & ~b for a, b in pairs], [b & ~a for a, b in pairs]
    counts, sizes = ([sum(map(f, side)) for side in flags] for f in (np.sum, np.size))
    if not sum(counts):
        return None
    for i, name in enumerate(("candidate", "reference")):
        most = np.mean([side.mean() > sum(counts) / sum(sizes) for side in flags[i]]) > 0.5
        share = sizes[i] / sum(sizes)
        if most and bdtrc(counts[i] - 1, sum(counts), share) < LEANING:
            return name
    return None


def _disturbed(samples: Samples) -> list[NDArray[np.bool_]]:
    """By process, which of its blocks were."""
    return [
        np.array([block.disturbed is not None for block in process.blocks], bool)
        for _, _, process in samples.processes()
        if process.blocks
    ]


def _least(blocks: Iterable[int]) -> int:
    """Blocks of a process that is used: `FEWEST`, or 1 where no process has as many."""
    return FEWEST if any(count >= FEWEST for count in blocks) else 1


def check(samples: Samples) -> None:
    """Refuse what is no latency.

    Raises:
        KDError: `samples-invalid`.
    """
    for where, _, process in samples.processes():
        for number, block in enumerate(process.blocks, 1):
            bad = [ms for ms in block.ms if not (math.isfinite(ms) and ms > 0)]
            if bad or not block.ms:
                what = f"a latency of {bad[0]} ms" if bad else "no latency at all"
                raise KDError(
                    "samples-invalid",
                    f"the samples of {samples.name} hold {what}",
                    where=f"{where}, block {number}",
                    fix="measure again; where times are zero, time a larger input or batch",
                )


def _pairs(
    ours: Samples, theirs: Samples
) -> Iterator[tuple[str, tuple[str, str], tuple[tuple[Block, ...], tuple[Block, ...]]]]:
    """By process: its position, the hashes of the two engines, the blocks of both sides."""
    sides = list(ours.processes()), list(theirs.processes())
    for one, other in zip_longest(*sides):
        if one is None or other is None or one[0] != other[0]:
            _unpaired(
                " against ".join("nothing" if side is None else side[0] for side in (one, other))
            )
        (where, ran, process), (_, other_ran, other_process) = one, other
        yield where, (ran.sha256, other_ran.sha256), (process.blocks, other_process.blocks)


def _times(blocks: Iterable[Block]) -> Blocks:
    return [np.array(block.ms, dtype=np.float64) for block in blocks]


def _unpaired(where: str) -> NoReturn:
    raise KDError(
        "samples-unpaired",
        "the two sample sets have different structure, so they were not interleaved",
        where=where,
        fix="measure both in one run, `kdcompile compare A B` with the two artifacts, or compare "
        "them from their samples alone",
    )


def _empty(name: str, left_out: int) -> NoReturn:
    raise KDError(
        "samples-empty",
        f"no undisturbed block of {name} is left to compare ({left_out} disturbed)",
        where=name,
        fix="measure again while nothing else runs and the clocks hold; each block says what "
        "disturbed it",
    )
