"""An engine of TensorRT with its buffers: runs and profiles it."""

from __future__ import annotations

import ctypes
from typing import Any, Callable

import numpy as np

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.engine_record import check_inputs
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.system import MIB
from kdcompile.remote.agent.tensorrt_network import layers_of

NUMPY_NAME = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64",
              "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"}  # fmt: skip


class HostArray:
    """Pinned memory with the numpy array that lies in it."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], kind: Any) -> None:
        """Room for an array of one shape and type."""
        self.bytes = int(np.prod(shape)) * kind.itemsize
        self.pointer = cuda.pinned(self.bytes)
        raw = (ctypes.c_char * self.bytes).from_address(self.pointer.value)
        self.array = np.frombuffer(raw, kind).reshape(shape)


class BoundEngine:
    """An engine with its buffers, remade when the input shapes change."""

    def __init__(self, backend: Any, runtime: Any, engine: Any, graph: bool,
                 layers: Any, stream: Any = None) -> None:  # fmt: skip
        """Make a context; the buffers come with the first inputs. `stream` is its own, if any."""
        trt = backend.trt
        self.backend, self.cuda, self.engine = backend, backend.cuda, engine
        self.runtime = runtime  # which must outlive its engine
        self.wants_graph, self.graph = graph, None
        self.layers, self._own_stream = layers, stream
        self.beside: list[Any] = []  # more contexts, each with a stream of its own
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self.inputs = [n for n in names if is_input[n]]
        self.outputs = [n for n in names if not is_input[n]]
        kinds = {n: str(engine.get_tensor_dtype(n).name) for n in names}
        for name, kind in kinds.items():
            if kind not in NUMPY_NAME:
                raise WorkerError("engine-refused", f"{name} is {kind}, which numpy has not")
        self.types = {n: np.dtype(NUMPY_NAME[kind]) for n, kind in kinds.items()}
        self.bound: dict[str, tuple[int, ...]] = {}
        self.device: dict[str, Any] = {}
        self.host: dict[str, HostArray] = {}
        self.context = self._new_context()

    @property
    def stream(self) -> Any:
        """Where all of it runs."""
        return self._own_stream or self.cuda.stream

    def _wait(self) -> None:
        self.cuda.call("cuStreamSynchronize", self.stream)

    def _new_context(self) -> Any:
        made = self.engine.create_execution_context()
        if made is None:
            raise WorkerError("engine-refused", f"no execution context: {self.backend.why()}")
        return made

    def about(self) -> dict[str, Any]:
        """Inputs, outputs and the device memory that an inference takes."""
        engine = self.engine
        old = not hasattr(engine, "device_memory_size_v2")
        size = engine.device_memory_size if old else engine.device_memory_size_v2

        def tensors(names: list[str]) -> dict[str, Any]:
            shapes = {n: [int(side) for side in engine.get_tensor_shape(n)] for n in names}
            return {n: {"dtype": str(self.types[n]), "shape": shapes[n]} for n in names}

        return {"device_memory_mb": size / MIB, "inputs": tensors(self.inputs),
                "outputs": tensors(self.outputs)}  # fmt: skip

    def bind(self, arrays: dict[str, Any]) -> None:
        """Copy the inputs to the device, in buffers of their shapes."""
        wanted = check_inputs(arrays, self.types, self.inputs)
        if wanted != self.bound:
            self._fit(wanted)
        for name in self.inputs:
            self.host[name].array[...] = arrays[name]
        for copy in self._copies(self.inputs):
            self.cuda.call("cuMemcpyHtoDAsync_v2", *copy)
        self._wait()

    def _fit(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Make the buffers of these input shapes and point the context at them."""
        self.release()
        try:
            for name, shape in wanted.items():
                if not self.context.set_input_shape(name, shape):
                    raise WorkerError("shape-refused", self._outside(name, shape))
            for name in self.inputs + self.outputs:
                shape = tuple(int(side) for side in self.context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    raise WorkerError("engine-refused", f"the size of {name} depends on the data")
                self.host[name] = HostArray(self.cuda, shape, self.types[name])
                self.device[name] = self.cuda.allocate(self.host[name].bytes)
                self.context.set_tensor_address(name, int(self.device[name].value))
        except Exception:
            self.release()
            raise
        self.bound = wanted

    def _outside(self, name: str, shape: tuple[int, ...]) -> str:
        low, _, high = (tuple(s) for s in self.engine.get_tensor_profile_shape(name, 0))
        return f"{name} of {shape} is outside the engine's profile, {low} to {high}"

    def _copies(self, names: list[str]) -> list[tuple[Any, ...]]:
        """Arguments that copy tensors to the device, or outputs from it."""
        found = []
        for n in names:
            ends = (self.device[n], self.host[n].pointer)
            to, source = ends if n in self.inputs else ends[::-1]
            found.append((to, source, ctypes.c_size_t(self.host[n].bytes), self.stream))
        return found

    def launch(self) -> None:
        """Enqueue one inference."""
        if not self.context.execute_async_v3(self.stream.value):
            raise WorkerError("run-failed", self.backend.why())

    def _replay(self) -> Callable[[], None]:
        """One inference as a CUDA graph, captured once for the bound shapes."""
        if self.graph is None:
            self.launch()  # TensorRT may still allocate in the first one, which no graph can hold
            self._wait()
            self.graph = self.cuda.capture(self.launch, self.stream)
        cuda, play = self.cuda, self.cuda.lib.cuGraphLaunch
        graph, stream = self.graph, self.stream

        def replay() -> None:
            cuda.check("cuGraphLaunch", play(graph, stream))

        return replay

    def _usual(self) -> Callable[[], None]:
        return self._replay() if self.wants_graph else self.launch

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        self.bind(arrays)
        self._usual()()
        for copy in self._copies(self.outputs):
            self.cuda.call("cuMemcpyDtoHAsync_v2", *copy)
        self._wait()
        return {name: self.host[name].array.copy() for name in self.outputs}

    def profile(self, arrays: dict[str, Any], iterations: int) -> list[dict[str, Any]]:
        """Mean milliseconds of each layer in one inference, in the engine's order.

        The profiler stays with its context: a fresh one takes its place afterwards, as an engine
        of 8.x with free sizes has room for one context per profile.
        """
        trt = self.backend.trt
        total: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                total[layer_name] = total.get(layer_name, 0.0) + ms

        self.bind(arrays)
        self.launch()
        self._wait()
        profiler = Profiler()  # the context only points at it
        try:
            self.context.profiler = profiler
            for _ in range(iterations):
                self.launch()
                self._wait()
        finally:
            self.release()
            self.context = None
            self.context = self._new_context()
        layers = self.layers if self.layers else layers_of(trt, self.engine, set())
        known = {layer["name"]: layer for layer in layers}
        blank = {"precision": None, "onnx": None}
        return [{"name": name, "ms": ms / iterations,
                 **{key: known.get(name, blank)[key] for key in blank}}
                for name, ms in total.items()]  # fmt: skip

    def release(self) -> None:
        """Free the buffers, the graph and the other contexts; the next inputs make them anew."""
        while self.beside:
            lane = self.beside.pop()
            lane.release()
            lane.context = None  # before its stream goes
            self.cuda.free(lane.stream)
        handles = [*self.device.values(), *[host.pointer for host in self.host.values()]]
        if self.graph is not None:
            handles.append(self.graph)
        self.device, self.host, self.bound, self.graph = {}, {}, {}, None
        self.cuda.free(*handles)
