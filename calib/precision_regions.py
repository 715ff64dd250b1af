"""Borders of int8 and fp16 in a network: nodes that stay float32, and tensors that are recast."""

from collections.abc import Collection, Iterator, Mapping

from onnx import ModelProto, NodeProto

from kdcompile.onnx_graph.fp16 import float_tensors
from kdcompile.onnx_graph.layers import quantised_layers, weighted_layers

POINTWISE = {
    "Add", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh",
}  # fmt: skip
"""What a compiler folds into the convolution before it, so that it takes its type."""
ATTENTION = {"MatMul", "Softmax"}
"""Products of two activations and what stands between: never int8, and twice as fast in fp16."""


class Junctions:
    """The graph between the weighted layers of a float32 network."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.inputs = {v.name for v in model.graph.input}
        self.weighted = {layer.node.output[0]: layer.name for layer in weighted_layers(model)}
        self.quantisable = quantised_layers(model)
        self.floats = float_tensors(model)
        self.users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in self.data(node):
                self.users.setdefault(name, []).append(node)

    def data(self, node: NodeProto) -> list[str]:
        """The float inputs of a node that are no constants."""
        return [name for name in node.input if name in self.floats]

    def float32_nodes(self, quantised: Collection[str]) -> set[str]:
        """The first output of each node that computes between DequantizeLinear and QuantizeLinear.

        Opset 17's pair gives and takes float32, so these nodes stay float32: the quantised layers,
        the pointwise operators on nothing but their results, and whatever lies on a way from them
        to the next quantised layer, attention apart. Two layers with only such nodes between them
        share no cast.
        """
        towards = self._towards(quantised)
        found, inside = set[str](), set[str]()  # nodes, and all their outputs
        for node in self.nodes:
            first = node.output[0]
            within = [name in inside for name in self.data(node)]
            if first in self.weighted:
                joins = self.weighted[first] in quantised
            elif node.op_type in ATTENTION:
                joins = False
            elif node.op_type in POINTWISE and all(within):
                joins = bool(within)
            else:
                joins = any(within) and first in towards
            if joins:
                found.add(first)
                inside |= set(node.output)
        return found

    def recast(self, quantised: Collection[str]) -> dict[str, bool]:
        """The tensors that change precision, and whether that is from fp16 to int8 or back.

        Each counts once, however many nodes read it. The network's own input and output are not
        among them: they are converted at any precision.
        """
        kept = self.float32_nodes(quantised)
        found = {}
        for node in self.nodes:
            inside = node.output[0] in kept
            for name in node.output:
                uses = self.users.get(name, ())
                if any((user.output[0] in kept) != inside for user in uses):
                    found[name] = not inside
        return found

    def neighbours(self) -> dict[str, set[str]]:
        """For each quantisable layer those with only unweighted nodes between it and them.

        Then one feeds the other, both read one tensor, or both add into one: quantised together,
        they share what is recast.
        """
        regions = self._regions()
        touching: dict[str, set[str]] = {}
        for layer in self.quantisable:
            for tensor in (layer.data, layer.node.output[0]):
                if (
                    tensor not in self.inputs
                ):  # conversion of the input is shared by nobody's choice
                    touching.setdefault(regions.get(tensor, tensor), set()).add(layer.name)
        found: dict[str, set[str]] = {layer.name: set() for layer in self.quantisable}
        for group in touching.values():
            for name in group:
                found[name] |= group - {name}
        return found

    def _towards(self, quantised: Collection[str]) -> set[str]:
        """Unweighted nodes from which a quantised layer is reached without passing another."""
        found = set[str]()
        for node in reversed(self.nodes):
            after = [user.output[0] for name in node.output for user in self.users.get(name, ())]
            reached = any(self.weighted.get(user) in quantised or user in found for user in after)
            if reached and node.output[0] not in self.weighted:
                found.add(node.output[0])
        return found

    def _regions(self) -> dict[str, str]:
        """For each tensor one that stands for all that unweighted nodes join it with."""
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            while parent.setdefault(name, name) != name:
                name = parent[name]
            return name

        for node in self.nodes:
            if node.output[0] not in self.weighted:
                for name in (*self.data(node), *node.output):
                    parent[root(name)] = root(node.output[0])
        return {name: root(name) for name in parent}


def islands(
    quantised: Collection[str], near: Mapping[str, Collection[str]]
) -> Iterator[frozenset[str]]:
    """The maximal connected runs of quantised layers, in the order of `near`."""
    left = {name for name in near if name in quantised}
    for start in near:
        if start not in left:
            continue
        island, waiting = {start}, [start]
        while waiting:
            fresh = left & set(near[waiting.pop()]) - island
            island |= fresh
            waiting += fresh
        left -= island
        yield frozenset(island)
