"""A float16 or bfloat16 network with float32 input and output, as explicit casts.

Every weight and every activation becomes half; one Cast follows the input and one precedes the
output. ONNX Runtime's own converter raises weights below 1e-7, and keeps Resize in float32 between
two casts, which strongly typed TensorRT then obeys; this pass does neither.

ONNX gives convolutions bfloat16 only from opset 22 on, and ONNX Runtime's CPU has no kernels for
it; TensorRT's parser takes it at any opset. So a bfloat16 file is not checked for its types.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.core.errors import KDError

FP16_MAX = 65504.0
F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPED = ("to", "dtype")  # integer attributes that name a type (Cast, EyeLike, random numbers)


def to_fp16(model: ModelProto) -> ModelProto:
    """The model in float16 inside, float32 outside.

    Raises:
        KDError: `fp16-overflow`: a weight is over 65504; `fp16-unsupported`: an operator takes
            no float16.
    """
    half = _narrowed(model, F16)
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise KDError(
            "fp16-unsupported",
            f"the network has no float16 form: {str(error).splitlines()[0]}",
            fix='set quantize.precision = "fp32" or "int8"',
        ) from error
    return half


def to_bf16(model: ModelProto) -> ModelProto:
    """The model in bfloat16 inside, float32 outside; weights are rounded to nearest, ties to even.

    Raises:
        KDError: `fp16-unsupported`: an operator takes no half.
    """
    return _narrowed(model, BF16)


def _narrowed(model: ModelProto, kind: int) -> ModelProto:
    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    del graph.value_info[:]  # types of before
    kept = _must_stay_float(half)
    for tensor in graph.initializer:
        if tensor.data_type == F32 and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor, tensor.name, kind))
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


def _retype(node: NodeProto, kind: int, keep: bool) -> None:
    for attribute in node.attribute:
        if attribute.name in TYPED and attribute.i == F32:
            attribute.i = kind
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == F32 and not keep:
            attribute.t.CopyFrom(_half(attribute.t, node.name, kind))


def _half(tensor: TensorProto, where: str, kind: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if kind == BF16:
        return _bfloat16(values, tensor.name)
    if values.size and float(np.abs(values).max()) > FP16_MAX:
        raise KDError(
            "fp16-overflow",
            f"a weight of {float(np.abs(values).max()):.4g} does not fit float16",
            where=where,
            fix='set quantize.precision = "fp32" or "int8"',
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _bfloat16(values: NDArray[np.float32], name: str) -> TensorProto:
    """The upper 16 bits of float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return helper.make_tensor(name, BF16, values.shape, rounded.tobytes(), raw=True)
