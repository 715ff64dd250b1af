"""Intermediate tensors of an ONNX network as extra outputs, and half tensors stored as half.

ONNX Runtime's CPU computes float16 nodes in float32 and drops the casts between them, so a float16
file shows neither its rounding nor its overflow there. `stored` puts an Identity after each half
tensor: it has a half kernel, so the tensor is stored as half, and with all optimisation off nothing
removes it. The sums inside one node stay float32, as on a GPU's tensor cores.
"""

from collections.abc import Iterable, Mapping

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from kdcompile.onnx_graph.graph import copied

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, *HALVES)
SUFFIX = "__exposed"


def computed(model: ModelProto) -> dict[str, NodeProto]:
    """The producer of every tensor that depends on the network's input, in topological order."""
    constants = {t.name for t in model.graph.initializer}
    known = {v.name for v in model.graph.input if v.name not in constants}
    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        # a node with a body may read tensors of the graph around it without naming them
        has_body = any(a.HasField("g") or a.graphs for a in node.attribute)
        if has_body or known.intersection(node.input):
            found |= {name: node for name in node.output if name}
            known.update(node.output)
    return found


def exposed(
    model: ModelProto, tensors: Iterable[str], kinds: Mapping[str, int]
) -> tuple[ModelProto, dict[str, str]]:
    """The network with more outputs, each float32.

    Args:
        model: any network.
        tensors: floating-point tensors of it.
        kinds: `element_types` of the network.

    Returns:
        The network, and the name of the output that gives each tensor: its own, or that of a Cast
        where the tensor is no float32.
    """
    result = copied(model)
    given = {v.name for v in model.graph.output}
    names: dict[str, str] = {}
    for tensor in tensors:
        is_float = kinds.get(tensor, TensorProto.FLOAT) == TensorProto.FLOAT
        names[tensor] = tensor if is_float or tensor in given else tensor + SUFFIX
        if names[tensor] in given:
            continue
        if not is_float:
            result.graph.node.add().CopyFrom(
                helper.make_node("Cast", [tensor], [names[tensor]], to=TensorProto.FLOAT)
            )
        value = helper.make_tensor_value_info(names[tensor], TensorProto.FLOAT, None)
        result.graph.output.add().CopyFrom(value)
        given.add(names[tensor])
    return onnx.shape_inference.infer_shapes(result), names  # the checker asks for outputs' shapes


def stored(model: ModelProto, kinds: Mapping[str, int]) -> ModelProto:
    """The network with every half tensor kept as half between its nodes (see the module).

    Names of tensors stay; a node's own result is called `NAME__raw`.
    """
    result = copied(model)
    body: list[NodeProto] = []
    for node in model.graph.node:
        copy = NodeProto.FromString(node.SerializeToString())
        body.append(copy)
        for place, name in enumerate(node.output):
            if kinds.get(name) in HALVES:
                copy.output[place] = f"{name}__raw"
                body.append(helper.make_node("Identity", [copy.output[place]], [name]))
    del result.graph.node[:]
    result.graph.node.extend(body)
    return result
