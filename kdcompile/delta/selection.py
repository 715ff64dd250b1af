"""Selection of an encoding for each tensor by error per byte, and correction of the biases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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


Floats = NDArray[np.float64]
PENALTIES = 10.0 ** np.arange(-6, 3, 0.5)  # in largest singular values, squared
CAUTION = 1.4  # freedom is counted so many times: few outputs would let it take too small a one


class Biases:
    """The biases of a network and what they can do.

    Args:
        slopes: of every output by each bias, [N, C] by the bias's name; of N outputs, flat.
    """

    def __init__(self, slopes: Mapping[str, Floats]) -> None:
        self._sizes = {name: part.shape[1] for name, part in slopes.items()}
        self._active = bool(slopes) and any(part.any() for part in slopes.values())
        if self._active:
            whole = np.concatenate(list(slopes.values()), axis=1)
            self._u, self._s, self._v = np.linalg.svd(whole, full_matrices=False)

    def left(self, change: Floats) -> float:
        """The mean square that is expected to be left of a change of the outputs [N]."""
        return self._best(change)[0]

    def fit(self, change: Floats) -> dict[str, Floats]:
        """What to add to each bias against a change of the outputs [N]."""
        kept = self._best(change)[1]
        if kept is None:
            return {}
        along = kept * (self._u.T @ change) / np.where(self._s > 0, self._s, 1)
        ends = np.cumsum(list(self._sizes.values()))[:-1]
        return dict(zip(self._sizes, np.split(-(along @ self._v), ends), strict=True))

    def _best(self, change: Floats) -> tuple[float, Floats | None]:
        """The score of the best penalty, and the share of each direction that it takes away."""
        square, count = float(change @ change), len(change)
        best: tuple[float, Floats | None] = (square / count, None)  # of no bias at all
        if not self._active:
            return best
        along = np.square(self._u.T @ change)
        for penalty in PENALTIES * self._s[0] ** 2:
            kept = self._s**2 / (self._s**2 + penalty)
            free = count - CAUTION * float(kept.sum())
            if free > 0:
                rest = square - float(along @ (kept * (2 - kept)))
                score = count * max(0.0, rest) / free**2
                best = min(best, (score, kept), key=lambda one: one[0])
        return best
