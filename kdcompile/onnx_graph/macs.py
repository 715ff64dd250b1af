"""Multiply-accumulates of an ONNX network."""

import math
from collections.abc import Sequence

from onnx import ModelProto, shape_inference


def count_macs(model: ModelProto, shape: Sequence[int]) -> int:
    """Of convolutions and matrix products, for one input of this shape.

    Raises:
        ValueError: the shape of a layer's output does not follow from the input's.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    del graph.value_info[:]
    for place, dim in enumerate(graph.input[0].type.tensor_type.shape.dim):
        dim.dim_value = shape[place]
    graph.output[0].type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    sizes |= {t.name: list(t.dims) for t in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        data, weight, output = (sizes.get(n, [0]) for n in (*node.input[:2], node.output[0]))
        if 0 in (*data, *weight, *output):
            raise ValueError(f"{node.op_type} {node.name}: its shape is not known")
        if node.op_type == "Conv":  # weight [out, in / groups, k, k]
            total += math.prod(output) * math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":  # weight [in, out / groups, k, k]
            total += math.prod(data) * math.prod(weight[1:])
        else:
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(output) * data[-2 if turned else -1]
    return total
