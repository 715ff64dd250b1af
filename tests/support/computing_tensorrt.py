"""The played TensorRT of `played_tensorrt`, whose engines compute: a plan holds the ONNX file.

ONNX Runtime gives the outputs. Each layer with weights takes the milliseconds that `costs` of the
scene says of its name and its number type, on the driver's clock and in a profile, which does not
show the layers in `hidden`; `refuses` says of a plan why it cannot be built.
"""

import ctypes
import json
from unittest import mock

import numpy as np
import played_tensorrt as played
from played_plan import Plan

from kdcompile.remote.agent.worker import Worker

MS = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}
FORMAT = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "Int8", "fp8": "FP8"}
REFORMAT = "Reformatting CopyNode for Input Tensor 0"


def typical(name, kind):
    """Milliseconds of a layer: int8 pays."""
    return MS[kind]


class INetworkDefinition:
    _plan = None
    num_inputs = property(lambda self: len(self._plan.ports))
    num_layers = property(lambda self: len(self._plan.layers))

    def get_input(self, index):
        name = list(self._plan.ports)[index]
        return played.make(self._trt, "ITensor", name=name, shape=self._plan.ports[name])

    def get_layer(self, index):
        return played.make(self._trt, "ILayer", name=self._plan.layers[index][0])


class OnnxParser:
    def __init__(self, network, logger):
        self._network = network

    def parse(self, model, path):
        self._scene.calls.append(("parse", model))
        if self._scene.parse_error is not None:
            return False
        self._network._plan = Plan(model, [], {})
        return True


class IBuilderConfig:
    def set_flag(self, flag):
        self._scene.calls.append(("set_flag", flag.name))
        self._flags = [*getattr(self, "_flags", ()), flag.name]

    def add_optimization_profile(self, profile):
        self._profile = profile._shapes
        return 0


class IOptimizationProfile:
    def set_shape(self, name, low, usual, high):
        self._shapes = {name: [list(low), list(usual), list(high)]}


class Builder:
    def build_serialized_network(self, network, config):
        assert config is self._config
        self._scene.calls.append(("build", {}))
        plan = network._plan
        flags, profile = getattr(config, "_flags", []), getattr(config, "_profile", {})
        why = self._scene.refuses(Plan(plan.source, flags, profile))
        if why:
            self._logger.log(played.ILogger.ERROR, why)
            return None
        return Plan(plan.source, flags, profile).blob(self._scene.version)


class Runtime:
    def deserialize_cuda_engine(self, blob):
        return played.make(self._trt, "ICudaEngine", _plan=Plan.of(blob))


class EngineInspector:
    _plan = None

    def get_engine_information(self, kind):
        assert kind.name == "JSON"
        version = self._scene.version
        return json.dumps({"Layers": [_inspected(*layer, version) for layer in self._plan.layers]})


def _inspected(name, kind, version):
    text = f"Row major linear {FORMAT[kind]} format"
    typed = {"DataType": FORMAT[kind]} if version.startswith("11") else {"Format/Datatype": text}
    found = {"Name": name, "LayerType": "CaskConvolution", "Inputs": [{"Name": "in", **typed}]}
    return found if version.startswith("8.5") else {**found, "Metadata": f"[ONNX Layer: {name}]"}


class ICudaEngine:
    _plan = None
    num_io_tensors = property(lambda self: len(self._ports()))

    def _ports(self):
        return {**self._plan.ports, **self._plan.ends}

    def get_tensor_name(self, index):
        return list(self._ports())[index]

    def get_tensor_mode(self, name):
        return getattr(self._trt.TensorIOMode, "INPUT" if name in self._plan.ports else "OUTPUT")

    def get_tensor_dtype(self, name):
        kind = "UINT8" if name in self._plan.pixels else "FLOAT"
        return getattr(self._trt.DataType, kind)

    def get_tensor_shape(self, name):
        return self._ports()[name]

    def get_tensor_profile_shape(self, name, index):
        return self._plan.profile.get(name) or [self._plan.ports[name]] * 3

    def create_engine_inspector(self):
        return played.make(self._trt, "EngineInspector", _plan=self._plan)

    def create_execution_context(self):
        return played.make(self._trt, "IExecutionContext", _engine=self)


class IExecutionContext:
    _engine = None

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low)
        fits = fits and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        (shape,) = self._shapes.values()
        return self._engine._plan.sizes(shape)[name]

    def execute_async_v3(self, stream):
        driver = self._scene.driver
        assert ("stream", stream) in driver.alive
        work = self._work(dict(self._addresses))
        if driver.capturing is not None:
            driver.capturing.append(work)
            return True
        work()
        if self.profiler is not None:
            for name, ms in self._times():
                if name not in self._scene.hidden:
                    self.profiler.report_layer_time(name, ms)
        return True

    def _times(self):
        plan, scene = self._engine._plan, self._scene
        times = [(name, scene.costs(name, kind)) for name, kind in plan.layers]
        kinds = {kind for _, kind in plan.layers}
        return times + [(REFORMAT, scene.reformat_ms)] * bool(scene.reformat_ms and "int8" in kinds)

    def _work(self, addresses):
        plan, ((name, shape),) = self._engine._plan, self._shapes.items()
        ends = [(addresses[end], self.get_tensor_shape(end)) for end in plan.ends]
        kind = ctypes.c_uint8 if name in plan.pixels else ctypes.c_float

        def work():
            self._scene.driver.clock += sum(ms for _, ms in self._times())
            for (address, size), values in zip(
                ends, plan.compute(_array(addresses[name], shape, kind)), strict=True
            ):
                _array(address, size)[...] = values

        return work


def _array(address, shape, kind=ctypes.c_float):
    values = kind * int(np.prod(shape))
    return np.frombuffer(values.from_address(address), kind).reshape(shape)


OWN = (
    INetworkDefinition, OnnxParser, IBuilderConfig, IOptimizationProfile, Builder, Runtime,
    EngineInspector, ICudaEngine, IExecutionContext,
)  # fmt: skip


def module(version, driver):
    """`played_tensorrt.module` with these classes' members in place of its own; `scene` beside."""
    trt = played.module(version, [], driver)
    trt.scene.costs, trt.scene.reformat_ms, trt.scene.hidden = typical, 0.0, ()
    trt.scene.refuses = lambda plan: None  # or why it cannot be built
    for own in OWN:
        name = own.__name__
        both = type(name, (), _body(getattr(played, name)) | _body(own))
        members = played.GENERATIONS[version]["classes"][name]
        setattr(trt, name, played._restricted(both, members, trt))
    return trt


def _body(kind):
    return {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}


class Gpu(played.Driver):
    """A driver of a named GPU."""

    def __init__(self, capability, name):
        super().__init__(capability)
        self.name = name

    def _cuDeviceGetName(self, text, size, device):  # noqa: N802
        text.value = self.name


def serve(version, capability="9.0", name=b"NVIDIA H100 80GB HBM3"):
    """A worker on the played TensorRT, and the scene that it plays in."""
    driver = Gpu(capability, name)
    trt = module(version, driver)
    return start(trt, driver), trt.scene


def start(trt, driver):
    """A worker that found this `tensorrt` and this driver, and keeps them."""
    with (
        mock.patch.dict("sys.modules", {"tensorrt": trt}),
        mock.patch.object(ctypes, "CDLL", return_value=driver),
    ):
        return Worker("tensorrt")
