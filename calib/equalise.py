"""Cross-layer equalisation: scale channels between two layers so that both quantise well.

A positively homogeneous f has f(s x) = s f(x) for s > 0, so channel i between two layers can be
divided by s_i in the first and multiplied by s_i in the second: the network computes what it did.
With r1_i and r2_i the ranges of the channel in the first and the second weight,
s_i = sqrt(r1_i r2_i) / r2_i makes them equal (Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", section 4.1).
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from kdcompile.onnx_graph.graph import Floats, Graph, attributes, by_channel, copied, is_plain
from kdcompile.onnx_graph.layers import Layer, quantised_layers

CONVOLUTIONS = ("Conv", "ConvTranspose")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity")
SWEEPS = 40
CONVERGED = 1e-3  # of |log s|: a tenth of a per cent
LARGEST = 1e4  # of a scale in one sweep; beyond it a channel is as good as dead


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing but homogeneous functions between them.

    `repeat` is how many consecutive inputs of the second belong to a channel of the first: more
    than one where a Flatten lies between.
    """

    first: Layer
    second: Layer
    repeat: int


def equalise(model: ModelProto) -> tuple[ModelProto, list[tuple[str, str]]]:
    """The same function with equalised channels, and the pairs of layers that were equalised.

    Sweeps over the pairs until no scale differs from 1 by more than `CONVERGED`, since a layer
    between two others is in two pairs. A channel that is zero on either side keeps its scale.

    Args:
        model: the float32 network; it is left as it is.
    """
    result = copied(model)
    graph = Graph(result)
    pairs = equalisable(graph)
    for _ in range(SWEEPS):
        moved = [_equalise_pair(graph, pair) for pair in pairs]
        if max(moved, default=0.0) <= CONVERGED:
            break
    return result, [(pair.first.name, pair.second.name) for pair in pairs]


def equalisable(graph: Graph) -> list[Pair]:
    """The pairs of quantised layers between which channels can be scaled, in order."""
    layers = [layer for layer in quantised_layers(graph.model) if is_plain(layer, graph)]
    by_data = {layer.data: layer for layer in layers}
    found = [_pair(graph, layer, by_data) for layer in layers]
    return [pair for pair in found if pair is not None]


def _pair(graph: Graph, first: Layer, by_data: dict[str, Layer]) -> Pair | None:
    """The pair that starts with a layer: follow its output while one homogeneous node reads it."""
    tensor, flattened = first.node.output[0], False
    while (reader := graph.only_reader(tensor)) is not None:
        second = by_data.get(tensor)
        if second is not None:
            return _matched(graph, first, second, flattened)
        if not _passes(graph, reader, tensor, first):
            return None
        flattened |= reader.op_type == "Flatten"
        tensor = reader.output[0]
    return None


def _matched(graph: Graph, first: Layer, second: Layer, flattened: bool) -> Pair | None:
    """A pair whose channels lie on the same axis of the tensor between them, as far as is known."""
    kinds = [layer.node.op_type in CONVOLUTIONS for layer in (first, second)]
    if kinds != ([True, False] if flattened else [kinds[0]] * 2):
        return None
    outputs = int(np.prod(by_channel(first, graph.array(first.weight)).shape[:2]))
    shape = by_channel(second, graph.array(second.weight)).shape
    repeat, rest = divmod(shape[0] * shape[2], outputs)
    return None if rest else Pair(first, second, repeat)


def _passes(graph: Graph, node: NodeProto, tensor: str, first: Layer) -> bool:
    """Whether a node applies one positively homogeneous function to each channel by itself."""
    if node.op_type == "Flatten":
        return first.node.op_type in CONVOLUTIONS and attributes(node).get("axis", 1) == 1
    if node.op_type in POOLS:
        return first.node.op_type in CONVOLUTIONS
    rest = [name for name in node.input if name != tensor]
    return node.op_type in HOMOGENEOUS and all(name in graph.constants for name in rest)


def _equalise_pair(graph: Graph, pair: Pair) -> float:
    """Scale the channels of one pair; returns the largest |log s|."""
    one, two = graph.array(pair.first.weight), graph.array(pair.second.weight)
    left, right = by_channel(pair.first, one), by_channel(pair.second, two)
    incoming = np.abs(right).max(axis=(1, 3)).reshape(-1, pair.repeat).max(axis=1)
    scale = _scales(np.abs(left).max(axis=(2, 3)).reshape(-1), incoming)
    left /= scale.reshape(left.shape[0], left.shape[1], 1, 1)
    right *= np.repeat(scale, pair.repeat).reshape(right.shape[0], 1, right.shape[2], 1)
    graph.set(pair.first.weight, one)
    graph.set(pair.second.weight, two)
    if len(pair.first.node.input) > 2 and pair.first.node.input[2]:
        name = pair.first.node.input[2]
        graph.set(name, graph.array(name) / scale)
    return float(np.abs(np.log(scale)).max())


def _scales(outgoing: Floats, incoming: Floats) -> Floats:
    """sqrt(r1 / r2) per channel, which is sqrt(r1 r2) / r2; 1 where either is zero."""
    alive = (outgoing > 0) & (incoming > 0)
    ratio = np.divide(outgoing, incoming, out=np.ones_like(outgoing), where=alive)
    return np.sqrt(ratio).clip(1 / LARGEST, LARGEST)
