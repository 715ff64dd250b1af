"""A network's constants and neighbours, and the part of it that computes some tensors."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.onnx_graph.layers import Layer

Floats = NDArray[np.float32]


class Images(Protocol):
    """Images that can be iterated again and again; a list, or a reader of files."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Floats]: ...


class Graph:
    """An editable view of a model: what it reads and writes is the model's own graph."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.constants = {t.name: t for t in model.graph.initializer}
        self.outputs = {v.name for v in model.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> Floats:
        """A writable copy of a constant."""
        return numpy_helper.to_array(self.constants[name]).copy()

    def set(self, name: str, values: Floats) -> None:
        """Replace a constant's values."""
        self.constants[name].CopyFrom(numpy_helper.from_array(values, name))

    def add(self, name: str, values: Floats) -> str:
        """Add a constant and return its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def only_reader(self, tensor: str) -> NodeProto | None:
        """The one node that reads a tensor, None where several do or the network gives it out."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_own(self, constant: str) -> bool:
        """Whether one node alone reads a constant, once, so that it may be changed for it."""
        return constant in self.constants and self.only_reader(constant) is not None


def copied(model: ModelProto) -> ModelProto:
    """A copy that can be edited."""
    result = ModelProto()
    result.CopyFrom(model)
    return result


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def by_channel(layer: Layer, weight: Floats) -> Floats:
    """A view of a weight as [groups, outputs per group, inputs per group, taps].

    Input channel i of the layer is input `i % inputs` of group `i // inputs`, and likewise its
    outputs, whatever the operator's own order is.
    """
    node, given = layer.node, attributes(layer.node)
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = given.get("group", 1)
        first, second = weight.shape[:2]
        view = weight.reshape(groups, first // groups, second, -1)
        return view if node.op_type == "Conv" else view.swapaxes(1, 2)
    view = weight[None, :, :, None]
    return view if node.op_type == "Gemm" and given.get("transB", 0) else view.swapaxes(1, 2)


def is_plain(layer: Layer, graph: Graph) -> bool:
    """Whether a layer is weight times data plus bias, and no other layer shares its constants."""
    node, given = layer.node, attributes(layer.node)
    gemm = given.get("transA", 0) == 0 and given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
    flat = node.op_type not in ("Gemm", "MatMul") or len(graph.constants[layer.weight].dims) == 2
    bias = node.input[2] if len(node.input) > 2 else ""
    return gemm and flat and graph.is_own(layer.weight) and (not bias or graph.is_own(bias))


def computing(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """The part of a model that computes some tensors, which are its outputs in this order."""
    wanted = list(dict.fromkeys(tensors))
    needed, kept = set(wanted), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    part = ModelProto()
    part.CopyFrom(model)
    del (
        part.graph.node[:],
        part.graph.output[:],
        part.graph.initializer[:],
        part.graph.value_info[:],
    )
    part.graph.node.extend(reversed(kept))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted
    )
    return part


def quantised_outputs(quantised: ModelProto) -> set[str]:
    """The outputs of the layers of a Q/DQ network whose data and weight are quantised."""
    pairs = {n.output[0] for n in quantised.graph.node if n.op_type == "DequantizeLinear"}
    return {n.output[0] for n in quantised.graph.node if pairs.issuperset(n.input[:2])}
