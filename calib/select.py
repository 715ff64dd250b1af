"""Which training images calibrate."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly

Select = Literal["even", "random", "pcoreset"]
Outputs = Callable[[Sequence[Photo]], Iterable[NDArray[Any]]]
Floats = NDArray[np.float64]

GRID = 8  # cells a side that a dense output is summed into


def select_images(
    photos: Sequence[Photo], how: Select, n: int, seed: int, outputs: Outputs
) -> list[Photo]:
    """At most `n` of the photos, the same ones for the same seed.

    `even` spreads them over the split and `random` draws them, both in the split's order.
    `pcoreset` covers what the network answers: greedy k-centre over `embedding`s of its outputs
    (PCoreSet, arXiv 2506.00910, there over class probabilities), in the order of choice, so that
    the first of them are the choice for a smaller `n`.

    Args:
        photos: the split.
        how: the rule.
        n: at least 1.
        seed: of `random`, and of the first centre of `pcoreset`.
        outputs: the network's output [1, ...] for each of some photos, one at a time; called only
            by `pcoreset`, and then for every photo.
    """
    if how == "even" or n >= len(photos):
        return evenly(photos, n)
    generator = np.random.default_rng(seed)
    if how == "random":
        drawn = generator.choice(len(photos), n, replace=False)
        return [photos[index] for index in sorted(drawn)]
    embeddings = np.stack([embedding(output) for output in outputs(photos)])
    first = int(generator.integers(len(photos)))
    return [photos[index] for index in k_centre(embeddings, n, first)]


def embedding(output: NDArray[Any]) -> Floats:
    """One image's output [1, ...] as a vector whose size is the same for every image.

    A map [1, C, h, w] of any size becomes its sums over an even grid of `GRID` x `GRID` parts,
    which add up to the count; logits [1, K] become probabilities; one value stays itself.
    """
    values: Floats = output[0].astype(np.float64)
    if values.ndim == 3:
        for axis in (1, 2):
            values = _summed(values, axis)
    elif values.size > 1:
        values = np.exp(values - values.max())
        values /= values.sum()
    return values.reshape(-1)


def k_centre(points: Floats, n: int, first: int) -> list[int]:
    """Indices of `n` points, each in turn the one farthest from those chosen before.

    The largest distance from a point to its nearest centre is at most twice the least that any `n`
    centres reach (Gonzalez 1985). The first of equally far points is taken. O(n N K) for points
    [N, K], and no matrix of distances.
    """
    chosen = [first]
    nearest = _distances(points, first)
    for _ in range(n - 1):
        nearest[chosen[-1]] = -1.0  # a point is chosen once, among twins too
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(points, chosen[-1]))
    return chosen


def _distances(points: Floats, centre: int) -> Floats:
    return np.asarray(np.square(points - points[centre]).sum(axis=1))


def _summed(values: Floats, axis: int) -> Floats:
    """Sums over `GRID` even parts of an axis; where it is shorter, some parts are empty."""
    size = values.shape[axis]
    running = np.insert(np.cumsum(values, axis), 0, 0.0, axis)
    edges = np.arange(GRID + 1) * size // GRID
    return np.diff(running.take(edges, axis), axis=axis)
