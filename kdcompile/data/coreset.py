"""PCoreSet (arXiv 2506.00910): which images cover what a network answers.

Greedy k-center over outputs: for classes over their probabilities, as in the paper. For density
maps, which have none, over the count and where in the image it lies; for values over the value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError

Floats = NDArray[np.float64]

GRID = 8  # cells a side that a density map is summed into
LEAST = 1.0  # a count under it is no crowd whose places could be told
BLOCK = 256  # labelled points whose distances are held at once


def k_center(points: Floats, labelled: Floats, count: int) -> tuple[list[int], list[float]]:
    """The points that are farthest from all labelled and chosen ones, one after the other.

    With these the largest distance from a point to its nearest centre is at most twice the least
    that as many centres reach (Gonzalez 1985). O((count + M) N K), and no matrix of distances.

    Args:
        points: [N, K]; a point is chosen once, among twins too.
        labelled: [M, K], covered already; M may be 0, then point 0 comes first.
        count: how many; all of them in that order where there are no more.

    Returns:
        Indices of points; and the distance of each to the nearest centre when it was chosen,
        infinite for a first one of all. Of equally far points the lowest index is taken.

    Raises:
        KDError: `output-nonfinite`.
    """
    if not (np.isfinite(points).all() and np.isfinite(labelled).all()):
        raise nonfinite("a network's output", "k_center")
    nearest = _to_nearest(points, labelled)
    chosen: list[int] = []
    distances: list[float] = []
    for _ in range(min(count, len(points))):
        index = int(nearest.argmax())
        chosen.append(index)
        distances.append(float(np.sqrt(nearest[index])))
        np.minimum(nearest, np.square(points - points[index]).sum(axis=1), out=nearest)
        nearest[index] = -1.0
    return chosen, distances


def _to_nearest(points: Floats, labelled: Floats) -> Floats:
    """The squared distance [N] of each point to the nearest labelled one."""
    from scipy.spatial.distance import cdist

    nearest = np.full(len(points), np.inf)
    for start in range(0, len(labelled), BLOCK):
        block = cdist(points, labelled[start : start + BLOCK], "sqeuclidean")
        np.minimum(nearest, block.min(axis=1), out=nearest)
    return nearest


def described(output: NDArray[Any]) -> list[Floats]:
    """What a batch's outputs [N, ...] say, in parts [N, k] whose sizes no image's size changes.

    Logits [N, K] are probabilities. A density map [N, C, h, w] is its counts [N, C], and the share
    of them in each of GRID x GRID even cells. A value [N, 1] is itself; of other tensors it is the
    mean [N, C] of each channel.
    """
    values: Floats = output.astype(np.float64)
    if values.ndim == 4:
        sums = cells(output)
        counts = sums.sum(axis=(2, 3))
        shares = np.maximum(sums, 0.0) / np.maximum(counts, LEAST)[:, :, None, None]
        return [counts, shares.reshape(len(values), -1)]
    if values.ndim != 2:
        return [values.reshape(*values.shape[:2], -1).mean(2)]
    if values.shape[1] > 1:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return [values]


def cells(maps: NDArray[Any]) -> Floats:
    """The sums [N, C, GRID, GRID] of maps [N, C, h, w] over even parts of any size."""
    return _summed(_summed(maps.astype(np.float64), 2), 3)


def placed(places: Floats, weights: Floats) -> Floats:
    """The sums [GRID * GRID] of weights [D] at places [D, 2], y and x as shares of an image."""
    cell = np.clip((places * GRID).astype(np.int64), 0, GRID - 1)
    found = np.bincount(cell[:, 0] * GRID + cell[:, 1], weights, GRID * GRID)
    return found.astype(np.float64)  # of no places it is of whole numbers


def mean_of(networks: Sequence[Sequence[Floats]]) -> list[Floats]:
    """What several networks say of the same images: the mean of each part.

    A network that knows fewer classes gives those behind its last no probability.
    """
    parts = []
    for part in zip(*networks, strict=True):
        most = max(told.shape[1] for told in part)
        wide = [np.pad(told, ((0, 0), (0, most - told.shape[1]))) for told in part]
        parts.append(np.mean(wide, axis=0))
    return parts


def space(batches: Sequence[Sequence[Floats]]) -> Floats:
    """The points [N, K] of all images in order, from what `described` gives of each batch.

    Of several parts each is scaled to a total variance of 1, so that none dominates.
    """
    parts = [np.concatenate(part) for part in zip(*batches, strict=True)]
    if len(parts) > 1:
        spreads = [float(np.sqrt(part.var(axis=0).sum())) for part in parts]
        parts = [part / (spread or 1.0) for part, spread in zip(parts, spreads, strict=True)]
    return np.concatenate(parts, axis=1)


def nonfinite(what: str, where: str) -> KDError:
    """The refusal of an output that says nothing."""
    return KDError(
        "output-nonfinite",
        f"{what} is NaN or infinite",
        where=where,
        fix="check the network's weights, and data.mean and data.std against its training",
    )


def _summed(values: Floats, axis: int) -> Floats:
    """Sums over `GRID` even parts of an axis; where it is shorter, some parts are empty."""
    size = values.shape[axis]
    running = np.insert(np.cumsum(values, axis), 0, 0.0, axis)
    edges = np.arange(GRID + 1) * size // GRID
    return np.diff(running.take(edges, axis), axis=axis)
