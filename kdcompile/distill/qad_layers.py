"""Find the layers of a student that will be int8 in its ONNX file, before there is one.

The rule is that of `calib.layers.quantised_layers`, applied to the operators that torch.export
finds: every layer with a constant weight but the output layers. `calib.qad_table` checks, once the
file is there, that both found the same layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Node

from kdcompile.core.errors import KDError
from kdcompile.distill.evaluate import in_inference

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "convolution")
SAME = ("dropout", "feature_dropout", "alpha_dropout", "alias", "clone", "contiguous", "detach")
KINDS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class QadLayer:
    """One call of a layer that is quantised.

    module: its name in the student. axis: of its weight, the output channel; None for one scale.
    tensor: number of the activation scale that its input has; layers that read one tensor share
    it, as the Q/DQ pair does, and so do the inputs of a layer that is called more than once.
    norm: the batch norm that the export folds into the weight, if any.
    """

    module: str
    axis: int | None
    tensor: int
    norm: str | None = None


@dataclass(frozen=True)
class _Call:
    node: Node
    data: Node
    weight: Node


def find_layers(student: nn.Module, example: Tensor) -> list[QadLayer]:
    """The quantised layers of a student, in the order of execution.

    Args:
        student: with the weights anywhere; left in the mode that it is in.
        example: an input, on the student's device.

    Raises:
        KDError: `qad-trace`, `qad-layer` or `calib-nothing`.
    """
    try:
        with in_inference(student):
            program = torch.export.export(student, (example,))
            counts = _times_called(student, example)
    except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise KDError(
            "qad-trace",
            f"torch.export cannot trace the student: {str(error).strip().splitlines()[0]}",
            where="[quantize] qad",
            fix="write its forward in operators that torch.export traces, or set "
            "quantize.qad = false",
        ) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    calls = list(_quantised(list(program.graph.nodes), set(signature.inputs_to_parameters)))
    if not calls:
        raise KDError(
            "calib-nothing",
            "the network has no layer to quantise: only its output layer has weights",
            where="student",
            fix="set quantize.qad = false",
        )
    layers = [_layer(student, call, names) for call in calls]
    for layer in layers:
        if counts[layer.module] != sum(other.module == layer.module for other in layers):
            raise _refused(layer.module, "its weight is used outside its own forward")
    return _share(layers, [_source(call.data) for call in calls])


def _quantised(nodes: Sequence[Node], parameters: set[str]) -> Iterator[_Call]:
    """Weighted calls from which the output is reached only through another one."""
    constant: set[Node] = set()
    for node in nodes:
        if _is_constant(node, constant, parameters):
            constant.add(node)
    calls = {c.node: c for node in nodes if (c := _call(node, constant)) is not None}
    waiting = list(nodes[-1].all_input_nodes)
    seen, last = set[Node](), set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in calls:
            last.add(node)
        else:
            waiting += node.all_input_nodes
    return (call for node, call in calls.items() if node not in last)


def _is_constant(node: Node, constant: set[Node], parameters: set[str]) -> bool:
    """A parameter, a buffer or a constant, or what follows from such alone."""
    if node.op == "placeholder":  # torch.export's own prefixes tell buffers and constants
        return node.name in parameters or node.name.startswith(("b_", "c_"))
    read = node.all_input_nodes
    return node.op == "call_function" and bool(read) and all(n in constant for n in read)


def _operator(node: Node) -> str:
    name = getattr(node.target, "_opname", "")
    return str(name) if node.op == "call_function" else ""


def _call(node: Node, constant: set[Node]) -> _Call | None:
    """The node as a layer: one constant operand, which is not the data."""
    operator = _operator(node)
    if operator not in (*CONVOLUTIONS, *TRANSPOSED, *PRODUCTS):
        return None
    first = 1 if operator in ("addmm", "baddbmm") else 0
    operands = [n for n in node.args[first : first + 2] if isinstance(n, Node)]
    if len(operands) < 2 or operands[0] in constant or operands[1] not in constant:
        return None
    return _Call(node, operands[0], operands[1])


def _layer(student: nn.Module, call: _Call, names: Mapping[str, str]) -> QadLayer:
    operator, weight = _operator(call.node), names.get(call.weight.name, "")
    owner, _, leaf = weight.rpartition(".")
    module = student.get_submodule(owner) if weight else None
    if leaf != "weight" or type(module) not in KINDS:
        kind = "a computed weight" if module is None else type(module).__name__
        raise _refused(owner or call.node.name, f"{operator} of {kind} is not trained in int8")
    axis: int | None = 0
    if operator in TRANSPOSED:
        axis = 1 if module.groups == 1 else None  # type: ignore[union-attr]
    norm = _folded(call.node, names)
    if norm is not None and axis is None:
        raise _refused(owner, "a grouped transposed convolution is followed by a batch norm")
    return QadLayer(owner, axis, -1, norm)


def _folded(node: Node, names: Mapping[str, str]) -> str | None:
    """The batch norm that alone reads a layer's output."""
    users = list(node.users)
    if len(users) != 1 or _operator(users[0]) != "batch_norm" or len(users[0].args) < 5:
        return None
    mean = users[0].args[3]
    buffer = names.get(mean.name) if isinstance(mean, Node) else None
    return None if buffer is None else buffer.rpartition(".")[0]


def _source(node: Node) -> Node:
    """The tensor itself, where nodes that the export drops stand between."""
    while _operator(node) in SAME and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _share(layers: Sequence[QadLayer], sources: Sequence[Node]) -> list[QadLayer]:
    """Number the scales: one for the layers and tensors that hang together."""
    group: dict[object, int] = {}
    for number, (layer, source) in enumerate(zip(layers, sources, strict=True)):
        known = {group[key] for key in (layer.module, source) if key in group}
        kept = min(known, default=number)
        group = {key: kept if value in known else value for key, value in group.items()}
        group[layer.module] = group[source] = kept
    order = {old: new for new, old in enumerate(dict.fromkeys(group[s] for s in sources))}
    return [replace(layer, tensor=order[group[layer.module]]) for layer in layers]


@torch.no_grad()
def _times_called(student: nn.Module, example: Tensor) -> dict[str, int]:
    counts = {name: 0 for name, module in student.named_modules() if isinstance(module, KINDS)}

    def count(name: str, _module: nn.Module, _inputs: object) -> None:
        counts[name] += 1

    with ExitStack() as hooks:
        for name in counts:
            module = student.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(count, name)))
        student(example)
    return counts


def _refused(where: str, why: str) -> KDError:
    return KDError(
        "qad-layer",
        f"the layer {where} cannot be trained in int8: {why}",
        where="[quantize] qad",
        fix="call an nn.Conv, nn.ConvTranspose or nn.Linear there, or set quantize.qad = false",
    )
