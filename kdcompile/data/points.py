"""Annotated points: what they must be before anything is learnt from them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError

# of an image's points, how many may stand twice: published annotations have up to 8.5 %
MOST_TWICE = 0.25
LEAST_TWICE = 3


def checked_points(given: Any, name: str, source: Path | None) -> NDArray[np.float32]:
    """The points of the image of that name as float32 [P, 2], x right and y down in pixels.

    A few points that stand twice are left, as two heads may be annotated alike; a list that was
    joined to itself is refused.

    Raises:
        KDError: `annotation-invalid` or `annotation-duplicate`.
    """
    where = "[data] format" if source is None else str(source)
    if (other := _no_number(given)) is not None:  # NumPy makes numbers of "1" and true
        raise _invalid(name, f"have a coordinate that is no number, {other!r:.40}", where)
    try:
        points = np.asarray(given, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise _invalid(name, f"are not [x, y] pairs: {error}", where) from error
    if points.shape == (0,):
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise _invalid(name, f"are no list of [x, y] pairs, but {list(points.shape)}", where)
    if not np.isfinite(points).all():
        raise _invalid(name, "have a coordinate that is not a finite number", where)
    if (points < 0).any():
        raise _invalid(name, f"have a negative coordinate, {_first(points, points < 0)}", where)
    twice = len(points) - len(set(map(tuple, points.tolist())))
    if twice >= LEAST_TWICE and twice > MOST_TWICE * len(points):
        raise KDError(
            "annotation-duplicate",
            f"{twice} of the {len(points)} points of {name} stand there more than once",
            where=where,
            fix="keep one of each; a list may have been joined to itself",
        )
    with np.errstate(over="ignore"):  # what becomes infinite lies in no image
        return points.astype(np.float32)


def _no_number(given: Any) -> Any:
    """The first coordinate that is text or a truth value; None where there is none."""
    pairs = (
        given.tolist() if isinstance(given, np.ndarray) and given.dtype.kind in "bSUO" else given
    )
    if not isinstance(pairs, list | tuple):
        return None
    rows = (pair for pair in pairs if isinstance(pair, list | tuple))
    return next((one for row in rows for one in row if isinstance(one, str | bytes | bool)), None)


def check_within(points: NDArray[np.float32], size: tuple[int, int], name: str, where: str) -> None:
    """Every point must lie in its image of height and width `size`, its far borders included.

    Raises:
        KDError: `annotation-outside`.
    """
    height, width = size
    outside = points > np.array([width, height], np.float32)
    if outside.any():
        count = int(outside.any(axis=1).sum())
        raise KDError(
            "annotation-outside",
            f"{count} of the {len(points)} points of {name} lie outside its {width} x {height} "
            f"pixels, the first at {_first(points, outside)}",
            where=where,
            fix="give x right and y down in pixels of the upright image; take out points that are "
            "not on it",
        )


def _first(points: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    x, y = points[int(wrong.any(axis=1).argmax())]
    return f"[{x:g}, {y:g}]"


def _invalid(name: str, problem: str, where: str) -> KDError:
    return KDError(
        "annotation-invalid",
        f"the points of {name} {problem}",
        where=where,
        fix='write "points": [[x, y], ...], x right and y down in pixels from the top left corner',
    )
