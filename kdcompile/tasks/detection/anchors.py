"""Anchors of a detector: read from a file, carried in a bundle, and the boxes that lie off them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

from kdcompile.core.arrays import read_arrays
from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FARTHEST = 8.0  # of logarithms of sizes, and of a centre map's distances, either way


def read_anchors(path: Path) -> Floats:
    """The anchors of a file, float64 [A, 4]: centre x, centre y, width, height.

    Raises:
        KDError: `task-anchors`.
    """
    try:
        found = read_arrays(path)["anchors"].astype(np.float64)
        if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all():
            raise ValueError(f"it is {list(found.shape)}, not [A, 4] of finite numbers")
    except (OSError, KeyError, ValueError) as error:
        raise _unusable(str(error), str(path)) from error
    return found


def packed_anchors(anchors: Floats) -> str:
    """Anchors as text: base64 of little-endian float32, row by row."""
    return base64.b64encode(anchors.astype("<f4").tobytes()).decode()


def unpacked_anchors(text: str) -> Floats:
    """What `packed_anchors` gave, float64 [A, 4].

    Raises:
        ValueError: it is no such text.
    """
    found = np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(-1, 4)
    if not np.isfinite(found).all():
        raise ValueError("an anchor is not finite")
    return found.astype(np.float64)


def from_anchors(deltas: Floats, anchors: Floats, variances: tuple[float, float]) -> Floats:
    """Centre x, centre y, width, height [A, 4] from offsets of anchors, scaled by variances.

    Raises:
        KDError: `task-anchors`, there are not as many of the one as of the other.
    """
    if anchors.shape != deltas.shape:
        raise _unusable(f"there are {len(anchors)}, and {len(deltas)} boxes", "[task.head] anchors")
    centre, size = variances
    place = anchors[:, :2] + deltas[:, :2] * centre * anchors[:, 2:]
    sides = anchors[:, 2:] * np.exp(np.minimum(deltas[:, 2:] * size, FARTHEST))
    return np.concatenate([place, sides], axis=1)


def _unusable(problem: str, where: str) -> KDError:
    return KDError(
        "task-anchors",
        f"the anchors cannot be used: {problem}",
        where=where,
        fix="write the network's anchors with numpy.savez(FILE, anchors=...), [A, 4] of centre x, "
        "centre y, width and height, one for each row of its boxes",
    )
