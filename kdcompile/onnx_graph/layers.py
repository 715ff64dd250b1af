"""Find the weighted layers of a network, and those that are quantised."""

from collections import Counter
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
