"""A tiny counting network as ONNX in each precision, its kit, and a played TensorRT."""

import ctypes
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdcompile.backends import worker
from kdcompile.backends.kit import write_kit
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.data.task import find_task
from kdcompile.targets import load

WEIGHT = (np.random.default_rng(0).standard_normal((1, 3, 3, 3)) * 0.1).astype(np.float32)


def model(nodes, weights, shape, opset=17):
    """One input `image`, one output `density`, at half the resolution."""
    size = [None, None] if isinstance(shape[2], str) else [shape[2] // 2, shape[3] // 2]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, [1, 1, *size])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def convolution(image, weight, out):
    return helper.make_node(
        "Conv", [image, weight], [out], name="head", pads=[1] * 4, strides=[2, 2]
    )


def fp32(shape, weight=WEIGHT):
    nodes = [convolution("image", "w", "raw"), helper.make_node("Abs", ["raw"], ["density"])]
    return model(nodes, {"w": weight}, shape)


def fp16(shape):
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        convolution("half", "w", "raw"),
        helper.make_node("Abs", ["raw"], ["absolute"]),
        helper.make_node("Cast", ["absolute"], ["density"], to=TensorProto.FLOAT),
    ]
    return model(nodes, {"w": WEIGHT.astype(np.float16)}, shape)


def int8(shape, image_scale=4 / 127):
    scale = np.float32(np.abs(WEIGHT).max() / 127)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "si", "z"], ["qi"]),
        helper.make_node("DequantizeLinear", ["qi", "si", "z"], ["di"]),
        helper.make_node("DequantizeLinear", ["qw", "sw", "z"], ["dw"]),
        convolution("di", "dw", "raw"),
        helper.make_node("Abs", ["raw"], ["density"]),
    ]
    weights = {
        "si": np.float32(image_scale),
        "sw": scale,
        "z": np.int8(0),
        "qw": np.clip(np.round(WEIGHT / scale), -127, 127).astype(np.int8),
    }
    return model(nodes, {k: np.asarray(v) for k, v in weights.items()}, shape)


FIXED, DYNAMIC = [1, 3, 16, 24], [1, 3, "height", "width"]


@pytest.fixture
def onnx_files(tmp_path: Path):
    """`onnx_files(shape)` -> {precision: file}."""

    def write(shape=FIXED, prefix="student"):
        found = {}
        for name, build in (("fp32", fp32), ("fp16", fp16), ("int8", int8)):
            found[name] = tmp_path / f"{prefix}_{name}.onnx"
            onnx.save(build(shape), found[name])
        return found

    return write


@pytest.fixture
def make_kit(tmp_path):
    """`make_kit(files, ...)` -> the folder `kit/`, for the default Jetson."""

    def make(files, sides=((16, 24), (16, 24)), min_sqnr_db=20.0, max_mb=1.0):
        rng = np.random.default_rng(5)
        inputs = [rng.normal(size=(1, 3, *side)).astype(np.float32) for side in sides]
        outputs = {p: [open_session(path)(image) for image in inputs] for p, path in files.items()}
        for name in ("calibration", "preprocess"):
            (tmp_path / f"{name}.json").write_text("{}")
        gates = {
            "accuracy": {"required": True, "metric": "mae"},
            "parity": {"required": True, "min_sqnr_db": min_sqnr_db},
            "speedup": {"required": True, "min": 6.5},
            "size_mb": {"required": True, "max": max_mb},
        }
        write_kit(
            tmp_path,
            load("jetson"),
            files,
            tmp_path / "calibration.json",
            tmp_path / "preprocess.json",
            gates,
            (inputs, outputs),
            find_task("counting"),
            profile=([1, 3, 16, 16], [1, 3, *sides[0]], [1, 3, 32, 32]),
            predicted="int8",
        )
        return tmp_path / "kit"

    return make


# The names of 8.6 were read from tensorrt_bindings 8.6.1, those of 11 from tensorrt_rtx 1.7 (the
# same API); 10.x is 8.6 without what 10.0 removed and with what its documentation adds.
COMMON = [
    "DEBUG",
    "DIRECT_IO",
    "DISABLE_TIMING_CACHE",
    "GPU_FALLBACK",
    "REFIT",
    "SPARSE_WEIGHTS",
    "TF32",
]
OWN_TACTICS = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
TACTICS = ["CUBLAS", "CUBLAS_LT", "CUDNN", *OWN_TACTICS]
SURFACES = {
    "8.6.1": {
        "BuilderFlag": [*COMMON, "FP16", "INT8", "FP8", "STRICT_TYPES"],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        "TacticSource": TACTICS,
    },
    "10.3.0": {
        "BuilderFlag": [*COMMON, "FP16", "INT8", "FP8", "BF16", "INT4"],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "TacticSource": TACTICS,
    },
    "10.13.3": {
        "BuilderFlag": [*COMMON, "FP16", "INT8", "FP8", "BF16", "INT4"],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "TacticSource": TACTICS,
    },
    "11.4.0": {
        "BuilderFlag": [*COMMON, "ERROR_ON_TIMING_CACHE_MISS", "STRIP_PLAN"],
        "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
        "TacticSource": OWN_TACTICS,
    },
}


class Cuda:
    """The driver's calls on host memory; each launch takes 2 ms of the device's clock."""

    name, capability = "Played GPU", "8.7"

    def __init__(self):
        self.stream = ctypes.c_void_p(7)
        self.memory, self.freed = {}, []

    def call(self, function, *arguments):
        if function.startswith("cuMemcpy"):
            to, source, size, _ = (getattr(a, "value", a) for a in arguments)
            ctypes.memmove(to, source, size)
        elif function == "cuMemFree_v2":
            self.freed.append(arguments[0].value)
        elif function == "cuEventElapsedTime":
            ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_float))[0] = 2.0

    def allocate(self, size):
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return ctypes.c_uint64(ctypes.addressof(block))

    def event(self):
        return ctypes.c_void_p(1)

    def wait(self):
        pass


class Context:
    """Doubles its input; takes heights up to 64."""

    stream = 7

    def __init__(self, engine):
        self.shape, self.addresses = None, {}

    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)
        return shape[2] <= 64

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == self.stream
        size = int(np.prod(self.shape))
        kind = ctypes.c_float * size
        source = np.frombuffer(kind.from_address(self.addresses["image"]), np.float32)
        np.frombuffer(kind.from_address(self.addresses["density"]), np.float32)[:] = source * 2
        return True


def fake(version, calls):  # noqa: C901
    """A module with the attributes that this version has, and no others."""
    trt = types.SimpleNamespace(__version__=version)
    for name, members in SURFACES[version].items():
        setattr(trt, name, types.SimpleNamespace(**{m: i for i, m in enumerate(members)}))

    class ILogger:
        INTERNAL_ERROR, ERROR = 0, 1

    class Config:
        def __getattr__(self, name):  # set_flag, set_memory_pool_limit, set_tactic_sources, ...
            if name == "int8_calibrator":
                raise AttributeError(name)
            return lambda *a: calls.append((name, *a)) or 0

        def create_timing_cache(self, blob):
            return None if blob == b"damaged" else types.SimpleNamespace(blob=blob)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            return cache.blob != b"of another GPU"

        def get_timing_cache(self):
            return types.SimpleNamespace(serialize=lambda: b"timings")

    image = types.SimpleNamespace(name="image", shape=(1, 3, -1, -1))

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            calls.append(("create_network", flags))
            return types.SimpleNamespace(get_input=lambda i: image)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return types.SimpleNamespace(set_shape=lambda *a: calls.append(("set_shape", *a)))

        def build_serialized_network(self, network, config):
            if image.name == "unbuildable":
                self.logger.log(ILogger.ERROR, "no implementation for node 12")
                return None
            return b"an engine"

    error = types.SimpleNamespace(node=lambda: 3, desc=lambda: "no importer for Mystery")
    if version.startswith("1"):
        error.node_name, error.node_operator = (lambda: "strange"), (lambda: "Mystery")

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, logger):
            pass

        def parse(self, blob):
            calls.append(("parse", blob))
            return blob != b"unsupported"

        def get_error(self, index):
            return error

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, blob):
            if blob != b"an engine":
                self.logger.log(ILogger.ERROR, "magic tag does not match")
                return None
            names = ["image", "density"]
            engine = types.SimpleNamespace(num_io_tensors=2, get_tensor_name=lambda i: names[i])
            engine.get_tensor_mode = lambda n: "in" if n == "image" else "out"
            engine.get_tensor_dtype = lambda n: types.SimpleNamespace(name="FLOAT")
            engine.create_execution_context = lambda: Context(engine)
            return engine

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, OnnxParser, Runtime
    trt.IExecutionContext = Context
    trt.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    trt.image = image
    return trt


@pytest.fixture
def played_tensorrt(monkeypatch):
    """`played_tensorrt(version)` -> (the module that `import tensorrt` finds, its calls)."""

    def make(version):
        calls = []
        module = fake(version, calls)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(worker, "Cuda", Cuda)
        return module, calls

    return make
