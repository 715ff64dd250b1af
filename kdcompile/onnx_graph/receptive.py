"""The reach of a map's cells beyond their own area, in networks that are alike everywhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

POINTWISE = {
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu",
    "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min",
    "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub",
    "Tanh",
}  # fmt: skip
WINDOWS = {"AveragePool", "Conv", "MaxPool"}
ANY_PLACE = {"BatchNormalization", "DequantizeLinear", "QuantizeLinear"}  # constants a channel
CHANNELS_FIRST = [0, 3, 1, 2]  # of pixels, where the network normalises by itself
UPSAMPLED = 2  # cells that an interpolation between cells reaches to either side, at most


@dataclass(frozen=True)
class Reach:
    """What a cell of a map depends on, in pixels of the input.

    Args:
        cell: side of a cell's own area.
        margin: how far beyond that area it looks, on the side where it looks farther.
        period: the network is the same for inputs that are moved by so much.
    """

    cell: Fraction
    margin: Fraction
    period: Fraction


class EverywhereUnlikeError(Exception):
    """The network is not the same at every place; the text says by which operator."""


def reach_of(model: ModelProto) -> Reach:
    """The reach of the first output's cells.

    Raises:
        EverywhereUnlikeError: the network may look at the whole input, or at where it is.
    """
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, Reach] = {
        value.name: Reach(Fraction(1), Fraction(0), Fraction(1))
        for value in model.graph.input
        if value.name not in known
    }
    constant = set(known)
    for node in model.graph.node:
        read = [name for name in node.input if name and name not in constant]
        if not read:  # what is made of constants alone
            constant.update(node.output)
            if node.op_type == "Constant":
                known[node.output[0]] = _value(node)
            continue
        if any(name not in found for name in read):
            raise EverywhereUnlikeError(f"{node.op_type} reads what is not a map")
        reach = _after(node, [found[name] for name in read], known)
        found |= dict.fromkeys(node.output, reach)
    out = model.graph.output[0].name
    if out not in found:
        raise EverywhereUnlikeError("the output is a constant")
    return found[out]


def _after(
    node: NodeProto, reaches: Sequence[Reach], known: Mapping[str, np.ndarray[Any, Any]]
) -> Reach:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise EverywhereUnlikeError(f"{node.op_type} pads by the input's size")
    if node.op_type in POINTWISE or (node.op_type == "Concat" and attributes.get("axis") == 1):
        if node.op_type not in ANY_PLACE:
            _check_constants(node, known)
        return _joined(node, reaches)
    if node.op_type == "Transpose" and attributes.get("perm") == CHANNELS_FIRST:
        return reaches[0]
    if len(reaches) == 1 and node.op_type in WINDOWS:
        return _window(node, attributes, reaches[0], known)
    if len(reaches) == 1 and node.op_type == "ConvTranspose":
        return _transposed(node, attributes, reaches[0], known)
    if len(reaches) == 1 and node.op_type == "Resize":
        return _resized(node, attributes, reaches[0], known)
    raise EverywhereUnlikeError(f"{node.op_type} may look at the whole input")


def _check_constants(node: NodeProto, known: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """A constant that differs from place to place makes the network differ too."""
    for name in node.input:
        shape = known[name].shape if name in known else ()
        if any(side > 1 for side in shape[-2:]) and not _is_a_channel(shape):
            raise EverywhereUnlikeError(f"{node.op_type} has a constant of places")


def _is_a_channel(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 3 and set(shape[-2:]) == {1}


def _joined(node: NodeProto, reaches: Sequence[Reach]) -> Reach:
    cells = {reach.cell for reach in reaches}
    if len(cells) > 1:
        raise EverywhereUnlikeError(f"{node.op_type} joins maps of several sizes")
    return Reach(
        cells.pop(),
        max(reach.margin for reach in reaches),
        _common(*(reach.period for reach in reaches)),
    )


def _common(*periods: Fraction) -> Fraction:
    """The smallest whole multiple of all."""
    below = math.lcm(*(each.denominator for each in periods))
    return Fraction(math.lcm(*(int(each * below) for each in periods)), below)


def _kernel(
    node: NodeProto, attributes: Mapping[str, Any], known: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[int, list[tuple[int, int]]]:
    """The stride, and of each of the two axes the kernel's span and the padding before it."""
    shape = attributes.get("kernel_shape")
    if shape is None and node.op_type.startswith("Conv"):
        weight = known.get(node.input[1])
        shape = None if weight is None else weight.shape[2:]
    if shape is None or len(shape) != 2:
        raise EverywhereUnlikeError(f"{node.op_type} has no kernel of two sides")
    strides, dilations = (attributes.get(key, [1, 1]) for key in ("strides", "dilations"))
    if strides[0] != strides[1]:
        raise EverywhereUnlikeError(f"{node.op_type} has two strides")
    pads = attributes.get("pads", [0, 0, 0, 0])
    return int(strides[0]), [
        ((int(shape[i]) - 1) * int(dilations[i]), int(pads[i])) for i in range(2)
    ]


def _window(
    node: NodeProto,
    attributes: Mapping[str, Any],
    before: Reach,
    known: Mapping[str, np.ndarray[Any, Any]],
) -> Reach:
    """An output cell o reads from o x stride - pad to that and the span of the kernel."""
    stride, axes = _kernel(node, attributes, known)
    beyond = max(max(pad, span - pad + 1 - stride, 0) for span, pad in axes)
    cell = before.cell * stride
    return Reach(cell, before.margin + beyond * before.cell, _common(before.period, cell))


def _transposed(
    node: NodeProto,
    attributes: Mapping[str, Any],
    before: Reach,
    known: Mapping[str, np.ndarray[Any, Any]],
) -> Reach:
    """An output cell o is written by the cells from (o + pad - span) / stride to (o + pad) / it."""
    stride, axes = _kernel(node, attributes, known)
    far = max(max(span - pad, pad) for span, pad in axes)
    beyond = -(-far // stride) + 1
    cell = before.cell / stride
    return Reach(cell, before.margin + beyond * before.cell, before.period)


def _resized(
    node: NodeProto,
    attributes: Mapping[str, Any],
    before: Reach,
    known: Mapping[str, np.ndarray[Any, Any]],
) -> Reach:
    """By whole factors, between neighbouring cells."""
    scales = known.get(node.input[2]) if len(node.input) > 2 else None
    mode = attributes.get("mode", b"nearest")
    if scales is None or len(scales) != 4 or mode not in (b"nearest", b"linear"):
        raise EverywhereUnlikeError("Resize goes to a size, or by more than neighbours")
    factor = Fraction(float(scales[2]))
    corners = attributes.get("coordinate_transformation_mode") == b"align_corners"
    if scales[2] != scales[3] or factor.denominator != 1 or factor < 1 or corners:
        raise EverywhereUnlikeError("Resize is by no whole factor")
    cell = before.cell / factor
    return Reach(cell, before.margin + UPSAMPLED * before.cell, before.period)


def _value(node: NodeProto) -> np.ndarray[Any, Any]:
    for one in node.attribute:
        if one.name == "value":
            return numpy_helper.to_array(one.t)
    return np.asarray([helper.get_attribute_value(one) for one in node.attribute])


def tiling(model: ModelProto) -> dict[str, Any]:
    """What a bundle says of its network's tiles, in pixels: `cell`, `margin` and `period`.

    Or `refused`, why there are none.
    """
    try:
        reach = reach_of(model)
    except EverywhereUnlikeError as error:
        return {"refused": str(error)}
    if reach.cell.denominator != 1:
        return {"refused": "its cells are smaller than pixels"}
    return {
        "cell": int(reach.cell), "margin": math.ceil(reach.margin), "period": int(reach.period),
    }  # fmt: skip
