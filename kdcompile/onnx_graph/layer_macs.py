"""Multiply-accumulates of each weighted layer, by name."""

import math
from collections.abc import Sequence

from onnx import GraphProto, ModelProto, shape_inference

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.layers import weighted_layers
from kdcompile.onnx_graph.shapes import inferred


def layer_macs(model: ModelProto, shape: Sequence[int]) -> dict[str, int]:
    """MACs of every weighted layer, the output layers too, for one input of this shape.

    Each element of a weight is used once at each place where the weight is laid: the pixels of a
    convolution's output, those of a transposed one's input, the rows of a matrix product.

    Raises:
        KDError: `shape-unknown`, that of a layer's data or output does not follow from the input's.
    """
    sizes = tensor_sizes(model, shape)
    found = {}
    for layer in weighted_layers(model):
        data, weight = sizes[layer.data], sizes[layer.weight]
        output = sizes[layer.node.output[0]]
        if layer.node.op_type == "MatMul":  # a weight may be a batch of matrices
            found[layer.name] = math.prod(output) * weight[-2]
            continue
        pixels = data if layer.node.op_type == "ConvTranspose" else output
        found[layer.name] = math.prod(weight) * pixels[0] * math.prod(pixels[2:])
    return found


def tensor_sizes(model: ModelProto, shape: Sequence[int]) -> dict[str, list[int]]:
    """The shape of every tensor whose shape is known, for an input of this shape.

    Raises:
        KDError: `shape-unknown`, the sizes of a weighted layer's tensors are not among them.
    """
    graph = _inferred(model, shape)
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {
        v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")
    }
    sizes = {name: [d.dim_value for d in shape.dim] for name, shape in shapes.items()}
    sizes = {name: size for name, size in sizes.items() if 0 not in size}
    sizes |= {t.name: list(t.dims) for t in graph.initializer}
    for layer in weighted_layers(model):
        if not {layer.data, layer.node.output[0]} <= sizes.keys():
            raise _unknown(f"those of {layer.node.op_type} {layer.name} are not")
    return sizes


def _inferred(model: ModelProto, shape: Sequence[int]) -> GraphProto:
    try:
        return inferred(model, shape)
    except shape_inference.InferenceError as error:
        raise _unknown(str(error).splitlines()[0]) from error


def _unknown(why: str) -> KDError:
    return KDError(
        "shape-unknown",
        f"the sizes of the network's layers are not known from the input's: {why}",
        where="[quantize] precision",
        fix='set quantize.precision to "int8" or "fp16", which weigh no layers, or export a '
        "network without operators that onnx does not know",
    )
