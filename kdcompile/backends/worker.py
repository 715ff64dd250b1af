"""Builds, runs and times networks on the machine that it runs on: a board, or this one.

One file of Python 3.8 syntax with numpy and nothing else of Python's: CUDA is reached through the
driver's own library. Requests are JSON lines on standard input, answers on standard output:

    {"id": 1, "op": "hello"}                   {"id": 1, "ok": {...}}
    {"id": 2, "op": "load", "path": "no"}      {"id": 2, "error": {"code", "message", "fix"}}

Operations: hello, build, load, run, time, quit. `python3 worker.py [tensorrt|onnxruntime]`.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict

try:
    import numpy as np
except ImportError:  # answered as `numpy-missing`
    np = None  # type: ignore[assignment]

PROTOCOL = 1
MIB = 1 << 20
CAST_ONNX_SINCE = (10, 12)  # weak typing, and with it the FP16 and INT8 flags, is deprecated here
NUMPY_NAME = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64",
              "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"}  # fmt: skip


FIXES = {
    "backend-unknown": "use tensorrt or onnxruntime",
    "build-failed": "raise the workspace, or free memory on the board",
    "cuda-error": "free memory, or lower the workspace; see dmesg",
    "cuda-missing": "run on the board, with its own NVIDIA driver",
    "engine-mismatch": "rebuild it here with build_engine.py",
    "engine-refused": "rebuild it here with build_engine.py",
    "file": "check the path and the free disk",
    "input-missing": "name the arrays of the npz after the network's inputs",
    "internal": "report it, with the request",
    "not-loaded": "send load first",
    "numpy-missing": "sudo apt install python3-numpy",
    "onnx-refused": "export again, with operators that this backend has",
    "onnxruntime-missing": "pip install onnxruntime",
    "profile-missing": "give min, opt and max shapes",
    "profile-refused": "min <= opt <= max, with the ONNX's own fixed sizes",
    "request-invalid": "send {id, op, ...} with op one of hello, build, load, run, time, quit",
    "run-failed": "rebuild it here with build_engine.py",
    "shape-refused": "give a shape between the profile's min and max",
    "tensorrt-missing": "sudo apt install python3-libnvinfer (a part of JetPack)",
    "tensorrt-too-old": "flash JetPack 5.1 or later",
}


class WorkerError(Exception):
    """A failure, sent back as JSON with the remedy that its code has in `FIXES`."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the code, one of `FIXES`, and what went wrong."""
        super().__init__(message)
        self.code, self.message = code, message

    def to_json(self) -> dict[str, str]:
        """The error as the protocol carries it."""
        return {"code": self.code, "message": self.message, "fix": FIXES[self.code]}


class Cuda:
    """The few calls of the CUDA driver API that running and timing an engine takes."""

    def __init__(self) -> None:
        """Open the first GPU in its primary context, with a stream."""
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise WorkerError("cuda-missing", f"no CUDA driver: {error}") from error
        self.call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        # the primary context is the one that TensorRT's runtime API uses
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream, name = stream, ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode(errors="replace")
        self.capability = ".".join(str(self._attribute(n, device)) for n in (75, 76))

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def call(self, function: str, *arguments: Any) -> None:
        """Call a driver function; a status other than 0 is a `cuda-error`."""
        status = getattr(self.lib, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(status, ctypes.byref(text))
            name = (text.value or b"unknown").decode()
            raise WorkerError("cuda-error", f"{function} failed: {name} ({status})")

    def allocate(self, size: int) -> ctypes.c_uint64:
        """Device memory of `size` bytes."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer

    def event(self) -> ctypes.c_void_p:
        """A timing event."""
        made = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(made), 0)
        return made

    def wait(self) -> None:
        """Wait for the stream."""
        self.call("cuStreamSynchronize", self.stream)


def version_of(module: Any) -> tuple[int, int]:
    """Major and minor version of a module."""
    major, minor = str(module.__version__).split(".")[:2]
    return int(major), int(minor)


def typing_plan(trt: Any, precision: str) -> dict[str, Any]:
    """How this TensorRT is told a precision: by flags where it has them, else by the ONNX.

    Returns:
        `onnx`: the precision of the ONNX file to parse; `flags`: builder flags, by name;
        `network`: network creation flags, by name.
    """
    kinds, builder = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    weak = hasattr(builder, "FP16") and version_of(trt) < CAST_ONNX_SINCE
    network = [name for name in ("EXPLICIT_BATCH",) if hasattr(kinds, name)]
    if not weak:
        network += [name for name in ("STRONGLY_TYPED",) if hasattr(kinds, name)]
        return {"onnx": precision, "flags": [], "network": network}
    flags = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision]
    return {"onnx": "int8" if precision == "int8" else "fp32", "flags": flags, "network": network}


class TensorRT:
    """TensorRT 8.5 to 11, by what the installed module has."""

    def __init__(self) -> None:
        """Import the module and open the GPU."""
        try:
            import tensorrt as trt
        except (ImportError, OSError) as error:
            raise WorkerError("tensorrt-missing", f"import tensorrt: {error}") from error
        if not hasattr(trt.IExecutionContext, "execute_async_v3"):
            raise WorkerError("tensorrt-too-old", f"TensorRT {trt.__version__} is older than 8.5")
        self.trt: Any = trt
        self.version = str(trt.__version__)
        self.messages: list[str] = []
        self.cuda = Cuda()
        self.logger = self._make_logger()

    def _make_logger(self) -> Any:
        trt, messages = self.trt, self.messages

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    messages.append(message)

        return Log()

    def about(self) -> dict[str, Any]:
        """The GPU, and which ONNX each precision is built from."""
        plans = {p: typing_plan(self.trt, p) for p in ("fp32", "fp16", "int8")}
        gpu = {"name": self.cuda.name, "compute_capability": self.cuda.capability}
        return {"gpu": gpu, "precisions": plans}

    def build(self, onnx: str, engine: str, precision: str, profile: Any = None,
              workspace_mb: int = 1024, timing_cache: str = "") -> dict[str, Any]:  # fmt: skip
        """Compile an ONNX file; `profile` is the min, opt and max input shape."""
        trt, plan, start = self.trt, typing_plan(self.trt, precision), time.perf_counter()
        del self.messages[:]
        builder = trt.Builder(self.logger)
        bits = [1 << int(getattr(trt.NetworkDefinitionCreationFlag, n)) for n in plan["network"]]
        network, config = builder.create_network(sum(bits)), builder.create_builder_config()
        parser = trt.OnnxParser(network, self.logger)
        with open(onnx, "rb") as stream:
            if not parser.parse(stream.read()):
                raise WorkerError("onnx-refused", "; ".join(_parse_errors(parser)))
        for name in plan["flags"]:
            config.set_flag(getattr(trt.BuilderFlag, name))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb * MIB)
        if version_of(trt) < (10, 0):  # the others call cuBLAS and cuDNN, which 10 no longer needs
            names = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
            found = [1 << int(getattr(trt.TacticSource, n)) for n in names]
            config.set_tactic_sources(sum(found))
        self._add_profile(builder, network, config, profile)
        cache, cache_state = self._open_cache(config, timing_cache)
        made = builder.build_serialized_network(network, config)
        if made is None:
            raise WorkerError("build-failed", "; ".join(self.messages[-3:]) or "no reason given")
        if cache is not None:
            _write(timing_cache, bytes(config.get_timing_cache().serialize()))
        blob = bytes(made)
        about = {"tensorrt": self.version, "compute_capability": self.cuda.capability,
                 "platform": _platform(), "precision": precision, "flags": plan["flags"],
                 "sha256": hashlib.sha256(blob).hexdigest()}  # fmt: skip
        _write(engine, blob)
        _write(engine + ".json", json.dumps(about, sort_keys=True).encode())
        seconds = time.perf_counter() - start
        return dict(about, bytes=len(blob), seconds=seconds, timing_cache=cache_state)

    def _add_profile(self, builder: Any, network: Any, config: Any, shapes: Any) -> None:
        image = network.get_input(0)
        if -1 not in tuple(image.shape):
            return
        if not shapes:
            raise WorkerError("profile-missing", f"input {image.name} is dynamic")
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *[tuple(shape) for shape in shapes])
        if config.add_optimization_profile(profile) < 0:
            raise WorkerError("profile-refused", f"shapes {shapes} do not fit {image.shape}")

    def _open_cache(self, config: Any, path: str) -> tuple[Any, str]:
        """Give the builder the timings of an earlier build, where they are of this TensorRT.

        The caller holds the cache object while it builds: the configuration only points at it.
        """
        if not path:
            return None, "none"
        old = b""
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                old = stream.read()
        cache = config.create_timing_cache(old)
        if old and cache is not None and config.set_timing_cache(cache, False):
            return cache, "reused"
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
        return cache, "replaced" if old else "new"

    def load(self, path: str) -> TensorRTSession:
        """An engine that this TensorRT built on this kind of GPU."""
        with open(path, "rb") as stream:
            blob = stream.read()
        if os.path.isfile(path + ".json"):
            self._preflight(path, blob)
        del self.messages[:]
        runtime = self.trt.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise WorkerError("engine-refused", "; ".join(self.messages[-2:]) or "not an engine")
        return TensorRTSession(self.trt, self.cuda, runtime, engine)

    def _preflight(self, path: str, blob: bytes) -> None:
        with open(path + ".json", "rb") as stream:
            built = json.loads(stream.read().decode())
        here = {"tensorrt": self.version, "compute_capability": self.cuda.capability,
                "platform": _platform(), "sha256": hashlib.sha256(blob).hexdigest()}  # fmt: skip
        differing = [k for k in here if built.get(k) != here[k]]
        wrong = [f"{k}: built {built.get(k)}, here {here[k]}" for k in differing]
        if wrong:
            raise WorkerError("engine-mismatch", "; ".join(wrong))


class TensorRTSession:
    """An engine with its buffers on the device, remade when the input shapes change."""

    def __init__(self, trt: Any, cuda: Cuda, runtime: Any, engine: Any) -> None:
        """Make a context; the buffers come with the first inputs."""
        self.cuda, self.engine = cuda, engine
        self.runtime = runtime  # which must outlive its engine
        self.context = engine.create_execution_context()
        if self.context is None:
            raise WorkerError("engine-refused", "no execution context")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self.inputs = [n for n in names if is_input[n]]
        self.outputs = [n for n in names if not is_input[n]]
        self.types = {n: np.dtype(NUMPY_NAME[engine.get_tensor_dtype(n).name]) for n in names}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.buffers: dict[str, ctypes.c_uint64] = {}

    def bind(self, arrays: dict[str, Any]) -> None:
        """Copy the inputs to the device and point the context at its buffers."""
        for name in self.inputs:
            if name not in arrays:
                raise WorkerError("input-missing", f"no array for input {name}")
            if not self.context.set_input_shape(name, arrays[name].shape):
                raise WorkerError("shape-refused", f"{name} does not take {arrays[name].shape}")
        shapes = {n: tuple(self.context.get_tensor_shape(n)) for n in self.inputs + self.outputs}
        if shapes != self.shapes:
            self.release()
            for name, shape in shapes.items():
                size = int(np.prod(shape)) * self.types[name].itemsize
                self.buffers[name] = self.cuda.allocate(size)
                self.context.set_tensor_address(name, self.buffers[name].value)
            self.shapes = shapes
        for name in self.inputs:
            array = np.ascontiguousarray(arrays[name], self.types[name])
            host = ctypes.c_void_p(array.ctypes.data)
            self._copy("cuMemcpyHtoDAsync_v2", self.buffers[name], host, array.nbytes)
            self.cuda.wait()  # the array must outlive the copy

    def _copy(self, function: str, to: Any, source: Any, size: int) -> None:
        self.cuda.call(function, to, source, ctypes.c_size_t(size), self.cuda.stream)

    def launch(self) -> None:
        """Enqueue one inference."""
        if not self.context.execute_async_v3(self.cuda.stream.value):
            raise WorkerError("run-failed", "TensorRT did not enqueue the engine")

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        self.bind(arrays)
        self.launch()
        found = {}
        for name in self.outputs:
            found[name] = np.empty(self.shapes[name], self.types[name])
            host = ctypes.c_void_p(found[name].ctypes.data)
            self._copy("cuMemcpyDtoHAsync_v2", host, self.buffers[name], found[name].nbytes)
        self.cuda.wait()
        return found

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int) -> dict[str, list[float]]:
        """Milliseconds of each inference: by CUDA events, and by the clock with its wait."""
        self.bind(arrays)
        begin, end, elapsed = self.cuda.event(), self.cuda.event(), ctypes.c_float()
        device, wall = [], []
        for _ in range(warmup + iterations):
            start = time.perf_counter()
            self.cuda.call("cuEventRecord", begin, self.cuda.stream)
            self.launch()
            self.cuda.call("cuEventRecord", end, self.cuda.stream)
            self.cuda.wait()
            wall.append(1000 * (time.perf_counter() - start))
            self.cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
            device.append(float(elapsed.value))
        for event in (begin, end):
            self.cuda.call("cuEventDestroy_v2", event)
        return {"device": device[warmup:], "wall": wall[warmup:]}

    def release(self) -> None:
        """Free the buffers."""
        for pointer in self.buffers.values():
            self.cuda.call("cuMemFree_v2", pointer)
        self.buffers, self.shapes = {}, {}


class OnnxRuntime:
    """ONNX Runtime on the CPU: plays a board where there is none, and proves nothing of one."""

    def __init__(self) -> None:
        """Import the module."""
        try:
            import onnxruntime
        except ImportError as error:
            raise WorkerError("onnxruntime-missing", str(error)) from error
        self.ort: Any = onnxruntime
        self.version = str(onnxruntime.__version__)

    def about(self) -> dict[str, Any]:
        """No GPU; every precision is its own ONNX."""
        return {"gpu": None, "precisions": {p: {"onnx": p} for p in ("fp32", "fp16", "int8")}}

    def build(self, onnx: str, engine: str, precision: str, **unused: Any) -> dict[str, Any]:
        """Nothing to compile: the model is checked and copied."""
        start = time.perf_counter()
        self.load(onnx)
        shutil.copyfile(onnx, engine)
        about = {"onnxruntime": self.version, "precision": precision}
        seconds = time.perf_counter() - start
        return dict(about, bytes=os.path.getsize(engine), seconds=seconds)

    def load(self, path: str) -> OnnxRuntimeSession:
        """A session of an ONNX file."""
        options = self.ort.SessionOptions()
        options.log_severity_level = 3
        with open(path, "rb") as stream:
            blob = stream.read()
        try:
            made = self.ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no other base
            raise WorkerError("onnx-refused", str(error)) from error
        return OnnxRuntimeSession(made)


class OnnxRuntimeSession:
    """A session with the same calls as an engine."""

    def __init__(self, session: Any) -> None:
        """Hold a loaded session."""
        self.session = session

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        wanted = [i.name for i in self.session.get_inputs()]
        missing = [n for n in wanted if n not in arrays]
        if missing:
            raise WorkerError("input-missing", f"no array for input {missing[0]}")
        found = self.session.run(None, {n: arrays[n] for n in wanted})
        names = [o.name for o in self.session.get_outputs()]
        return {name: found[i] for i, name in enumerate(names)}

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int) -> dict[str, list[float]]:
        """Milliseconds of each inference by the clock; there is no device to ask."""
        wall = []
        for _ in range(warmup + iterations):
            start = time.perf_counter()
            self.run(arrays)
            wall.append(1000 * (time.perf_counter() - start))
        return {"device": [], "wall": wall[warmup:]}

    def release(self) -> None:
        """Nothing is held beside the session."""


BACKENDS: Dict[str, Callable[[], Any]] = {"tensorrt": TensorRT, "onnxruntime": OnnxRuntime}


def _parse_errors(parser: Any) -> list[str]:
    """Each parser error with the node that it names; 8.x has a number where 10 has a name."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        fields = [f for f in ("node_operator", "node_name") if hasattr(error, f)]
        named = [f"node {error.node()}"] + [str(getattr(error, f)()) for f in fields]
        found.append(f"{' '.join(named)}: {error.desc()}")
    return found or ["the parser gave no reason"]


def _write(path: str, blob: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    with open(path + ".tmp", "wb") as stream:
        stream.write(blob)
    os.replace(path + ".tmp", path)


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}".lower()


def _first_line(path: str) -> str | None:
    if not os.path.isfile(path):
        return None
    with open(path, errors="replace") as stream:
        return stream.readline().strip("\0\n ") or None


def _power_mode() -> str | None:
    """The Jetson's power mode, as nvpmodel words it; None where there is no nvpmodel."""
    if shutil.which("nvpmodel") is None:
        return None
    asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, check=False, timeout=20)
    return " ".join((asked.stdout + asked.stderr).decode(errors="replace").split())


class Worker:
    """One backend and its loaded networks; each operation answers with plain JSON values."""

    def __init__(self, backend: str) -> None:
        """Open a backend by name."""
        if np is None:
            raise WorkerError("numpy-missing", "numpy does not import")
        if backend not in BACKENDS:
            raise WorkerError("backend-unknown", f"no backend {backend!r}")
        self.name, self.backend = backend, BACKENDS[backend]()
        self.loaded: dict[str, Any] = {}
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "hello": self.hello, "build": self.backend.build, "load": self.load, "run": self.run,
            "time": self.time, "quit": self.quit,
        }  # fmt: skip

    def hello(self) -> dict[str, Any]:
        """Versions, machine and GPU: what a measurement here depends on."""
        return {
            "protocol": PROTOCOL, "backend": self.name, "backend_version": self.backend.version,
            "python": platform.python_version(), "numpy": np.__version__, "platform": _platform(),
            "module": _first_line("/proc/device-tree/model"), "power_mode": _power_mode(),
            "l4t": _first_line("/etc/nv_tegra_release"), **self.backend.about(),
        }  # fmt: skip

    def quit(self) -> dict[str, Any]:
        """Free everything that is loaded."""
        while self.loaded:
            self.loaded.popitem()[1].release()
        return {}

    def load(self, path: str, name: str = "main") -> dict[str, Any]:
        """Load a built network under a name, in place of one that had it."""
        fresh = self.backend.load(path)
        if name in self.loaded:
            self.loaded.pop(name).release()
        self.loaded[name] = fresh
        return {"name": name}

    def _ready(self, name: str, path: str) -> tuple[Any, dict[str, Any]]:
        if name not in self.loaded:
            raise WorkerError("not-loaded", f"no network is loaded as {name!r}")
        with np.load(path) as arrays:
            return self.loaded[name], {key: arrays[key] for key in arrays.files}

    def run(self, inputs: str, outputs: str, name: str = "main") -> dict[str, Any]:
        """Arrays from one npz file, by input name, to another, by output name."""
        network, arrays = self._ready(name, inputs)
        found = network.run(arrays)
        np.savez(outputs, **found)
        return {"outputs": {key: list(value.shape) for key, value in found.items()}}

    def time(
        self, inputs: str, iterations: int = 50, warmup: int = 10, name: str = "main"
    ) -> dict[str, Any]:
        """Latency in milliseconds of single inferences, inputs already where they are read."""
        if iterations < 1 or warmup < 0:
            raise WorkerError("request-invalid", "needs iterations >= 1 and warmup >= 0")
        network, arrays = self._ready(name, inputs)
        times = network.time(arrays, warmup, iterations)
        return {key: _summary(value) for key, value in times.items()}

    def answer(self, request: Any) -> dict[str, Any]:
        """One request to its answer; no failure of an operation leaves as an exception."""
        known = request.get("id") if isinstance(request, dict) else None
        try:
            return {"id": known, "ok": self._dispatch(request)}
        except WorkerError as error:
            return {"id": known, "error": error.to_json()}
        except OSError as error:
            failure = WorkerError("file", f"{error.strerror}: {error.filename}")
        except Exception as error:  # a library's own failure must not end the conversation
            failure = WorkerError("internal", f"{type(error).__name__}: {error}")
        return {"id": known, "error": failure.to_json()}

    def _dispatch(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict) or request.get("op") not in self.operations:
            raise WorkerError("request-invalid", f"no such operation in {request!r:.200}")
        operation = self.operations[request["op"]]
        values = {k: v for k, v in request.items() if k not in ("id", "op")}
        try:
            inspect.signature(operation).bind(**values)
        except TypeError as error:
            raise WorkerError("request-invalid", f"{request['op']}: {error}") from error
        return operation(**values)


def _summary(times: list[float]) -> dict[str, Any] | None:
    if not times:
        return None
    p50, p90, p99 = (float(x) for x in np.percentile(times, [50, 90, 99]))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "mean_ms": float(np.mean(times)),
            "min_ms": min(times), "n": len(times)}  # fmt: skip


def main() -> int:
    """Answer requests until `quit` or the end of the input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not land among the answers

    def send(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        worker = Worker(sys.argv[1] if len(sys.argv) > 1 else "tensorrt")
    except WorkerError as error:
        send({"id": None, "error": error.to_json()})
        return 4
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            request = line
        send(worker.answer(request))
        if isinstance(request, dict) and request.get("op") == "quit":
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
