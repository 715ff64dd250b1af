"""A float16 network with float32 input and output, as explicit casts.

Every weight and every activation becomes float16; one Cast follows the input and one precedes the
output. ONNX Runtime's own converter raises weights below 1e-7, and keeps Resize in float32 between
two casts, which strongly typed TensorRT then obeys; this pass does neither.
"""

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.errors import KDError

FP16_MAX = 65504.0
F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
TYPED = ("to", "dtype")  # integer attributes that name a type (Cast, EyeLike, random numbers)


def to_fp16(model: ModelProto) -> ModelProto:
    """The model in float16 inside, float32 outside.

    Raises:
        KDError: `fp16-overflow`: a weight is over 65504; `fp16-unsupported`: an operator takes
            no float16.
    """
    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    del graph.value_info[:]  # types of before
    kept = _must_stay_float(half)
    for tensor in graph.initializer:
        if tensor.data_type == F32 and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor, tensor.name))
    for node in graph.node:
        _retype(node, keep=bool(set(node.output) & kept))
    inputs = {v.name for v in graph.input if v.type.tensor_type.elem_type == F32}
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == F32}
    rename = {name: f"{name}_fp16" for name in inputs | outputs}
    for node in graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, name) for name in node.output]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend(_cast(n, rename[n], F16) for n in sorted(inputs))
    graph.node.extend(body)
    graph.node.extend(_cast(rename[n], n, F32) for n in sorted(outputs))
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise KDError(
            "fp16-unsupported",
            f"the network has no float16 form: {str(error).splitlines()[0]}",
            fix='set quantize.precision = "fp32" or "int8"',
        ) from error
    return half


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=to)


def _must_stay_float(model: ModelProto) -> set[str]:
    """Constants that an operator takes as float32 only, such as the scales of Resize."""
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    constants = {t.name for t in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    kept = set()
    for node in model.graph.node:
        formal = onnx.defs.get_schema(node.op_type, version).inputs
        for place, name in enumerate(node.input):
            types = formal[min(place, len(formal) - 1)].types
            if name and "tensor(float)" in types and "tensor(float16)" not in types:
                if name not in constants:
                    raise KDError(
                        "fp16-unsupported",
                        f"{node.op_type} takes no float16",
                        where=node.name,
                        fix='set quantize.precision = "fp32" or "int8"',
                    )
                kept.add(name)
    return kept


def _retype(node: NodeProto, keep: bool) -> None:
    for attribute in node.attribute:
        if attribute.name in TYPED and attribute.i == F32:
            attribute.i = F16
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == F32 and not keep:
            attribute.t.CopyFrom(_half(attribute.t, node.name))


def _half(tensor: TensorProto, where: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if values.size and float(np.abs(values).max()) > FP16_MAX:
        raise KDError(
            "fp16-overflow",
            f"a weight of {float(np.abs(values).max()):.4g} does not fit float16",
            where=where,
            fix='set quantize.precision = "fp32" or "int8"',
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)
