"""Normalisation layers: written out for a parser without the operator, and their sums of squares.

A square of more than 65504 is an overflow in float16, which inputs over 255 give: a norm that is
written out computes it, and its mean, in float32. The operators LayerNormalization,
InstanceNormalization and GroupNormalization do so by themselves.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from kdcompile.onnx_graph.graph import attributes

LAYER_NORM, LAYER_NORM_SINCE = "LayerNormalization", 17
SUMS = {"ReduceMean", "ReduceSum"}
OF_SQUARES = {"ReduceSumSquare", "ReduceL2"}  # sums that square by themselves
ON_THE_WAY = {"Add", "Cast", "Clip", "Div", "Max", "Mul", "Reciprocal", "Sqrt"} | SUMS


def squares(model: ModelProto) -> set[str]:
    """The first output of each node that computes with sums of squares: up to their root.

    A square is a Pow by 2, or a Mul of a tensor with itself, that a mean or a sum reads. From there
    on every node counts whose only input that is no constant is such a value: the shift by epsilon,
    the root, its reciprocal.
    """
    constants = {t.name: t for t in model.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in model.graph.node if _is_tensor(n)}
    summed = {n.input[0] for n in model.graph.node if n.op_type in SUMS}

    def is_square(node: NodeProto) -> bool:
        if node.op_type == "Pow":
            power = constants.get(node.input[1])
            return power is not None and bool((numpy_helper.to_array(power) == 2).all())
        return node.op_type == "Mul" and node.input[0] == node.input[1]

    found: set[str] = set()
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in constants]
        follows = node.op_type in ON_THE_WAY and bool(data) and found.issuperset(data)
        starts = is_square(node) and node.output[0] in summed
        if follows or starts or node.op_type in OF_SQUARES:
            found.add(node.output[0])
    return found


def _is_tensor(node: NodeProto) -> bool:
    return node.op_type == "Constant" and bool(node.attribute) and node.attribute[0].HasField("t")


def write_out_layer_norms(model: ModelProto) -> None:
    """Put means, a root and a division in the place of LayerNormalization nodes, in place.

    Args:
        model: of opset 13 to 17, whose nodes name their axis from the end as torch's exporter does.
    """
    body: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == LAYER_NORM and attributes(node).get("axis", -1) < 0:
            body += _written_out(model, node)
        else:
            body.append(node)
    body = [NodeProto.FromString(node.SerializeToString()) for node in body]
    del model.graph.node[:]
    model.graph.node.extend(body)


def _written_out(model: ModelProto, node: NodeProto) -> Iterator[NodeProto]:
    given, own = attributes(node), node.output[0]
    axes = list(range(given.get("axis", -1), 0))
    epsilon = np.asarray(given.get("epsilon", 1e-5), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(epsilon, f"{own}_epsilon"))

    def made(kind: str, inputs: list[str], what: str, **more: Any) -> NodeProto:
        result = own if what == "" else f"{own}_{what}"
        fresh = helper.make_node(kind, inputs, [result], f"{result}_{kind}", **more)
        fresh.metadata_props.extend(node.metadata_props)
        return fresh

    data, scale, *bias = node.input
    yield made("ReduceMean", [data], "mean", axes=axes, keepdims=1)
    yield made("Sub", [data, f"{own}_mean"], "centred")
    yield made("Mul", [f"{own}_centred"] * 2, "square")
    yield made("ReduceMean", [f"{own}_square"], "variance", axes=axes, keepdims=1)
    yield made("Add", [f"{own}_variance", f"{own}_epsilon"], "shifted")
    yield made("Sqrt", [f"{own}_shifted"], "deviation")
    yield made("Div", [f"{own}_centred", f"{own}_deviation"], "normal")
    yield made("Mul", [f"{own}_normal", scale], "scaled" if bias else "")
    if bias:
        yield made("Add", [f"{own}_scaled", bias[0]], "")
