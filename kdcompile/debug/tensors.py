"""Tensors of a network: their names and modules, and inner ones as extra outputs (halves kept).

ONNX Runtime's CPU computes float16 nodes in float32 and drops the casts between them, so a float16
file shows neither its rounding nor its overflow there. `stored` puts an Identity after each half
tensor: it has a half kernel, so the tensor is stored as half, and with all optimisation off nothing
removes it. The sums inside one node stay float32, as on a GPU's tensor cores.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from kdcompile.onnx_graph.graph import copied
from kdcompile.onnx_graph.opset import SCOPE

if TYPE_CHECKING:
    from torch.export import ExportedProgram

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, *HALVES)
SUFFIX = "__exposed"
WHOLE = "(all outputs)"  # of a network that runs on rows: what its outputs make together


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


ROOT = "(the network's own forward)"


@dataclass(frozen=True)
class Named:
    """Where a tensor is made.

    Args:
        operator: of its node; None where nothing makes it.
        node: the node's name.
        module: path of the PyTorch module, or None where the exporter left none.
        layers: of the engine that hold the node, by name.
    """

    operator: str | None
    node: str | None
    module: str | None
    layers: list[str] = field(default_factory=list)


def module_of(node: NodeProto) -> str | None:
    """The innermost module around a node, from torch's exporter's list of scopes.

    Its last entry is the node itself, "" the network; None where the exporter left no list.
    """
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPE), "")
    try:
        path = [str(part) for part in ast.literal_eval(scopes)]
    except (ValueError, SyntaxError):
        return None
    if len(path) < 2:
        return None
    return path[-2] or ROOT


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def name_onnx(tensor: str, suspect: ModelProto, module: str | None = None) -> Named:
    """The node that makes a tensor of an ONNX network.

    Args:
        tensor: its name.
        suspect: the network.
        module: that it is known to be of; None for what the node itself says.
    """
    node = producers(suspect).get(tensor)
    if node is None:
        return Named(None, None, module)
    name = node.name or f"node_of_{node.output[0]}"  # as TensorRT calls it
    return Named(node.op_type, name, module or module_of(node))


def module_for(tensor: str, model: ModelProto) -> str | None:
    """The module that makes a tensor, or the nearest one above it that is known.

    What calibration and fp16 put in (Q/DQ, Cast) has no module: it belongs to what it reads. The
    network's input belongs to what reads it first.
    """
    made = producers(model)
    node = made.get(tensor)
    while node is not None:
        found = module_of(node)
        if found is not None:
            return found
        node = next((made[name] for name in node.input if name in made), None)
    readers = (module_of(node) for node in model.graph.node if tensor in node.input)
    return next((module for module in readers if module is not None), None)


def name_program(tensor: str, program: "ExportedProgram") -> Named:
    """The same of a node of an exported program."""
    for node in program.graph.nodes:
        if node.name == tensor:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = str(stack[-1][0]) if stack else None
            return Named(str(node.target), node.name, path if path is None else path or ROOT)
    return Named(None, None, None)


def engine_layers(node: str | None, layers: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The layers of an engine that hold an ONNX node, from the record beside the engine."""
    found = [layer for layer in layers or () if node in (layer.get("onnx") or ())]
    return [str(layer["name"]) for layer in found]
