"""Shape and element type of every tensor of a network, from the shape of its input."""

import math
from collections.abc import Sequence

from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from kdcompile.core.errors import KDError

LARGE = 1024  # values: no shape is computed from so many


def inferred(model: ModelProto, shape: Sequence[int]) -> GraphProto:
    """The graph with `value_info` of every tensor whose shape follows.

    A suppression of boxes has the most rows that it can have, as a build provides for them.

    Args:
        model: not changed; what it says of its tensors' shapes is not used.
        shape: of the first input.

    Raises:
        KDError: `shape-unknown`, an operator does not fit its inputs, or the input has not as
            many axes as `shape`.
    """
    fixed = without_weights(model)  # onnx copies all of the weights several times
    graph = fixed.graph
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise shape_unknown(f"the input has {len(dims)} axes, {list(shape)} has {len(shape)}")
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        found = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
        if bounds := _of_suppressions(found):
            graph.value_info.extend(bounds)
            found = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise shape_unknown(str(error).splitlines()[0]) from error
    del found.initializer[:]
    found.initializer.extend(model.graph.initializer)
    return found


def _of_suppressions(graph: GraphProto) -> list[ValueInfoProto]:
    """What each NonMaxSuppression gives at most: rows [batch x classes x boxes of a class, 3]."""
    sizes = tensor_sizes(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    bounds = []
    for node in graph.node:
        if node.op_type != "NonMaxSuppression" or len(node.input) < 3:
            continue
        most = constants.get(node.input[2])
        batch, classes, boxes = sizes.get(node.input[1], [0, 0, 0])
        if most is not None:
            rows = batch * classes * min(int(numpy_helper.to_array(most).max()), boxes)
            shape = [rows, 3]
            bounds.append(helper.make_tensor_value_info(node.output[0], TensorProto.INT64, shape))
    return bounds


def without_weights(model: ModelProto, as_inputs: bool = False) -> ModelProto:
    """The same network without the values of its large constants, which keep type and shape.

    Args:
        model: not changed, and what it holds is not copied.
        as_inputs: the large constants become inputs, which makes it a valid file.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= LARGE:
            graph.initializer.append(tensor)
        elif not as_inputs:
            graph.initializer.append(
                TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
        elif tensor.name not in given:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def input_shape(model: ModelProto) -> list[int]:
    """The shape of the first input, as the file says; a free axis is 0."""
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


def tensor_sizes(graph: GraphProto) -> dict[str, list[int]]:
    """The shape of every tensor of an `inferred` graph that has one; an unknown axis is 0."""
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
        if v.type.tensor_type.HasField("shape")
    }
    return sizes | {t.name: list(t.dims) for t in graph.initializer}


def element_types(model: ModelProto) -> dict[str, int]:
    """The ONNX element type of every tensor for which shape inference finds one."""
    found = shape_inference.infer_shapes(model, data_prop=True).graph
    kinds = {t.name: t.data_type for t in found.initializer}
    for value in (*found.value_info, *found.input, *found.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    return kinds


def shape_unknown(why: str) -> KDError:
    """The error where a tensor's size does not follow from the input's."""
    return KDError(
        "shape-unknown",
        f"shape inference failed for the given input shape: {why}",
        where="[export] shape",
        fix="set export.shape to the shape of the network's input, and export without operators "
        "that onnx does not know",
    )
