"""Non-maximum suppression inside a detector's network, of standard ONNX operators.

The network's head is decoded as the task decodes it, and its output becomes [1, 100, 6]: corners in
pixels of the input, score and class of the best boxes, the best first, with a score of 0 behind the
last one. That is what the decoder `boxes` reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.graph import copied
from kdcompile.tasks.detection.anchors import FARTHEST
from kdcompile.tasks.detection.boxes import CANDIDATES, MOST
from kdcompile.tasks.detection.decoders import PAIRS, Setting

STEM = "nms"
Plane = tuple[int, int]  # height and width of the network's input
Parts = tuple[str, str, int, int]  # corners [1, A, 4], scores [1, C, A], C, A


@dataclass
class _Tail:
    """Nodes behind a network's output, whose names begin with `STEM`."""

    graph: GraphProto
    nodes: list[NodeProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **given: Any) -> Any:
        """A node's output by name, or those of several."""
        name = f"{STEM}/{len(self.nodes)}_{kind}"
        names = [f"{name}_{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **given))
        return names[0] if outputs == 1 else names

    def held(self, values: Any, kind: type = np.float32) -> str:
        """A constant's name."""
        name = f"{STEM}/constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def split(self, value: str, sizes: list[int], axis: int = 1) -> list[str]:
        """Parts of a tensor along an axis."""
        whole = self.held(sizes, np.int64)
        return list(self.add("Split", value, whole, outputs=len(sizes), axis=axis))

    def clipped(self, value: str, low: float, high: float) -> str:
        """A tensor within bounds."""
        return str(self.add("Clip", value, self.held(low), self.held(high)))


def refuse_head(decoder: str, setting: Setting) -> None:
    """Refuse a head whose boxes need no suppression, or are decoded by code of the user's.

    Raises:
        KDError: `export-nms`.
    """
    if decoder not in HEADS or setting.head.overlap >= 1:
        what = "its boxes are final" if decoder in (*HEADS, "boxes") else "its decode is your code"
        raise KDError(
            "export-nms",
            f"there is no suppression of boxes by {decoder}: {what}",
            where="[export] nms",
            fix="leave export.nms out; it is for heads whose boxes are still to be suppressed: "
            f"{', '.join(HEADS)}, with task.head.overlap below 1",
        )


def with_nms(model: ModelProto, decoder: str, setting: Setting, plane: Plane) -> ModelProto:
    """The network with its head's decoding and the suppression of boxes behind it.

    Args:
        model: with one output, float32; not changed.
        decoder: of the output, a known one's name.
        setting: of the head.
        plane: height and width of the input.

    Raises:
        KDError: those of `refuse_head`.
    """
    refuse_head(decoder, setting)
    made = copied(model)
    (output,) = made.graph.output
    kind = output.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    tail, given = _Tail(made.graph), output.name
    if kind.elem_type != TensorProto.FLOAT:
        given = tail.add("Cast", given, to=TensorProto.FLOAT)
    rows = _suppressed(tail, *HEADS[decoder](tail, given, shape, setting, plane), setting)
    tail.nodes[-1].output[0] = name = f"{STEM}/{output.name}"
    made.graph.node.extend(tail.nodes)
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, 6]))
    return made


def _centre(tail: _Tail, output: str, shape: list[int], setting: Setting, plane: Plane) -> Parts:
    """Peaks of class maps [1, C, h, w], and distances of sides [1, 4, h, w] in cells."""
    _, channels, height, width = shape
    count, cells = channels - 4, height * width
    logits, raw = tail.split(output, [count, 4])
    around = tail.add("MaxPool", logits, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    peak = tail.add("Cast", tail.add("Equal", logits, around), to=TensorProto.FLOAT)
    scores = tail.add("Mul", tail.add("Sigmoid", logits), peak)
    far = tail.add("Exp", tail.clipped(raw, -FARTHEST, FARTHEST))
    step = np.array([plane[1] / width, plane[0] / height])
    row, column = np.mgrid[:height, :width] + 0.5
    middle = np.stack([column, row, column, row]) * np.tile(step, 2)[:, None, None]
    signed = np.array([-1, -1, 1, 1]) * np.tile(step, 2)
    away = tail.add("Mul", far, tail.held(signed.reshape(1, 4, 1, 1)))
    corners = tail.add("Add", away, tail.held(middle[None]))
    flat = tail.add("Reshape", corners, tail.held([1, 4, cells], np.int64))
    by_class = tail.add("Reshape", scores, tail.held([1, count, cells], np.int64))
    return tail.add("Transpose", flat, perm=[0, 2, 1]), by_class, count, cells


def _yolov8(tail: _Tail, output: str, shape: list[int], setting: Setting, plane: Plane) -> Parts:
    boxes, scores = tail.split(output, [4, shape[1] - 4])
    return _corners(tail, boxes), tail.clipped(scores, 0, 1), shape[1] - 4, shape[2]


def _yolov5(tail: _Tail, output: str, shape: list[int], setting: Setting, plane: Plane) -> Parts:
    columns = tail.add("Transpose", output, perm=[0, 2, 1])
    boxes, sure, scores = tail.split(columns, [4, 1, shape[2] - 5])
    both = tail.add("Mul", tail.clipped(scores, 0, 1), tail.clipped(sure, 0, 1))
    return _corners(tail, boxes), both, shape[2] - 5, shape[1]


def _pair(tail: _Tail, output: str, shape: list[int], setting: Setting, plane: Plane) -> Parts:
    """Rows of boxes and scores, which two outputs were joined to."""
    head, count = setting.head, shape[2] - 4
    boxes, scores = tail.split(tail.add("Transpose", output, perm=[0, 2, 1]), [4, count])
    if head.scores == "probabilities":
        scores = tail.clipped(scores, 0, 1)
    else:
        softmax = {"axis": 1} if head.scores == "softmax" else {}
        scores = tail.add(head.scores.capitalize(), scores, **softmax)
    if head.background != "none":
        first = head.background == "first"
        parts = tail.split(scores, [1, count - 1] if first else [count - 1, 1])
        scores, count = parts[int(first)], count - 1
    if setting.anchors is not None:
        boxes = _of_anchors(tail, boxes, setting.anchors.T[None], head.variances)
    corners = head.boxes == "corners" and setting.anchors is None
    found = tail.add("Transpose", boxes, perm=[0, 2, 1]) if corners else _corners(tail, boxes)
    if head.unit == "share":
        found = tail.add("Mul", found, tail.held([plane[1], plane[0]] * 2))
    return found, scores, count, shape[1]


def _of_anchors(
    tail: _Tail, boxes: str, anchors: NDArray[np.float64], variances: tuple[float, float]
) -> str:
    """Centres and sizes [1, 4, A] of offsets [1, 4, A] from anchors of the same form."""
    away, grown = tail.split(boxes, [2, 2])
    sizes = anchors[:, 2:]
    moved = tail.add("Mul", away, tail.held(variances[0] * sizes))
    places = tail.add("Add", moved, tail.held(anchors[:, :2]))
    power = tail.add("Min", tail.add("Mul", grown, tail.held(variances[1])), tail.held(FARTHEST))
    return str(
        tail.add(
            "Concat", places, tail.add("Mul", tail.add("Exp", power), tail.held(sizes)), axis=1
        )
    )


def _corners(tail: _Tail, boxes: str) -> str:
    """[1, A, 4] of centres and sizes [1, 4, A]."""
    middle, size = tail.split(boxes, [2, 2])
    half = tail.add("Mul", size, tail.held(0.5))
    ends = tail.add("Sub", middle, half), tail.add("Add", middle, half)
    return str(tail.add("Transpose", tail.add("Concat", *ends, axis=1), perm=[0, 2, 1]))


def _suppressed(
    tail: _Tail, boxes: str, scores: str, count: int, rows: int, setting: Setting
) -> int:
    """The last node gives the best `MOST` of the best `CANDIDATES` pairs of a box and a class.

    They are [1, D, 6]; D, which is returned, is less than `MOST` where there are fewer pairs.
    """
    most = min(CANDIDATES, count * rows)
    flat = tail.add("Reshape", scores, tail.held([-1], np.int64))
    best, place = tail.add("TopK", flat, tail.held([most], np.int64), outputs=2)
    wide = tail.held(rows, np.int64)
    kind, row = tail.add("Div", place, wide), tail.add("Mod", place, wide)
    own = tail.add("Gather", boxes, row, axis=1)
    classes = tail.held(np.arange(count).reshape(-1, 1), np.int64)
    is_own = tail.add("Cast", tail.add("Equal", kind, classes), to=TensorProto.FLOAT)
    by_class = tail.add(
        "Reshape", tail.add("Mul", is_own, best), tail.held([1, count, most], np.int64)
    )
    lowest = np.nextafter(np.float32(setting.head.lowest), np.float32(0))  # which itself is enough
    chosen = tail.add(
        "NonMaxSuppression", own, by_class, tail.held([MOST], np.int64),
        tail.held([setting.head.overlap]), tail.held([lowest]),
    )  # fmt: skip
    _, at = tail.split(chosen, [2, 1])
    ones = tail.add("Equal", at, at)
    flags = tail.add(
        "Reshape", tail.add("Cast", ones, to=TensorProto.FLOAT), tail.held([-1], np.int64)
    )
    alive = tail.add("ScatterND", tail.held(np.zeros(most)), at, flags)
    count_out = min(MOST, most)
    sure, order = tail.add(
        "TopK", tail.add("Mul", best, alive), tail.held([count_out], np.int64), outputs=2
    )
    columns = [
        tail.add("Gather", own, order, axis=1),
        tail.add("Reshape", sure, tail.held([1, count_out, 1], np.int64)),
        tail.add(
            "Reshape",
            tail.add("Cast", tail.add("Gather", kind, order), to=TensorProto.FLOAT),
            tail.held([1, count_out, 1], np.int64),
        ),
    ]
    tail.add("Concat", *columns, axis=2)
    return count_out


Head = Callable[[_Tail, str, list[int], Setting, Plane], Parts]
HEADS: dict[str, Head] = {"centre": _centre, "yolov8": _yolov8, "yolov5": _yolov5}
HEADS |= dict.fromkeys(PAIRS, _pair)
