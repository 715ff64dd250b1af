"""The operators of a network that take time, and the size and type of every tensor between them.

Constants are folded, and what only gives memory another shape is gone: its readers read what it
read. Operators are rewired later (`fused_quantise`), so each keeps its ONNX node for attributes and
for shapes, and lists apart the tensors that it reads and writes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.shapes import inferred, shape_unknown, tensor_sizes

VIEWS = {"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
TYPES = {
    TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8", TensorProto.UINT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT32: "int32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool",
    TensorProto.DOUBLE: "fp64",
}  # fmt: skip
BYTES = {
    "fp64": 8, "int64": 8, "fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1,
    "bool": 1,
}  # fmt: skip

FLOAT_ONLY = {"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "TopK"}


@dataclass(eq=False)
class Op:
    """An operator that takes time: `inputs` are the tensors that it reads and that are computed."""

    type: str
    node: NodeProto
    inputs: list[str]
    outputs: list[str]
    scale: bytes = b""
    """Of a QuantizeLinear or DequantizeLinear: what makes two of them the same."""


@dataclass
class Flow:
    """Operators in the order of execution, with who reads and who writes each tensor."""

    sizes: dict[str, list[int]]
    types: dict[str, str]
    inputs: list[str]
    outputs: set[str] = field(default_factory=set)
    ops: list[Op] = field(default_factory=list)
    dequantised: dict[str, str] = field(default_factory=dict)
    """The constants that are given by a DequantizeLinear, and the type that each is stored in."""
    fixed: set[str] = field(default_factory=set)
    values: dict[str, TensorProto] = field(default_factory=dict)
    producer: dict[str, Op] = field(default_factory=dict)
    readers: dict[str, list[Op]] = field(default_factory=dict)

    def index(self) -> None:
        """Find readers and producers anew, after a change."""
        self.producer = {name: op for op in self.ops for name in op.outputs}
        self.readers = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                self.readers.setdefault(name, []).append(op)

    def only_reader(self, tensor: str) -> Op | None:
        """The one operator that reads a tensor; None where several do or the network gives it."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def elements(self, tensor: str) -> int:
        """How many numbers a tensor holds."""
        return math.prod(self.sizes[tensor])

    def bytes(self, tensor: str) -> int:
        """The memory that a tensor takes."""
        return self.elements(tensor) * BYTES[self.types[tensor]]

    def constants(self, op: Op) -> list[str]:
        """What an operator reads that is known beforehand."""
        return [n for n in op.node.input if n in self.fixed]


def flow_of(model: ModelProto, shape: Sequence[int], float32_as: str = "fp32") -> Flow:
    """The operators of `model` at an input of `shape`.

    Raises:
        KDError: `shape-unknown`, a tensor's size does not follow from the input's;
            `kernels-unknown`, control flow.
    """
    graph = inferred(model, shape)
    sizes = tensor_sizes(graph)
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {v.name: TYPES.get(v.type.tensor_type.elem_type, "fp32") for v in values}
    types |= {t.name: TYPES.get(t.data_type, "fp32") for t in graph.initializer}
    held = {t.name for t in graph.initializer}
    flow = Flow(sizes, types, [v.name for v in graph.input if v.name not in held])
    flow.outputs = {v.name for v in graph.output}
    _fold(flow, graph)
    if float32_as != "fp32":
        _retype(flow, float32_as)
    _drop_views(flow)
    _drop_dead(flow)
    for op in flow.ops:
        for name in (*op.inputs, *op.outputs):
            if 0 in sizes.get(name, [0]):
                raise shape_unknown(f"{name} at {op.type} {op.node.name}")
    return flow


def attribute(op: Op, name: str, default: Any = None) -> Any:
    """The value of an attribute of the operator's ONNX node."""
    for found in op.node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def _fold(flow: Flow, graph: GraphProto) -> None:
    """Operators with an input that is computed; the others give constants."""
    stored = flow.values = {t.name: t for t in graph.initializer}
    flow.fixed = {"", *stored}
    for node in graph.node:
        if any(found.type in (found.GRAPH, found.GRAPHS) for found in node.attribute):
            raise KDError(
                "kernels-unknown",
                f"{node.op_type} is control flow, which the latency model does not support",
                where=node.name,
                fix="export without control flow: trace the module at a fixed shape",
            )
        known = all(name in flow.fixed for name in node.input)
        if node.op_type in ("Shape", "Size") or (known and not node.op_type.startswith("Random")):
            flow.fixed |= set(node.output)
            if node.op_type == "DequantizeLinear":
                flow.dequantised[node.output[0]] = _stored_type(flow, graph, node)
            if node.op_type == "Constant":
                stored.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            continue
        inputs = [name for name in node.input if name not in flow.fixed]
        scale = b""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            held = stored.get(node.input[1])
            scale = (
                node.input[1].encode()
                if held is None
                else numpy_helper.to_array(held).astype(np.float32).tobytes()
            )
        outputs = [name for name in node.output if name]
        flow.ops.append(Op(node.op_type, node, inputs, outputs, scale))
    flow.fixed.discard("")
    flow.index()


def _stored_type(flow: Flow, graph: GraphProto, node: NodeProto) -> str:
    """Of the pair's integers: known even where a float weight is quantised by the compiler."""
    source = node.input[0]
    given = next((n for n in graph.node if source in n.output), None)
    zero = given.input[2] if given is not None and len(given.input) > 2 else source
    return flow.types.get(zero, "int8")


def _retype(flow: Flow, kind: str) -> None:
    """Weak typing: what the file says is float32 is computed as `kind`, but for what is outside."""
    inputs = [n for n in flow.inputs if flow.types[n] == "fp32"]
    outputs = [n for n in flow.outputs if flow.types[n] == "fp32"]
    rename = {name: f"{name}_reformat" for name in (*inputs, *outputs)}
    for op in flow.ops:
        op.inputs = [rename.get(n, n) for n in op.inputs]
        op.outputs = [rename.get(n, n) for n in op.outputs]
    for name, inner in rename.items():
        flow.sizes[inner], flow.types[inner] = flow.sizes[name], kind
    kept = _float_only(flow) if kind == "int8" else set()
    same = {*rename, *kept}
    flow.types |= {n: kind for n, t in flow.types.items() if t == "fp32" and n not in same}
    before = [_cast(n, rename[n], rename[n]) for n in inputs]
    after = [_cast(rename[n], n, rename[n]) for n in sorted(outputs)]
    flow.ops = [*before, *flow.ops, *after]
    flow.index()


def _float_only(flow: Flow) -> set[str]:
    """The tensors of operators that have no int8 kernel."""
    ops = [op for op in flow.ops if op.type in FLOAT_ONLY]
    return {name for op in ops for name in (*op.inputs, *op.outputs)}


def _cast(source: str, result: str, name: str) -> Op:
    node = helper.make_node("Cast", [source], [result], name=name)
    return Op("Cast", node, [source], [result])


def _drop_views(flow: Flow) -> None:
    """Let readers of a view read what it shows; a network's output is then what is shown."""
    shown: dict[str, str] = {}
    kept = []
    for op in flow.ops:
        op.inputs = [shown.get(name, name) for name in op.inputs]
        if _is_view(flow, op):
            shown[op.outputs[0]] = op.inputs[0]
        else:
            kept.append(op)
    flow.ops = kept
    flow.outputs = {shown.get(name, name) for name in flow.outputs}
    flow.index()


def _is_view(flow: Flow, op: Op) -> bool:
    if op.type == "Cast":
        return flow.types[op.inputs[0]] == flow.types.get(op.outputs[0])
    if op.type == "Transpose":  # only axes of one element move
        size = flow.sizes.get(op.node.input[0], [])
        order = attribute(op, "perm", list(reversed(range(len(size)))))
        long = [axis for axis in order if size[axis] != 1]
        return long == sorted(long)
    return op.type in VIEWS


def _drop_dead(flow: Flow) -> None:
    needed, kept = set(flow.outputs), []
    for op in reversed(flow.ops):
        if needed.intersection(op.outputs):
            kept.append(op)
            op.outputs = [name for name in op.outputs if name in needed]
            needed |= set(op.inputs)
    flow.ops = kept[::-1]
    flow.index()
