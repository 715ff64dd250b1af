"""Estimate a log latency ratio and its error from blocks in processes in builds in runs.

Each level is estimated by itself. Inside a process the blocks are drawn with replacement (Davison
and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Above it there are three
processes or two builds, and of so few a bootstrap finds too little spread: by a factor k / (k - 1)
in variance, with normal tails where they should be Student's. So there the closed form stands in
its place, with degrees of freedom, and is moderated (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004,
equation 4): the spread that such a level usually has counts like a few more observations. Where
the measured spread refutes the usual one, it is not drawn towards it: on a noisy machine one
verdict in 20 would be wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.stats.bootstrap import resamples

Floats = NDArray[np.float64]
QUANTILES = (0.5, 0.9, 0.99)
REFUTED = 0.01  # chance of so large a spread, or a larger, where the usual one is the true one
DRAWS = 200  # of blocks: a variance within a tenth
Blocks = Sequence[Floats]  # the inferences of each block of a process, ms


@dataclass(frozen=True, eq=False)
class Usual:
    """What is taken of a level before it is measured.

    Args:
        sd: standard deviation of a log latency, or of a log ratio where two sides took turns, at
            QUANTILES, beyond what the level below explains: [3].
        df: how many observations that counts like.
    """

    sd: Floats
    df: int


# docs/gates.md says what they were set by
PAIR = Usual(np.array([0.003, 0.01, 0.05]), 4)  # of a process, between two that were interleaved
PROCESS = Usual(np.array([0.006, 0.02, 0.08]), 4)  # of a process by itself
BUILD = Usual(np.array([0.006, 0.02, 0.08]), 2)  # builds and runs vary more from place to place
RUN = Usual(np.array([0.005, 0.02, 0.08]), 2)
SESSION = Usual(np.array([0.02, 0.04, 0.1]), 6)  # known badly, and most baselines have one


@dataclass(frozen=True, eq=False)
class Node:
    """What is known of one process, build, run or side.

    Args:
        value: log latency, or log ratio, at QUANTILES: [3].
        variance: of `value` as an estimate: [3].
    """

    value: Floats
    variance: Floats


@dataclass(frozen=True, eq=False)
class Estimate:
    """A log ratio of latencies at QUANTILES.

    Args:
        value: [3].
        units: how many top units each side has; `(k,)` where the two are paired.
        variances: of each side's mean, by side, or of the ratio where they are paired: [3] each.
        df: degrees of freedom of the variances.
        level: what the top units are: process, build, run or session.
    """

    value: Floats
    units: tuple[int, ...]
    variances: tuple[Floats, ...]
    df: int
    level: str

    @property
    def error(self) -> Floats:
        """Standard error of `value`: [3]."""
        error: Floats = np.sqrt(np.sum(self.variances, axis=0))
        return error


def half_width(estimate: Estimate, tail: Floats) -> Floats:
    """Half of the interval of a log ratio, for the chance `tail` [3] outside on either side: [3].

    Student's t on the estimate's degrees of freedom.
    """
    from scipy.special import stdtrit

    width: Floats = stdtrit(estimate.df, 1 - tail) * estimate.error
    return width


def paired(processes: Sequence[Sequence[tuple[Blocks, Blocks]]], seed: int) -> Estimate:
    """Of two sides that took turns: a block is drawn with its neighbour of the other side.

    Args:
        processes: by build, the blocks of candidate and reference in each process.
        seed: of the draws.
    """
    draw = _Draws(seed)
    builds, df = _means([[_pair(a, b, draw) for a, b in build] for build in processes], PAIR)
    if len(builds) == 1:
        only = builds[0]
        return Estimate(only.value, (len(processes[0]),), (only.variance,), df, "process")
    (whole,), df = _means([builds], BUILD)
    return Estimate(whole.value, (len(builds),), (whole.variance,), df, "build")


def unpaired(
    sides: Sequence[Sequence[Sequence[Sequence[Blocks]]]],
    seed: int,
    sessions: Sequence[Sequence[int]] | None = None,
) -> Estimate:
    """Of two sides that were measured apart: the run is the top level, or the session.

    Args:
        sides: candidate and reference: runs of builds of processes of blocks.
        seed: of the draws.
        sessions: by side the session of each run; None where all are of one, which then
            touched both sides alike.
    """
    draw = _Draws(seed)
    flat = [build for side in sides for run in side for build in run]
    builds, _ = _means([[_single(p, draw) for p in build] for build in flat], PROCESS)
    grouped = _like([run for side in sides for run in side], builds)
    several = any(len(run) > 1 for run in grouped)
    runs = _like(sides, _means(grouped, BUILD)[0] if several else [run[0] for run in grouped])
    if sessions is None:
        return _difference(runs, RUN, "run")
    days = [
        [[run for run, own in zip(side, known, strict=True) if own == day] for day in {*known}]
        for side, known in zip(runs, sessions, strict=True)
    ]
    means, _ = _means([day for side in days for day in side], RUN)
    return _difference(_like(days, means), SESSION, "session")


def _difference(sides: Sequence[Sequence[Node]], usual: Usual, level: str) -> Estimate:
    (ours, theirs), df = _means(sides, usual)
    units = len(sides[0]), len(sides[1])
    return Estimate(ours.value - theirs.value, units, (ours.variance, theirs.variance), df, level)


def _like(groups: Sequence[Sequence[object]], nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes in as many groups, and as many in each."""
    rest = iter(nodes)
    return [[next(rest) for _ in group] for group in groups]


def _means(groups: Sequence[Sequence[Node]], usual: Usual) -> tuple[list[Node], int]:
    """The mean of each group of nodes, and its variance, with the degrees of freedom of that.

    As in a random-effects meta-analysis a node weighs 1 / (usual.sd^2 + its variance), so that one
    process beside other work does not drown the rest; and all weights are scaled by how far nodes
    really lie from their means (Hartung and Knapp, Stat. Med. 20, 2001), pooled over the groups and
    moderated unless they refute what is usual (chi-squared test).
    """
    from scipy.special import chdtri

    spread, own = np.zeros(len(QUANTILES)), 0
    found = []
    for group in groups:
        weights = 1 / np.array([usual.sd**2 + node.variance for node in group])
        values = np.array([node.value for node in group])
        total = weights.sum(axis=0)
        mean = (weights * values).sum(axis=0) / total
        spread, own = spread + (weights * (values - mean) ** 2).sum(axis=0), own + len(group) - 1
        found.append(Node(mean, 1 / total))
    df = usual.df + own
    scale = (usual.df + spread) / df
    if own:
        scale = np.where(spread > chdtri(own, REFUTED), spread / own, scale)
    return [Node(node.value, node.variance * scale) for node in found], df


class _Draws:
    """Blocks drawn with replacement; the same for every process of as many blocks."""

    def __init__(self, seed: int) -> None:
        self._seed, self._known = seed, dict[int, NDArray[np.int64]]()

    def __call__(self, count: int) -> NDArray[np.int64]:
        """Indices [DRAWS, count]."""
        if count not in self._known:
            self._known[count] = resamples(count, DRAWS, (self._seed, count))
        return self._known[count]


def _pair(ours: Blocks, theirs: Blocks, draw: _Draws) -> Node:
    first, second = _medians(ours), _medians(theirs)
    # so that neither when a block was taken nor which side is the candidate moves anything
    order = np.argsort(-first - second, kind="stable")
    ratios, picks = (first - second)[order], draw(len(ours))
    ours, theirs = ([side[i] for i in order] for side in (ours, theirs))
    tails, drawn = (x - y for x, y in zip(_tails(ours, picks), _tails(theirs, picks), strict=True))
    return _node(ratios, picks, tails, drawn)


def _single(blocks: Blocks, draw: _Draws) -> Node:
    medians = _medians(blocks)
    order = np.argsort(-medians, kind="stable")
    medians, picks = medians[order], draw(len(blocks))
    blocks = [blocks[i] for i in order]
    tails, drawn = _tails(blocks, picks)
    return _node(medians, picks, tails, drawn)


def _node(centres: Floats, picks: NDArray[np.int64], tails: Floats, drawn: Floats) -> Node:
    """Of a process: the median of its blocks' medians, or of their ratios, and its tails.

    The ratio of two medians of all inferences would jump where a machine has two speeds; that of
    neighbouring blocks does not, and its median stands wild blocks, up to half of them.
    """
    again = np.concatenate([np.median(centres[picks], axis=1)[:, None], drawn], axis=1)
    few = len(centres) / max(len(centres) - 1, 1)  # drawn values vary about their own mean
    return Node(np.concatenate([[np.median(centres)], tails]), again.var(axis=0) * few)


def _medians(blocks: Blocks) -> Floats:
    if len({len(block) for block in blocks}) == 1:
        return np.log(np.median(np.array(blocks), axis=1))
    return np.log([np.median(block) for block in blocks])


def _tails(blocks: Blocks, picks: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Log of the upper QUANTILES of all inferences, [2], and of those of each draw, [DRAWS, 2]."""
    times = np.concatenate(blocks)
    order = np.argsort(times, kind="stable")
    logs, owner = np.log(times[order]), np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    rows = np.arange(DRAWS)[:, None] * len(blocks)
    counts = np.bincount((rows + picks).ravel(), minlength=DRAWS * len(blocks))
    counts = counts.reshape(DRAWS, len(blocks)).astype(np.int32)
    counts = np.concatenate([np.ones((1, len(blocks)), np.int32), counts])
    below = np.cumsum(counts[:, owner[order]], axis=1, dtype=np.int32)
    wanted = np.ceil(np.multiply.outer(QUANTILES[1:], below[:, -1])).astype(np.int32)
    found = np.stack([logs[(below < w[:, None]).sum(axis=1)] for w in wanted], axis=1)
    return found[0], found[1:]
