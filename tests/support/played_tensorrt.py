"""A played TensorRT on a played CUDA driver, with the names of a recorded generation and no others.

`surfaces/*.json` beside the tests of backends has the classes and members of each generation.
Touching a name that a generation lacks is an AttributeError here as it is there.
"""

import ctypes
import enum
import json
import types
from pathlib import Path

import numpy as np

SURFACES = Path(__file__).parents[1] / "backends" / "surfaces"
GENERATIONS = {
    found["version"]: found
    for found in (json.loads(path.read_text()) for path in sorted(SURFACES.glob("*.json")))
}
LAUNCH_MS, REPLAY_MS = 2.0, 1.0  # of the device's clock


class Driver:
    """libcuda's functions on host memory.

    `alive` has what was handed out and not given back, `log` the functions called, `broken` those
    that fail with status 2 (or the countdown of calls until they do).
    """

    def __init__(self, capability="8.7"):
        self.capability = [int(n) for n in capability.split(".")]
        self.alive, self.log, self.broken, self.memory = [], [], {}, {}
        self.clock, self.recorded, self.capturing, self.graphs = 0.0, {}, None, {}

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        play = getattr(type(self), f"_{name}", None)

        def called(*arguments):
            self.log.append(name)
            if name in self.broken:
                self.broken[name] -= 1
                if self.broken[name] < 0:
                    return 2
            return (play(self, *arguments) if play else 0) or 0

        return called

    def _make(self, kind, pointer):
        pointer._obj.value = value = 1000 + len(self.log)
        self.alive.append((kind, value))

    def _drop(self, kind, handle):
        self.alive.remove((kind, handle.value))

    def _cuDeviceGetName(self, text, size, device):  # noqa: N802
        text.value = b"Played GPU"

    def _cuDeviceTotalMem_v2(self, total, device):  # noqa: N802
        total._obj.value = 8 << 30

    def _cuMemGetInfo_v2(self, free, total):  # noqa: N802
        free._obj.value, total._obj.value = 3 << 30, 8 << 30

    def _cuDeviceGetAttribute(self, value, number, device):  # noqa: N802
        value._obj.value = self.capability[number - 75] if number >= 75 else 0

    def _cuGetErrorName(self, status, text):  # noqa: N802
        text._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"

    def _cuStreamCreate(self, stream, flags):  # noqa: N802
        self._make("stream", stream)

    def _cuStreamDestroy_v2(self, stream):  # noqa: N802
        self._drop("stream", stream)

    def _memory(self, kind, pointer, size):
        block = ctypes.create_string_buffer(size.value)
        pointer._obj.value = value = ctypes.addressof(block)
        self.memory[value] = block
        self.alive.append((kind, value))

    def _cuMemAlloc_v2(self, pointer, size):  # noqa: N802
        self._memory("device", pointer, size)

    def _cuMemAllocHost_v2(self, pointer, size):  # noqa: N802
        self._memory("host", pointer, size)

    def _cuMemFree_v2(self, pointer):  # noqa: N802
        self._drop("device", pointer)

    def _cuMemFreeHost(self, pointer):  # noqa: N802
        self._drop("host", pointer)

    def _cuMemcpyHtoDAsync_v2(self, to, source, size, stream):  # noqa: N802
        assert ("device", to.value) in self.alive
        assert ("host", source.value) in self.alive
        ctypes.memmove(to.value, source.value, size.value)

    def _cuMemcpyDtoHAsync_v2(self, to, source, size, stream):  # noqa: N802
        assert ("host", to.value) in self.alive
        ctypes.memmove(to.value, source.value, size.value)

    def _cuEventCreate(self, event, flags):  # noqa: N802
        self._make("event", event)

    def _cuEventDestroy_v2(self, event):  # noqa: N802
        self._drop("event", event)

    def _cuEventRecord(self, event, stream):  # noqa: N802
        self.recorded[event.value] = self.clock

    def _cuEventElapsedTime(self, ms, begin, end):  # noqa: N802
        ms._obj.value = self.recorded[end.value] - self.recorded[begin.value]

    def _cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        self.capturing = []

    def _cuStreamEndCapture(self, stream, graph):  # noqa: N802
        work, self.capturing = self.capturing, None
        if not work:
            return 901
        self._make("graph", graph)
        self.graphs[graph._obj.value] = work

    def _cuGraphInstantiateWithFlags(self, made, graph, flags):  # noqa: N802
        self._make("graph exec", made)
        self.graphs[made._obj.value] = self.graphs[graph.value]

    def _cuGraphDestroy(self, graph):  # noqa: N802
        self._drop("graph", graph)

    def _cuGraphExecDestroy(self, graph):  # noqa: N802
        self._drop("graph exec", graph)

    def _cuGraphLaunch(self, graph, stream):  # noqa: N802
        for work in self.graphs[graph.value]:
            work()
        self.clock += REPLAY_MS


class Scene:
    """What the played TensorRT meets, and `calls` that it saw."""

    def __init__(self, version, calls, driver):
        self.version, self.calls, self.driver = version, calls, driver
        self.inputs = {"image": (1, 3, -1, -1)}
        self.outputs = {"density": (1, 3, -1, -1)}
        self.types = {}
        self.limits = {"image": [(1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 64, 64)]}
        self.layers = ["head", "density"]
        self.on_gpu = {"density"}  # what a DLA cannot run
        self.parse_error = None  # (number, text, name, operator)
        self.build_error = None
        self.takes_capture = True
        self.messages = []
        self.information = information(version)

    def blob(self):
        """A plan, with the header that 8.6 and later give it."""
        numbers = [int(n) for n in self.version.split(".")]
        return b"ftrt".ljust(24, b"\0") + bytes([*numbers, 7]) + b"an engine"


def information(version):
    """The inspector's JSON of two layers, in the form of this generation."""
    new = version.startswith("11")

    def tensor(name, kind, layout):
        split = {"Format": layout, "Datatype": kind}
        return {"Name": name, **(split if new else {"Format/Datatype": f"{layout} {kind} format"})}

    conv = {
        "Name": "head", "LayerType": "CaskConvolution",
        "Inputs": [tensor("image", "Int8", "Thirty-two wide channel vectorized row major")],
        "Outputs": [tensor("raw", "FP16", "Row major linear")],
        "Weights": {"Type": "Int8", "Count": 81},
    }  # fmt: skip
    fused = {"Name": "PWN(first + density)", "LayerType": "PointWiseV2",
             "Inputs": [tensor("raw", "FP16", "Row major linear")], "Outputs": []}  # fmt: skip
    if not version.startswith("8.5"):
        conv["Metadata"] = "[ONNX Layer: head]"
        fused["Metadata"] = "[ONNX Layer: first]\x1f[ONNX Layer: density]"
    tensors = ["image", "density"]
    return json.dumps({"Layers": [conv, fused], "I/O Tensors" if new else "Bindings": tensors})


def make(trt, kind, **values):
    """An object of a played class, with its attributes."""
    made = getattr(trt, kind)()
    for name, value in values.items():
        setattr(made, name, value)
    return made


# Each class has every member that some generation has and the worker may use; `module` gives it
# `_trt`, the module, and `_scene`.


class ILogger:
    INTERNAL_ERROR, ERROR = 0, 1


class IProfiler:
    pass


class ITensor:
    name, shape = None, None


class ILayer:
    name = None


class INetworkDefinition:
    num_inputs = property(lambda self: len(self._scene.inputs))
    num_layers = property(lambda self: len(self._scene.layers))

    def get_input(self, index):
        name = list(self._scene.inputs)[index]
        return make(self._trt, "ITensor", name=name, shape=self._scene.inputs[name])

    def get_layer(self, index):
        return make(self._trt, "ILayer", name=self._scene.layers[index])


class ITimingCache:
    _blob = b""

    def serialize(self):
        return b"timings"


class IBuilderConfig:
    profiling_verbosity = builder_optimization_level = default_device_type = DLA_core = None

    def set_flag(self, flag):
        self._scene.calls.append(("set_flag", flag.name))

    def clear_flag(self, flag):
        self._scene.calls.append(("clear_flag", flag.name))

    def set_memory_pool_limit(self, pool, size):
        self._scene.calls.append(("set_memory_pool_limit", pool.name, size))

    def set_tactic_sources(self, sources):
        self._scene.calls.append(("set_tactic_sources", sources))

    def can_run_on_DLA(self, layer):  # noqa: N802
        return layer.name not in self._scene.on_gpu

    def add_optimization_profile(self, profile):
        self._scene.calls.append(("add_optimization_profile",))
        return 0

    def create_timing_cache(self, blob):
        if blob == b"torn":
            raise RuntimeError("cannot read the header")
        if blob == b"damaged":
            return None
        return make(self._trt, "ITimingCache", _blob=blob)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self._cache = cache
        return cache._blob != b"of another GPU"

    def get_timing_cache(self):
        return self._cache


class IOptimizationProfile:
    def set_shape(self, name, low, usual, high):
        self._scene.calls.append(("set_shape", name, low, usual, high))


class Builder:
    num_DLA_cores = 2  # noqa: N815

    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags=0):
        self._scene.calls.append(("create_network", flags))
        return self._trt.INetworkDefinition()

    def create_builder_config(self):
        self._config = self._trt.IBuilderConfig()
        return self._config

    def create_optimization_profile(self):
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        assert config is self._config
        config_values = {
            name: value for name, value in vars(config).items() if not name.startswith("_")
        }
        self._scene.calls.append(("build", config_values))
        if self._scene.build_error:
            self._logger.log(ILogger.ERROR, self._scene.build_error)
            return None
        return self._scene.blob()


class ParserError:
    _of = (0, "", "", "")

    def node(self):
        return self._of[0]

    def desc(self):
        return self._of[1]

    def node_name(self):
        return self._of[2]

    def node_operator(self):
        return self._of[3]


class OnnxParser:
    num_errors = 1

    def __init__(self, network, logger):
        pass

    def parse(self, model, path):
        self._scene.calls.append(("parse", model))
        return self._scene.parse_error is None

    def get_error(self, index):
        return make(self._trt, "ParserError", _of=self._scene.parse_error)


class Runtime:
    DLA_core = 0

    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, blob):
        if blob != self._scene.blob():
            self._logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        self._scene.calls.append(("deserialize", self.DLA_core))
        return self._trt.ICudaEngine()


class EngineInspector:
    def get_engine_information(self, kind):
        assert kind.name == "JSON"
        return self._scene.information


class ICudaEngine:
    num_io_tensors = property(lambda self: len({**self._scene.inputs, **self._scene.outputs}))
    device_memory_size = device_memory_size_v2 = 5 << 20

    def get_tensor_name(self, index):
        return list({**self._scene.inputs, **self._scene.outputs})[index]

    def get_tensor_mode(self, name):
        return getattr(self._trt.TensorIOMode, "INPUT" if name in self._scene.inputs else "OUTPUT")

    def get_tensor_dtype(self, name):
        return getattr(self._trt.DataType, self._scene.types.get(name, "FLOAT"))

    def get_tensor_shape(self, name):
        return {**self._scene.inputs, **self._scene.outputs}[name]

    def get_tensor_profile_shape(self, name, index):
        assert index == 0
        return self._scene.limits[name]

    def create_engine_inspector(self):
        return self._trt.EngineInspector()

    def create_execution_context(self):
        self._scene.calls.append(("create_execution_context",))
        return self._trt.IExecutionContext()


class IExecutionContext:
    """Doubles its first input."""

    profiler = None

    def __init__(self):
        self._shapes, self._addresses = {}, {}

    def set_input_shape(self, name, shape):
        low, _, high = self._scene.limits[name]
        ends = zip(low, shape, high, strict=True)
        if len(shape) != len(low) or any(not a <= b <= c for a, b, c in ends):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        usual = self._shapes[next(iter(self._scene.inputs))]
        if name in self._scene.inputs:
            return self._shapes[name]
        return tuple(b if a == -1 else a for a, b in zip(self._scene.outputs[name], usual))  # noqa: B905

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        self._addresses[name] = address

    def execute_async_v3(self, stream):
        assert ("stream", stream) in self._scene.driver.alive
        if self._scene.driver.capturing is not None:
            if not self._scene.takes_capture:
                self._scene.messages.append("not capturable")
                return False
            self._scene.driver.capturing.append(self._work(dict(self._addresses)))
            return True
        self._work(dict(self._addresses))()
        self._scene.driver.clock += LAUNCH_MS
        if self.profiler is not None:
            for name, ms in (("head", 1.5), ("PWN(first + density)", 0.5)):
                self.profiler.report_layer_time(name, ms)
        return True

    def _work(self, addresses):
        name, size = next(iter(self._scene.inputs)), int(np.prod(next(iter(self._shapes.values()))))
        kind = ctypes.c_float * size

        def work():
            source = np.frombuffer(kind.from_address(addresses[name]), np.float32)
            for output in self._scene.outputs:
                to = np.frombuffer(kind.from_address(addresses[output]), np.float32)
                to[:] = source * 2

        return work


CLASSES = (
    ILogger, IProfiler, ITensor, ILayer, INetworkDefinition, ITimingCache, IBuilderConfig,
    IOptimizationProfile, Builder, ParserError, OnnxParser, Runtime, EngineInspector, ICudaEngine,
    IExecutionContext,
)  # fmt: skip


def _restricted(full, members, trt):
    """A class without the members that a generation lacks; none can be set on an object either."""
    body = {
        name: value for name, value in vars(full).items() if name.startswith("_") or name in members
    }
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)

    def __setattr__(self, name, value):  # noqa: N807
        if not name.startswith("_") and name not in members:
            raise AttributeError(f"{full.__name__} has no {name}")
        object.__setattr__(self, name, value)

    if full.__name__ not in ("ILogger", "IProfiler"):  # which Python classes derive from
        body["__setattr__"] = __setattr__
    return type(full.__name__, (), {**body, "_trt": trt, "_scene": trt.scene})


def module(version, calls, driver):
    """A module with the attributes that this version has, and no others."""
    surface = GENERATIONS[version]
    trt = types.SimpleNamespace(__version__=version)
    for name, members in surface["enums"].items():
        setattr(trt, name, enum.IntEnum(name, members))
    trt.scene = Scene(version, calls, driver)
    for full in CLASSES:
        found = _restricted(full, surface["classes"][full.__name__], trt)
        setattr(trt, full.__name__, found)
    return trt
