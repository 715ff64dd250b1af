"""Preprocessing inside a network: its file takes the pixels of an image, and normalises them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from kdcompile.onnx_graph.graph import copied

STEM = "preprocess"
WHITE = 255.0


def in_graph(model: ModelProto, mean: Sequence[float], std: Sequence[float]) -> ModelProto:
    """The same network on uint8 pixels [N, H, W, C], under its input's name.

    Cast, Transpose, Mul and Add come before all that it does, so that what is quantised, and what
    is half precision, stays so. The cast is first: TensorRT takes uint8 only as a network's input
    and computes nothing with it. `(x / 255 - mean) / std` is one product and one sum, in float32,
    which differ from the three steps by their rounding.

    Args:
        model: with one input, float32 [N, C, H, W]; not changed.
        mean: per channel, of 0..1.
        std: likewise.

    Raises:
        ValueError: it has another input than that.
    """
    made = copied(model)
    graph = made.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    kinds = [value.type.tensor_type for value in inputs]
    if [(k.elem_type, len(k.shape.dim)) for k in kinds] != [(TensorProto.FLOAT, 4)]:
        named = ", ".join(value.name for value in inputs)
        raise ValueError(f"{named} is not one float32 image [N, C, H, W]")
    image = inputs[0]
    normalised = f"{STEM}/image"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == image.name:
                node.input[place] = normalised
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*_nodes(image.name, normalised), *nodes])
    scale = 1.0 / (WHITE * np.array(std, np.float64))
    offset = -np.array(mean, np.float64) / np.array(std, np.float64)
    for name, values in (("scale", scale), ("offset", offset)):
        by_channel = values.astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(by_channel, f"{STEM}/{name}"))
    _take_pixels(image.type.tensor_type)
    return made


def _nodes(image: str, normalised: str) -> list[NodeProto]:
    steps: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ("Mul", [f"{STEM}/scale"], {}),
        ("Add", [f"{STEM}/offset"], {}),
    )
    made, before = [], image
    for kind, constants, given in steps:
        name = f"{STEM}/{kind.lower()}"
        after = normalised if kind == "Add" else f"{name}_output"
        made.append(helper.make_node(kind, [before, *constants], [after], name=name, **given))
        before = after
    return made


def _take_pixels(kind: TypeProto.Tensor) -> None:
    """Make the type of a float32 input [N, C, H, W], in place, that of its pixels."""
    kind.elem_type = TensorProto.UINT8
    dims = TypeProto.Tensor()
    dims.CopyFrom(kind)
    batch, channels, *sides = dims.shape.dim
    del kind.shape.dim[:]
    kind.shape.dim.extend([batch, *sides, channels])
