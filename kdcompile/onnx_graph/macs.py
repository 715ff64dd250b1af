"""Multiply-accumulates of an ONNX network, of its weighted layers and of single nodes."""

import math
from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto

from kdcompile.onnx_graph.layers import WEIGHTED, weighted_layers
from kdcompile.onnx_graph.shapes import inferred, shape_unknown, tensor_sizes


def count_macs(model: ModelProto, shape: Sequence[int]) -> int:
    """Of convolutions and matrix products, for one input of this shape.

    Raises:
        KDError: `shape-unknown`, that of such a node does not follow from the input's.
    """
    sizes = known_sizes(model, shape)
    return sum(node_macs(node, sizes) for node in model.graph.node)


def layer_macs(model: ModelProto, shape: Sequence[int]) -> dict[str, int]:
    """MACs of every weighted layer by name, the output layers too, for one input of this shape.

    Raises:
        KDError: `shape-unknown`, as for `count_macs`.
    """
    sizes = known_sizes(model, shape)
    return {layer.name: node_macs(layer.node, sizes) for layer in weighted_layers(model)}


def known_sizes(model: ModelProto, shape: Sequence[int]) -> dict[str, list[int]]:
    """The shape of every tensor whose shape is known, for an input of this shape.

    Raises:
        KDError: `shape-unknown`, the shapes at a convolution or matrix product are not among them.
    """
    sizes = tensor_sizes(inferred(model, shape))
    sizes = {name: size for name, size in sizes.items() if 0 not in size}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and not {*node.input[:2], node.output[0]} <= sizes.keys():
            raise shape_unknown(f"at {node.op_type} {node.name or node.output[0]}")
    return sizes


def node_macs(node: NodeProto, sizes: Mapping[str, Sequence[int]]) -> int:
    """Of a convolution or a matrix product, biases excluded; zero of any other node."""
    if node.op_type not in WEIGHTED:
        return 0
    data, weight, output = (sizes[n] for n in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":  # weight [out, in / groups, k, k]
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, k, k]
        return math.prod(data) * math.prod(weight[1:])
    return math.prod(output) * inner_size(node, data)


def inner_size(node: NodeProto, data: Sequence[int]) -> int:
    """The size of a matrix product's inner axis, from the shape of its first input."""
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return data[-2 if turned else -1]
