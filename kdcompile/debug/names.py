"""Names of a tensor: its ONNX node, the PyTorch module, the engine's layers."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, NodeProto

from kdcompile.export.scopes import KEY

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
    scopes = next((entry.value for entry in node.metadata_props if entry.key == KEY), "")
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
