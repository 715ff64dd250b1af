"""A plan of the played TensorRT: an ONNX file with the flags and profile of its build."""

import json
import struct

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
HEADER = 28


def layers(model, flags):
    """(name, number type) of each node with weights."""
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    has_fp8 = TensorProto.FLOAT8E4M3FN in constants.values()
    stored = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    found = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        before = made.get(node.input[0])
        kind = stored.get(constants.get(node.input[1]))
        if before is not None and before.op_type == "DequantizeLinear":
            kind = "fp8" if has_fp8 else "int8"
        flagged = next((k for k in ("bf16", "fp16") if k.upper() in flags), "fp32")
        found.append((node.name, kind or flagged))
    return found


def _runnable(model):
    """ONNX Runtime's CPU has no bfloat16: the rounded values, in float32."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return model


def _shape(port):
    sizes = port.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)


class Plan:
    """A built network: its file, the flags that it was built with, and its profile."""

    def __init__(self, source, flags, profile):
        self.source, self.flags, self.profile = source, flags, profile
        self.model = onnx.load_from_string(source)
        self.ports = {port.name: _shape(port) for port in self.model.graph.input}
        kinds = {port.name: port.type.tensor_type.elem_type for port in self.model.graph.input}
        self.pixels = {name for name, kind in kinds.items() if kind == TensorProto.UINT8}
        self.ends = {port.name: _shape(port) for port in self.model.graph.output}
        self.layers = layers(self.model, flags)
        self._session, self._sizes = None, {}

    def blob(self, version):
        """The plan as bytes, with the header that 8.6 and later give it."""
        numbers = [int(n) for n in version.split(".")]
        about = json.dumps([self.flags, self.profile]).encode()
        head = b"ftrt".ljust(24, b"\0") + bytes([*numbers[:3], 7])
        return head + struct.pack("<I", len(about)) + about + self.source

    @classmethod
    def of(cls, blob):
        """The plan in bytes of `blob`."""
        (size,) = struct.unpack("<I", blob[HEADER : HEADER + 4])
        start = HEADER + 4
        return cls(blob[start + size :], *json.loads(blob[start : start + size]))

    def compute(self, image):
        """The outputs for the one input, in order."""
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = 1
            blob = _runnable(onnx.load_from_string(self.source)).SerializeToString()
            self._session = onnxruntime.InferenceSession(blob, options)
        return self._session.run(None, {next(iter(self.ports)): image})

    def sizes(self, shape):
        """The outputs' shapes by name, for an input of this shape."""
        if shape not in self._sizes:
            kind = np.uint8 if self.pixels else np.float32
            found = self.compute(np.zeros(shape, kind))
            self._sizes[shape] = {n: a.shape for n, a in zip(self.ends, found, strict=True)}
        return self._sizes[shape]
