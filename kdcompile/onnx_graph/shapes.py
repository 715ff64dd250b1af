"""The shape of every tensor of a network, from that of its input."""

from collections.abc import Sequence

from onnx import GraphProto, ModelProto, shape_inference


def inferred(model: ModelProto, shape: Sequence[int]) -> GraphProto:
    """The graph with `value_info` of every tensor whose shape follows.

    Args:
        model: not changed; what it says of its tensors' shapes is not used.
        shape: of the first input.

    Raises:
        InferenceError: onnx's, where an operator does not fit its inputs, or the input has not as
            many axes as `shape`.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise shape_inference.InferenceError(
            f"the input has {len(dims)} axes, {list(shape)} has {len(shape)}"
        )
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
