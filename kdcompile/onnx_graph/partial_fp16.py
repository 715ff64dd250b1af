"""Part of a network in float16, the rest in float32, with an explicit Cast wherever they meet.

A tensor `t` keeps its name in float32 and is `t_fp16` in float16; each form is made once.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.core.errors import KDError

FP16_MAX = 65504.0
F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
AS_THEY_ARE = {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"}  # they name their types
GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


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
    result = ModelProto()
    result.CopyFrom(model)
    casting = _Casting(result)
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in result.graph.node]
    for node in nodes:
        types = _input_types(node, version, casting, keep)
        node.input[:] = [casting.take(name, to) for name, to in zip(node.input, types, strict=True)]
        casting.add(node, halved=F16 in types)
    for output in result.graph.output:
        casting.take(output.name, F32)
    casting.finish()
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise KDError(
            "fp16-unsupported",
            f"the network has no form of mixed precision: {str(error).splitlines()[0]}",
            fix='set quantize.precision = "int8" or "fp32"',
        ) from error
    return result


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
                self.graph.initializer.append(_half(self.constants[name], wanted))
            else:
                source = _named(name, F16 if to == F32 else F32)
                cast = helper.make_node("Cast", [source], [wanted], name=f"{wanted}_cast", to=to)
                self.body.append(cast)
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
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == F32}
    return floats - {t.name for t in graph.initializer} - _constant_nodes(model)


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
        raise KDError(
            "fp16-unsupported",
            f"{node.op_type} holds a graph of its own",
            where=node.name,
            fix='set quantize.precision = "int8" or "fp32"',
        )
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


def _half(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FP16_MAX:
        raise KDError(
            "fp16-overflow",
            f"a weight of {largest:.4g} does not fit float16",
            where=tensor.name,
            fix='set quantize.precision = "fp32" or "int8"',
        )
    return numpy_helper.from_array(values.astype(np.float16), name)
