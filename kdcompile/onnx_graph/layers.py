"""Weighted layers of a network: which are quantised, and their multiply-accumulates."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from kdcompile.onnx_graph.shapes import inferred, shape_unknown, tensor_sizes

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight, and the axis of that weight that is the output channel.

    `axis` is None where one scale must serve the whole weight (a grouped transposed convolution,
    whose output channels lie on two axes). `name` is the node's, or its output's where the node
    has none or shares it: it is unique.
    """

    node: NodeProto
    data: str
    weight: str
    axis: int | None
    name: str = ""


def quantised_layers(model: ModelProto) -> list[Layer]:
    """Every weighted layer but the output layers.

    An output layer is one from which the network's output is reached without passing another:
    it computes the regression itself, so its rounding error would be the output's.
    """
    layers = {layer.node.output[0]: layer for layer in weighted_layers(model)}
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting, seen, last = [v.name for v in model.graph.output], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in layers:
            last.add(name)
        elif name in producers:
            waiting += producers[name].input
    return [layer for name, layer in layers.items() if name not in last]


def weighted_layers(model: ModelProto) -> list[Layer]:
    """Every node with a constant weight and data that is none, in the graph's order."""
    weights = {t.name: t for t in model.graph.initializer}
    names = Counter(node.name for node in model.graph.node)
    found = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in weights:
            continue
        if node.input[0] in weights:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        axis: int | None = 0
        if node.op_type == "ConvTranspose":
            axis = 1 if attributes.get("group", 1) == 1 else None
        elif node.op_type == "Gemm":
            axis = 0 if attributes.get("transB", 0) else 1
        elif node.op_type == "MatMul":
            axis = len(weights[node.input[1]].dims) - 1
        name = node.name if node.name and names[node.name] == 1 else node.output[0]
        found.append(Layer(node, node.input[0], node.input[1], axis, name))
    return found


def count_macs(model: ModelProto, shape: Sequence[int]) -> int:
    """Of convolutions, matrix products and recurrent layers, for one input of this shape.

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
        KDError: `shape-unknown`, the shapes at a convolution, a matrix product or a recurrent layer
            are not among them.
    """
    sizes = tensor_sizes(inferred(model, shape))
    sizes = {name: size for name, size in sizes.items() if 0 not in size}
    for node in model.graph.node:
        needed = {*node.input[:2], node.output[0]} if node.op_type in WEIGHTED else set()
        if node.op_type in RECURRENT:
            needed = {*node.input[:3]}
        if not needed <= sizes.keys():
            raise shape_unknown(f"at {node.op_type} {node.name or node.output[0]}")
    return sizes


def node_macs(node: NodeProto, sizes: Mapping[str, Sequence[int]]) -> int:
    """Of a convolution, a matrix product or a recurrent layer's steps; zero of any other node.

    Biases are excluded.
    """
    if node.op_type in RECURRENT:  # [steps, images, inputs], or images first
        data, weight, state = (sizes[n] for n in node.input[:3])
        return math.prod(data[:2]) * (math.prod(weight) + math.prod(state))
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
