"""Half-precision forms of a float32 network: all of it in float16 or bfloat16, or some nodes.

Inputs and outputs stay float32, with an explicit Cast wherever the types meet. ONNX Runtime's own
converter raises weights below 1e-7, and keeps Resize in float32 between two casts, which strongly
typed TensorRT then obeys; these passes do neither.

ONNX gives convolutions bfloat16 only from opset 22 on, and ONNX Runtime's CPU has no kernels for
it; TensorRT's parser takes it at any opset. So a bfloat16 file is not checked for its types.
"""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.graph import copied
from kdcompile.onnx_graph.norms import squares
from kdcompile.onnx_graph.shapes import element_types

FP16_MAX = 65504.0
F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPED = ("to", "dtype")  # integer attributes that name a type (Cast, EyeLike, random numbers)
AS_THEY_ARE = {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"}  # they name their types
GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
OTHER_PRECISION = 'set quantize.precision = "fp32" or "int8"'


def to_fp16(model: ModelProto) -> ModelProto:
    """The model in float16 inside, float32 outside and in the sums of squares of its norms.

    Raises:
        KDError: `fp16-overflow`: a weight is over 65504; `fp16-unsupported`: an operator takes
            no float16.
    """
    kept = squares(model)
    if kept:
        return halve_nodes(model, kept)
    return _checked(_narrowed(model, F16), "float16 form")


def to_bf16(model: ModelProto) -> ModelProto:
    """The model in bfloat16 inside, float32 outside; weights are rounded to nearest, ties to even.

    Raises:
        KDError: `fp16-unsupported`: an operator takes no half.
    """
    return _narrowed(model, BF16)


def _narrowed(model: ModelProto, kind: int) -> ModelProto:
    half = copied(model)
    graph = half.graph
    del graph.value_info[:]  # types of before
    kept = _must_stay_float(half)
    for tensor in graph.initializer:
        if tensor.data_type == F32 and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor, tensor.name, tensor.name, kind))
    for node in graph.node:
        _retype(node, kind, keep=bool(set(node.output) & kept))
    inputs = {v.name for v in graph.input if v.type.tensor_type.elem_type == F32}
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == F32}
    rename = {name: f"{name}_half" for name in inputs | outputs}
    for node in graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, name) for name in node.output]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend(_cast(n, rename[n], kind) for n in sorted(inputs))
    graph.node.extend(body)
    graph.node.extend(_cast(rename[n], n, F32) for n in sorted(outputs))
    return half


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=to)


def _must_stay_float(model: ModelProto) -> set[str]:
    """Constants that an operator takes as float32 only, such as the scales of Resize."""
    version = _opset(model)
    constants = {t.name for t in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    kept = set()
    for node in model.graph.node:
        formal = onnx.defs.get_schema(node.op_type, version).inputs
        for place, name in enumerate(node.input):
            types = formal[min(place, len(formal) - 1)].types
            if name and "tensor(float)" in types and "tensor(float16)" not in types:
                if name not in constants:
                    raise _unsupported(f"{node.op_type} takes no float16", node.name)
                kept.add(name)
    return kept


def _retype(node: NodeProto, kind: int, keep: bool) -> None:
    for attribute in node.attribute:
        if attribute.name in TYPED and attribute.i == F32:
            attribute.i = kind
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == F32 and not keep:
            attribute.t.CopyFrom(_half(attribute.t, attribute.t.name, node.name, kind))


def halve_nodes(model: ModelProto, keep: Collection[str]) -> ModelProto:
    """The network with its nodes in float16, but for the kept ones; input and output stay float32.

    A node that takes no float16, or that has no float input (a Constant), stays in float32 too.

    Args:
        model: float32.
        keep: the first output of each node that stays in float32.

    Raises:
        KDError: `fp16-overflow`: a weight is over 65504; `fp16-unsupported`: an operator that
            holds a graph of its own, or a network that has no such form.
    """
    result = copied(model)
    casting = _Casting(result)
    version = _opset(model)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in result.graph.node]
    for node in nodes:
        types = _input_types(node, version, casting, keep)
        node.input[:] = [casting.take(name, to) for name, to in zip(node.input, types, strict=True)]
        casting.add(node, halved=F16 in types)
    for output in result.graph.output:
        casting.take(output.name, F32)
    casting.finish()
    return _checked(result, "form of mixed precision")


class _Casting:
    """The nodes so far, and which form of each float tensor there is."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.data = float_tensors(model)
        self.constants = {t.name: t for t in model.graph.initializer if t.data_type == F32}
        self.floats = self.data | self.constants.keys() | _constant_nodes(model)
        self.there = {v.name for v in model.graph.input} | self.constants.keys()
        self.body: list[NodeProto] = []

    def take(self, name: str, to: int) -> str:
        """The tensor's name in the form `to`, which is made if there is none; else unchanged."""
        if name not in self.floats:
            return name
        wanted = _named(name, to)
        if wanted not in self.there:
            if name in self.constants:
                self.graph.initializer.append(_half(self.constants[name], wanted, name))
            else:
                source = _named(name, F16 if to == F32 else F32)
                self.body.append(_cast(source, wanted, to))
            self.there.add(wanted)
        return wanted

    def add(self, node: NodeProto, halved: bool) -> None:
        """The node, its float outputs in the form that it computes."""
        for place, name in enumerate(node.output):
            if name in self.data:
                node.output[place] = _named(name, F16 if halved else F32)
        self.there |= set(node.output)
        self.body.append(node)

    def finish(self) -> None:
        """Set the nodes, and drop the constants and types that nothing reads any more."""
        read = {name for node in self.body for name in node.input}
        read |= {v.name for v in self.graph.output}
        kept = [t for t in self.graph.initializer if t.name in read]
        kept = [TensorProto.FromString(t.SerializeToString()) for t in kept]
        for part in (self.graph.node, self.graph.initializer, self.graph.value_info):
            del part[:]
        self.graph.node.extend(self.body)
        self.graph.initializer.extend(kept)


def float_tensors(model: ModelProto) -> set[str]:
    """The float32 tensors that are computed or given: no initializers, no Constant nodes."""
    floats = {name for name, kind in element_types(model).items() if kind == F32}
    return floats - {t.name for t in model.graph.initializer} - _constant_nodes(model)


def _constant_nodes(model: ModelProto) -> set[str]:
    """Outputs of Constant nodes that hold a float32 tensor."""
    return {
        node.output[0]
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant"
        and (attribute.t.data_type == F32 or attribute.name in ("value_float", "value_floats"))
    }


def _named(name: str, to: int) -> str:
    return f"{name}_fp16" if to == F16 else name


def _input_types(
    node: NodeProto, version: int, casting: _Casting, keep: Collection[str]
) -> list[int]:
    """The form in which the node takes each input; one that is no float tensor has none to take."""
    if any(attribute.type in GRAPHS for attribute in node.attribute):
        raise _unsupported(f"{node.op_type} holds a graph of its own", node.name)
    formal = onnx.defs.get_schema(node.op_type, version, node.domain)
    half = [
        "tensor(float16)" in formal.inputs[min(place, len(formal.inputs) - 1)].types
        for place in range(len(node.input))
    ]
    halved = (
        any(name in casting.data for name in node.input)
        and node.output[0] not in keep
        and node.op_type not in AS_THEY_ARE
        and "tensor(float16)" in formal.outputs[0].types
    )
    return [F16 if halved and takes else F32 for takes in half]


def _opset(model: ModelProto) -> int:
    return max(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _checked(model: ModelProto, form: str) -> ModelProto:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _unsupported(f"the network has no {form}: {str(error).splitlines()[0]}") from error
    return model


def _unsupported(message: str, where: str = "") -> KDError:
    return KDError("fp16-unsupported", message, where=where, fix=OTHER_PRECISION)


def _half(tensor: TensorProto, name: str, where: str, kind: int = F16) -> TensorProto:
    """A float32 tensor in half precision under another name; `where` is for the error."""
    values = numpy_helper.to_array(tensor)
    if kind == BF16:
        return _bfloat16(values, name)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FP16_MAX:
        raise KDError(
            "fp16-overflow",
            f"a weight of {largest:.4g} does not fit float16",
            where=where,
            fix=OTHER_PRECISION,
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _bfloat16(values: NDArray[np.float32], name: str) -> TensorProto:
    """The upper 16 bits of float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return helper.make_tensor(name, BF16, values.shape, rounded.tobytes(), raw=True)
