"""The interface of a search space, and the evolutionary draw of its candidates.

Candidates come in generations: the first at random, each later one by changing or crossing those
that are best so far, in each range of predicted latency, by a guess of quality. That decides where
to look next, never which student is taken.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from kdcompile.latency_model.workload import Kernel, Precision

Architecture = dict[str, Any]
GENERATIONS = 10
FRESH = 0.2  # of a later generation is drawn at random, so that no corner is forgotten
CROSSED = 0.3
BINS = 40  # latency ranges, each of which keeps its best
KEPT = 3


class Space(Protocol):
    """A family of students of one teacher at one input shape."""

    def random(self, draw: Random) -> Architecture:
        """Any student."""

    def mutate(self, architecture: Architecture, draw: Random) -> Architecture:
        """A neighbour."""

    def cross(self, one: Architecture, other: Architecture, draw: Random) -> Architecture:
        """A mixture of two."""

    def corners(self) -> list[Architecture]:
        """Students that must be among the candidates: the smallest, the widest."""

    def uniform_students(self) -> list[Architecture]:
        """The teacher at uniform widths, as family `shrink` makes it; none where it has no such."""

    def missing_layers(self, architecture: Architecture) -> int:
        """How many of the teacher's layers a student of the teacher's own code lacks."""

    def kernels(self, architecture: Architecture, precision: Precision) -> list[Kernel]:
        """What the student's ONNX file will be compiled to."""


@dataclass(frozen=True)
class Costed:
    """A candidate: predicted latency, multiply-adds, and a guess of its loss of quality."""

    architecture: Architecture
    ms: float
    macs: int
    guess: float


def identity(architecture: Architecture) -> str:
    """The same for equal architectures."""
    return json.dumps(architecture, sort_keys=True)


def candidates(
    space: Space,
    number: int,
    cost: Callable[[Architecture], tuple[float, int, float]],
    draw: Random,
) -> list[Costed]:
    """Distinct students of a space with their latencies, in the order in which they were drawn.

    Args:
        space: where they are from.
        number: how many are drawn, at most, besides the corners and the uniform students; a small
            space has fewer.
        cost: predicted latency in ms, multiply-adds, and a guess of the loss of quality.
        draw: the same one gives the same candidates.
    """
    found: dict[str, Costed] = {}

    def add(architecture: Architecture) -> None:
        name = identity(architecture)
        if name not in found:
            found[name] = Costed(architecture, *cost(architecture))

    for architecture in (*space.corners(), *space.uniform_students()):
        add(architecture)
    given = len(found)
    for generation in range(GENERATIONS):
        best = elite(list(found.values()))
        wanted = given + number * (generation + 1) // GENERATIONS
        for _ in range(4 * -(-number // GENERATIONS)):  # equal ones are drawn in vain
            if len(found) >= wanted:
                break
            add(_next(space, best if generation else [], draw))
    return list(found.values())


def _next(space: Space, best: Sequence[Costed], draw: Random) -> Architecture:
    choice = draw.random()
    if not best or choice < FRESH:
        return space.random(draw)
    parent = draw.choice(best).architecture
    if choice < FRESH + CROSSED:
        return space.cross(parent, draw.choice(best).architecture, draw)
    return space.mutate(parent, draw)


def elite(found: Sequence[Costed]) -> list[Costed]:
    """The best guesses in each of `BINS` equal ranges of log latency."""
    if not found:
        return []
    low, high = min(c.ms for c in found), max(c.ms for c in found)
    step = (high / low) ** (1 / BINS)
    bins: dict[int, list[Costed]] = {}
    limit, number = low, 0
    for candidate in sorted(found, key=lambda c: c.ms):
        while candidate.ms > limit * step and number < BINS:
            limit, number = limit * step, number + 1
        bins.setdefault(number, []).append(candidate)
    return [c for members in bins.values() for c in sorted(members, key=lambda c: c.guess)[:KEPT]]
