"""Decoders of the outputs of known heads, by name: centre maps, YOLO, SSD, DETR, boxes.

A decoder takes the outputs of one image, batch axis included, and gives `Found` in pixels of the
network's input. Each recognises its own outputs by their shapes; where two do, the spec names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.tasks.detection.anchors import FARTHEST, from_anchors
from kdcompile.tasks.detection.boxes import CANDIDATES, Found, best, suppressed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdcompile.config.detection import Head

    Arrays = Mapping[str, NDArray[Any]]
    Floats = NDArray[np.float64]
    Shapes = Mapping[str, tuple[int, ...]]

APART = 0.01  # of a probability from 0..1, as half precision gives


@dataclass(frozen=True, eq=False)
class Setting:
    """What a spec says of a head.

    Args:
        head: `[task.head]`.
        anchors: that boxes are offsets of, float64 [A, 4], where there are any.
    """

    head: Head
    anchors: Floats | None = None


@dataclass(frozen=True)
class Decoder:
    """One form of heads.

    Args:
        summary: its outputs, in words.
        fits: whether outputs of these shapes are of this form.
        of: `of(outputs, setting, plane)`, the boxes above the head's lowest score; `plane` is
            height and width of the network's input.
        classes: how many the outputs of some shapes have scores of.
        defaults: of the fields of `[task.head]` that the spec does not name.
    """

    summary: str
    fits: Callable[[Shapes], bool]
    of: Callable[[Arrays, Setting, tuple[int, int]], Found]
    classes: Callable[[Shapes, Head], int]
    defaults: Mapping[str, Any] = field(default_factory=dict)


PAIRS = ("ssd", "detr")  # whose two outputs may come as one: rows [N, A, 4 + C], boxes first


def parted(name: str | None, outputs: Arrays) -> Arrays:
    """The two outputs that were joined to one, where the decoder of that name takes two."""
    if name not in PAIRS or len(outputs) != 1:
        return outputs
    (value,) = outputs.values()
    if value.ndim != 3 or value.shape[2] < 5:
        return outputs
    return {"boxes": value[..., :4], "scores": value[..., 4:]}


def sigmoid(logits: NDArray[Any]) -> Floats:
    """Of any logits, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _centre(outputs: Arrays, setting: Setting, plane: tuple[int, int]) -> Found:
    """Peaks of class maps, and the distances of a box's sides from the cell's centre."""
    (maps,) = (value[0].astype(np.float64) for value in outputs.values())
    logits, raw = maps[:-4], maps[-4:]
    height, width = logits.shape[1:]
    padded = np.pad(logits, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    around = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    scores = sigmoid(logits)
    peaks = (logits >= np.max(around, axis=0)) & (scores >= setting.head.lowest)
    kind, row, column = np.nonzero(peaks)
    step = plane[0] / height, plane[1] / width
    y, x = (row + 0.5) * step[0], (column + 0.5) * step[1]
    left, top, right, bottom = np.exp(np.clip(raw[:, row, column], -FARTHEST, FARTHEST))
    boxes = [x - left * step[1], y - top * step[0], x + right * step[1], y + bottom * step[0]]
    found = Found(np.stack(boxes, axis=1), scores[kind, row, column], kind.astype(np.int64))
    return suppressed(found, setting.head.overlap)


def _yolov5(outputs: Arrays, setting: Setting, plane: tuple[int, int]) -> Found:
    """Rows of centre, size, objectness and class scores."""
    (rows,) = (value[0].astype(np.float64) for value in outputs.values())
    scores = _probabilities(rows[:, 5:]) * _probabilities(rows[:, 4:5])
    return _dense(_corners(rows[:, :4]), scores, setting.head)


def _yolov8(outputs: Arrays, setting: Setting, plane: tuple[int, int]) -> Found:
    """Columns of centre, size and class scores."""
    (rows,) = (value[0].astype(np.float64).T for value in outputs.values())
    return _dense(_corners(rows[:, :4]), _probabilities(rows[:, 4:]), setting.head)


def _boxes(outputs: Arrays, setting: Setting, plane: tuple[int, int]) -> Found:
    """Rows of corners, score and class: boxes that are final."""
    (rows,) = (value[0].astype(np.float64) for value in outputs.values())
    found = Found(rows[:, :4], _probabilities(rows[:, 4]), np.rint(rows[:, 5]).astype(np.int64))
    return best(found.above(setting.head.lowest), CANDIDATES)


def _pair(outputs: Arrays, setting: Setting, plane: tuple[int, int]) -> Found:
    """Boxes [1, A, 4] and scores [1, A, C]."""
    shapes = {name: value.shape for name, value in outputs.items()}
    names = _pair_names(shapes)
    assert names, "a decoder is asked for what fits it"
    (name, other), head = names, setting.head
    boxes, given = (outputs[n][0].astype(np.float64) for n in (name, other))
    if head.scores == "sigmoid":
        scores = sigmoid(given)
    elif head.scores == "softmax":
        powers = np.exp(given - given.max(1, keepdims=True))
        scores = powers / powers.sum(1, keepdims=True)
    else:
        scores = _probabilities(given)
    first = int(head.background == "first")
    scores = scores[:, first : scores.shape[1] - int(head.background == "last")]
    if setting.anchors is not None:
        boxes = _corners(from_anchors(boxes, setting.anchors, head.variances))
    elif head.boxes == "centre":
        boxes = _corners(boxes)
    if head.unit == "share":
        boxes = boxes * np.array([plane[1], plane[0], plane[1], plane[0]], np.float64)
    return _dense(boxes, scores, head)


def _dense(boxes: Floats, scores: Floats, head: Head) -> Found:
    """Every class of each row that is sure enough, suppressed unless the head's boxes are sets."""
    row, kind = np.nonzero(scores >= head.lowest)
    found = Found(boxes[row], scores[row, kind], kind.astype(np.int64))
    return best(found, CANDIDATES) if head.overlap >= 1 else suppressed(found, head.overlap)


def _corners(boxes: Floats) -> Floats:
    """Of centre x, centre y, width, height [A, 4]."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _probabilities(scores: Floats) -> Floats:
    """The scores, which must be probabilities.

    Raises:
        KDError: `task-scores`.
    """
    if scores.size and not (scores.min() >= -APART and scores.max() <= 1 + APART):
        raise KDError(
            "task-scores",
            f"the network's scores go from {scores.min():.4g} to {scores.max():.4g}: they are no "
            "probabilities",
            where="[task.head] scores",
            fix='set task.head.scores = "sigmoid" or "softmax" where boxes and scores are outputs '
            "of their own; else let the network end in it, or name a function in task.decode",
        )
    return np.clip(scores, 0.0, 1.0)


def _one(shapes: Shapes, rank: int) -> tuple[int, ...]:
    """The shape of the only output, if it has that rank; else nothing."""
    own = list(shapes.values())
    return own[0] if len(own) == 1 and len(own[0]) == rank else ()


def _pair_names(shapes: Shapes) -> tuple[str, str] | tuple[()]:
    """Names of the boxes and of the scores, in this order; nothing where there are no such two."""
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes.values()):
        return ()
    names = list(shapes)
    if len({shape[1] for shape in shapes.values()}) != 1:
        return ()
    fours = [name for name in names if shapes[name][2] == 4]
    if len(fours) == 2:  # as many scores as sides: the name tells
        fours = [name for name in fours if "box" in name.lower()]
    if len(fours) != 1:
        return ()
    return fours[0], next(name for name in names if name != fours[0])


def _pair_classes(shapes: Shapes, head: Head) -> int:
    names = _pair_names(shapes)
    assert names, "a decoder is asked for what fits it"
    return shapes[names[1]][2] - int(head.background != "none")


def _rows(shapes: Shapes, wide: bool) -> bool:
    shape = _one(shapes, 3)
    return bool(shape) and min(shape[1:]) >= 5 and (shape[2] > shape[1]) == wide


DECODERS: Mapping[str, Decoder] = {
    "centre": Decoder(
        "one map [N, C + 4, h, w]: class logits, then logarithms of a box's distances in cells",
        lambda shapes: bool(s := _one(shapes, 4)) and s[1] > 4,
        _centre,
        lambda shapes, head: _one(shapes, 4)[1] - 4,
    ),
    "yolov5": Decoder(
        "one output [N, A, 5 + C]: centre, size, objectness, class probabilities",
        lambda shapes: _rows(shapes, wide=False) and _one(shapes, 3)[2] > 5,
        _yolov5,
        lambda shapes, head: _one(shapes, 3)[2] - 5,
    ),
    "yolov8": Decoder(
        "one output [N, 4 + C, A]: centre, size, class probabilities",
        lambda shapes: _rows(shapes, wide=True),
        _yolov8,
        lambda shapes, head: _one(shapes, 3)[1] - 4,
    ),
    "boxes": Decoder(
        "one output [N, D, 6]: corners, score and class of final boxes",
        lambda shapes: _one(shapes, 3)[2:] == (6,),
        _boxes,
        lambda shapes, head: 0,
    ),
    "ssd": Decoder(
        "boxes [N, A, 4] and class scores [N, A, C], with anchors or without",
        lambda shapes: bool(_pair_names(shapes)),
        _pair,
        _pair_classes,
    ),
    "detr": Decoder(
        "boxes [N, Q, 4] as shares of the input and class logits [N, Q, C + 1], nothing last",
        lambda shapes: bool(_pair_names(shapes)),
        _pair,
        _pair_classes,
        {"scores": "softmax", "background": "last", "boxes": "centre", "unit": "share",
         "overlap": 1.0},
    ),
}  # fmt: skip
