"""Annotated boxes of an image: checked, and clipped to it where they reach out by a rounded pixel.

A crowd, which is neither to be found nor wrong to be found, has the class -1 - class.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError

REACH = 1.0  # pixels by which annotations that were rounded may lie outside


def checked_boxes(given: Any, name: str, where: str, classes: int | None) -> NDArray[np.float32]:
    """The boxes of the image of that name as float32 [B, 5], x0 y0 x1 y1 class.

    Args:
        given: rows of five numbers.
        name: of the image.
        where: the annotations lie.
        classes: how many there are; None where it is not known.

    Raises:
        KDError: `annotation-invalid` or `category-unknown`.
    """
    try:
        boxes = np.asarray(given, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise _invalid(name, f"are no rows of five numbers: {error}", where) from error
    if boxes.size == 0 and boxes.ndim < 2:
        boxes = boxes.reshape(0, 5)
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise _invalid(name, f"are {list(boxes.shape)}, not [B, 5]", where)
    if not np.isfinite(boxes).all():
        raise _invalid(name, "have a value that is not a finite number", where)
    flat = (boxes[:, 2:4] <= boxes[:, :2]).any(axis=1)
    if flat.any():
        x0, y0, x1, y1, _ = boxes[flat.argmax()]
        size = f"{x1 - x0:g} x {y1 - y0:g} at [{x0:g}, {y0:g}]"
        raise _invalid(name, f"have one without area, {size}", where)
    kinds = boxes[:, 4]
    wrong = kinds != np.rint(kinds)
    if classes is not None:
        wrong |= (kinds >= classes) | (kinds < -classes)
    if wrong.any():
        most = "" if classes is None else f", where there are {classes}"
        raise KDError(
            "category-unknown",
            f"{name} has a box of class {kinds[wrong.argmax()]:g}{most}",
            where=where,
            fix="classes are indices from 0, and -1 - index for a crowd; correct it or name the "
            "class",
        )
    return boxes.astype(np.float32)


def clipped_boxes(
    boxes: NDArray[np.float32], size: tuple[int, int], name: str, where: str
) -> NDArray[np.float32]:
    """The boxes [B, 5] clipped to an image of height and width `size`, by `REACH` at most.

    Raises:
        KDError: `annotation-outside`.
    """
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    outside = ((boxes[:, :4] < -REACH) | (boxes[:, :4] > limits + REACH)).any(axis=1)
    kept = boxes.copy()
    kept[:, :4] = np.clip(boxes[:, :4], 0.0, limits)
    outside |= (kept[:, 2:4] <= kept[:, :2]).any(axis=1)
    if outside.any():
        first = ", ".join(f"{value:g}" for value in boxes[outside.argmax(), :4])
        raise KDError(
            "annotation-outside",
            f"{int(outside.sum())} of the {len(boxes)} boxes of {name} reach out of its {width} x "
            f"{height} pixels, the first from x0, y0 to x1, y1 of [{first}]",
            where=where,
            fix="give them in pixels of the upright image, clipped to it; take out those that are "
            "not on it",
        )
    return kept


def _invalid(name: str, problem: str, where: str | Path) -> KDError:
    return KDError(
        "annotation-invalid",
        f"the boxes of {name} {problem}",
        where=str(where),
        fix="correct them, or take them out: x0, y0, x1, y1 in pixels from the top left corner, "
        "with x1 > x0 and y1 > y0 (COCO: x, y, width, height, both over 0), and the class",
    )
