"""Which way for each tensor: the most error taken away for a byte, first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdcompile.delta.layer import Layer


@dataclass(frozen=True)
class Option:
    """A way to write a tensor, and what it leaves: an error that adds up over tensors."""

    layer: Layer
    error: float


class Ladder:
    """Choices of a way for each tensor, from the smallest file to no error.

    Each rung takes one tensor further along the lower convex hull of its bytes and errors; the
    steepest comes first, which is the greedy solution of the knapsack. With errors that add up, no
    choice of as few bytes has less.
    """

    def __init__(self, options: Sequence[Sequence[Option]]) -> None:
        self._hulls = [hull(each) for each in options]
        steps = [
            (_slope(before, after), place, index)
            for place, points in enumerate(self._hulls)
            for index, (before, after) in enumerate(pairwise(points), 1)
        ]
        self._steps = sorted(steps, key=lambda step: (-step[0], step[1:]))

    def __len__(self) -> int:
        return len(self._steps) + 1

    def choice(self, rung: int) -> list[Layer]:
        """A way for each tensor, in the order of the tensors."""
        return [option.layer for option in self._options(rung)]

    def error(self, rung: int) -> float:
        """The error that is left, summed over tensors."""
        return sum(option.error for option in self._options(rung))

    def _options(self, rung: int) -> list[Option]:
        place_of = [0] * len(self._hulls)
        for _, place, index in self._steps[:rung]:
            place_of[place] = index
        return [points[at] for points, at in zip(self._hulls, place_of, strict=True)]


def hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best for some price of a byte, by bytes; errors fall ever less."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.layer.cost, one.error)):
        if found and option.error >= found[-1].error:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], option):
            found.pop()
        found.append(option)
    return found


def _slope(before: Option, after: Option) -> float:
    """Error taken away by a byte."""
    return (before.error - after.error) / (after.layer.cost - before.layer.cost)
