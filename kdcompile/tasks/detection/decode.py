"""Choice of the decoder of a network's outputs, and the checks of a user's own one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdcompile.core.errors import KDError, nearest
from kdcompile.tasks.detection.boxes import CANDIDATES, Found, best
from kdcompile.tasks.detection.decoders import DECODERS

Shapes = Mapping[str, tuple[int, ...]]
WHERE = "[task] decode"


def find_decoder(name: str | None, shapes: Shapes) -> str:
    """The name of the decoder for outputs of some shapes, batch axis included.

    Args:
        name: that the spec has, or None.
        shapes: of the outputs, by name.

    Raises:
        KDError: `task-decode`: no such decoder; it is of other outputs; none fits; several do.
    """
    what = ", ".join(f"{output} {list(shape)}" for output, shape in shapes.items())
    own = 'or name a function of yours, task.decode = "file.py:f"'
    if name is not None and name not in DECODERS:
        raise KDError(
            "task-decode",
            f"there is no decoder {name!r}{nearest(name, DECODERS)}",
            where=WHERE,
            fix=f"use one of {', '.join(DECODERS)}, {own}",
        )
    if name is not None and not DECODERS[name].fits(shapes):
        raise KDError(
            "task-decode",
            f"{name} takes {DECODERS[name].summary}; the network gives {what}",
            where=WHERE,
            fix=f"leave task.decode out, {own}",
        )
    fitting = [one for one, decoder in DECODERS.items() if decoder.fits(shapes)]
    if name is None and not fitting:
        raise KDError(
            "task-decode",
            f"no decoder is known for the network's outputs: {what}",
            where=WHERE,
            fix='name a function, task.decode = "file.py:f", from the outputs by name to boxes, '
            "scores and classes (docs/tasks.md)",
        )
    if name is None and len(fitting) > 1:
        raise KDError(
            "task-decode",
            f"the network's outputs ({what}) may be of {' or '.join(fitting)}",
            where=WHERE,
            fix=f"say which: task.decode = {' or '.join(repr(one) for one in fitting)}",
        )
    return fitting[0] if name is None else name


def checked(given: Any, name: str, classes: int | None) -> Found:
    """What a user's decode gave for one image.

    Args:
        given: boxes [D, 4], scores [D], classes [D].
        name: of the function, as the spec has it.
        classes: how many there are, where it is known.

    Raises:
        KDError: `task-decode`.
    """
    problem = None
    try:
        boxes, scores, kinds = (np.asarray(part, np.float64) for part in given)
    except (TypeError, ValueError) as error:
        problem = f"no boxes, scores and classes: {error}"
    else:
        if boxes.size == 0 and boxes.ndim < 2:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            problem = f"boxes of {list(boxes.shape)}"
        elif scores.shape != (len(boxes),) or kinds.shape != (len(boxes),):
            problem = (
                f"{len(boxes)} boxes, scores {list(scores.shape)}, classes {list(kinds.shape)}"
            )
        elif not all(np.isfinite(part).all() for part in (boxes, scores, kinds)):
            problem = "NaN or infinity"
        elif len(scores) and (scores.min() < 0 or scores.max() > 1):
            problem = f"scores from {scores.min():.4g} to {scores.max():.4g}"
        elif len(kinds) and ((kinds != np.rint(kinds)).any() or kinds.min() < 0):
            problem = f"a class of {kinds.min():g}"
        elif len(kinds) and classes is not None and kinds.max() >= classes:
            problem = f"a class of {kinds.max():g}, where there are {classes}"
    if problem is not None:
        raise KDError(
            "task-decode",
            f"{name} gives {problem}",
            where=WHERE,
            fix="return boxes [D, 4] (x0, y0, x1, y1 in pixels of the network's input), scores [D] "
            "of 0 to 1 and classes [D], their indices from 0, of one image",
        )
    return best(Found(boxes, scores, kinds.astype(np.int64)), CANDIDATES)
