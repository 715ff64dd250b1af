"""GAME: how much of a crowd a density map puts into the wrong part of the image.

Grid Average Mean absolute Error (Guerrero-Gomez-Olmedo, Torre-Jimenez, Lopez-Sastre,
Maldonado-Bascon and Onoro-Rubio, Extremely Overlapping Vehicle Counting, IbPRIA 2015): the image
is cut into 4^L equal cells, and an image's error is the sum over them of |predicted - true count|.
GAME(0) is the absolute error of the count, and no level is less than the one before.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.frame import Frame
from kdcompile.tasks.metric import LEVELS

Floats = NDArray[np.float64]


def game_errors(
    density: NDArray[Any],
    points: NDArray[Any],
    frame: Frame,
    levels: Sequence[int] = LEVELS,
) -> Floats:
    """GAME of one image at each level, float64 [levels].

    Args:
        density: [h, w], count per cell of the map; it covers the whole input plane, and is 0 in
            the padding.
        points: [P, 2], x and y in pixels of the photo.
        frame: where the photo lies in the plane.
        levels: each cuts the photo, and not the padding, into 4^level cells.
    """
    side = 2 ** max(levels)
    gap = predicted_cells(density, frame, side) - true_cells(points, frame, side)
    found = []
    for level in levels:
        cells, within = 2**level, side // 2**level
        coarse = gap.reshape(cells, within, cells, within).sum((1, 3))
        found.append(np.abs(coarse).sum())
    return np.array(found)


def predicted_cells(density: NDArray[Any], frame: Frame, side: int) -> Floats:
    """The density's count in each of side x side cells of the photo, float64 [side, side].

    A map's cell that lies across a border is shared by area. The last ones take all that is left,
    so that the sum is the whole count of a map that is 0 in the padding (`Task.within`).
    """
    rows, columns = (
        _shares(size, side, seen / plane)
        for size, seen, plane in zip(density.shape, frame.seen, frame.plane, strict=True)
    )
    return np.asarray(rows @ density.astype(np.float64) @ columns.T)


def true_cells(points: NDArray[Any], frame: Frame, side: int) -> Floats:
    """The points in each of side x side cells of the photo, float64 [side, side].

    A point on or beyond the border belongs to the nearest cell.
    """
    height, width = frame.photo
    found = np.zeros((side, side))
    places = np.floor(points.astype(np.float64) / (width, height) * side)
    columns, rows = np.clip(places, 0, side - 1).astype(np.int64).T
    np.add.at(found, (rows, columns), 1.0)
    return found


def _shares(size: int, side: int, covered: float) -> Floats:
    """How much of each of a map's `size` cells lies in each of `side` parts, [side, size].

    Args:
        size: cells of the map along one axis.
        side: parts of the photo along it.
        covered: the share of the axis that the photo fills.
    """
    edges = np.linspace(0, covered * size, side + 1)
    edges[-1] = size
    cells = np.arange(size)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.clip(overlap, 0, 1))
