"""Builds, runs and times networks on the machine that it runs on: a board, or this one.

One file of Python 3.8 syntax with numpy and nothing else of Python's: CUDA is reached through the
driver's own library. Requests are JSON lines on standard input, answers on standard output:

    {"id": 1, "op": "hello"}                   {"id": 1, "ok": {...}}
    {"id": 2, "op": "load", "path": "no"}      {"id": 2, "error": {"code", "message", "fix"}}

`python3 worker.py [BACKEND]`, with BACKEND tensorrt (the default), onnxruntime, onnxruntime-cuda or
onnxruntime-tensorrt. Operations are the public methods of `Worker`; sizes in `_mb` are MiB.

In order below: errors, CUDA, ONNX files, the checks before an engine is opened, TensorRT, ONNX
Runtime, the machine, its power and memory, the protocol.
"""

from __future__ import annotations

import ast
import ctypes
import glob
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator

try:
    import numpy as np
except ImportError:  # answered as `numpy-missing`
    np = None  # type: ignore[assignment]

PROTOCOL = 2
MIB = 1 << 20
MODES = ("device", "graph", "end_to_end", "copy_in", "copy_out", "enqueue")
STREAMS = 32  # the most hardware queues that CUDA lets one process have
CAST_ONNX_SINCE = (10, 12)  # weak typing, and with it the FP16 and INT8 flags, is deprecated here
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")
NEEDS_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}
NUMPY_NAME = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64",
              "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"}  # fmt: skip


FIXES = {
    "backend-unknown": "use tensorrt, onnxruntime, onnxruntime-cuda or onnxruntime-tensorrt",
    "build-failed": "raise the workspace, or free memory on the board",
    "cache-incomplete": "delete the timing cache, build once, then rebuild from what that left",
    "cuda-error": "free memory, or lower the workspace; see dmesg",
    "cuda-missing": "run on the board, with its own NVIDIA driver",
    "engine-damaged": "copy it again, or rebuild it here with build_engine.py",
    "engine-mismatch": "rebuild it here with build_engine.py",
    "engine-refused": "rebuild it here with build_engine.py",
    "engine-unknown": "build it here with build_engine.py, which writes the record beside it",
    "file": "check the path and the free disk",
    "graph-refused": "run it without a CUDA graph (mode device)",
    "input-missing": "name the arrays of the npz after the network's inputs",
    "input-refused": "give arrays of the network's own types",
    "internal": "report it, with the request",
    "mode-refused": "use one of hello's modes",
    "not-loaded": "send load first",
    "numpy-missing": "sudo apt install python3-numpy",
    "onnx-refused": "export again, with operators that this backend has",
    "onnxruntime-missing": "pip install onnxruntime (onnxruntime-gpu for cuda and tensorrt)",
    "option-refused": "leave this option out for this board",
    "precision-refused": "use one of hello's precisions",
    "profile-missing": "give min, opt and max shapes, as {input: [min, opt, max]} for several",
    "profile-refused": "min <= opt <= max, with the ONNX's own fixed sizes",
    "provider-fallback": "install the CUDA, cuDNN or TensorRT that this onnxruntime was built for, "
    "or use the backend tensorrt",
    "qdq-asymmetric": "quantise with symmetric int8 (zero points 0), as kdcompile calibrate does",
    "request-invalid": "send {id, op, ...} with an op and its values as worker.py names them",
    "run-failed": "rebuild it here with build_engine.py",
    "streams-refused": "time it on one stream, or build it for one fixed shape",
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
    """The few calls of the CUDA driver API that running and timing an engine takes.

    What is handed out is held until `free`, so that nothing can be lost unseen.
    """

    def __init__(self) -> None:
        """Open the first GPU in its primary context."""
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise WorkerError("cuda-missing", f"no CUDA driver: {error}") from error
        self.held: dict[int, tuple[str, Any]] = {}
        self._stream: Any = None
        self.call("cuInit", 0)
        device, context, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
        self.device = device
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        # the primary context is the one that TensorRT's runtime API uses
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode(errors="replace")
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        self.memory_mb = total.value // MIB
        self.capability = ".".join(str(self._attribute(n, device)) for n in (75, 76))

    def about(self) -> dict[str, Any]:
        """The GPU, as `hello` tells it."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return {"name": self.name, "compute_capability": self.capability,
                "memory_mb": self.memory_mb, "free_mb": free.value // MIB}  # fmt: skip

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def call(self, function: str, *arguments: Any) -> None:
        """Call a driver function; a status other than 0 is a `cuda-error`."""
        self.check(function, getattr(self.lib, function)(*arguments))

    def check(self, what: str, status: int) -> None:
        """Raise the `cuda-error` that a status other than 0 names."""
        if status:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(status, ctypes.byref(text))
            name = (text.value or b"unknown").decode()
            raise WorkerError("cuda-error", f"{what} failed: {name} ({status})")

    def _hold(self, free: str, handle: Any) -> Any:
        self.held[id(handle)] = (free, handle)
        return handle

    def free(self, *handles: Any) -> None:
        """Give back what was handed out; each exactly once."""
        for handle in handles:
            function, kept = self.held.pop(id(handle))
            self.call(function, kept)

    @property
    def stream(self) -> Any:
        """The stream of all that needs no other, made when it is first used."""
        if self._stream is None:
            self._stream = self.new_stream()
        return self._stream

    def new_stream(self) -> Any:
        """A stream of its own."""
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), 1)  # not tied to the default stream
        return self._hold("cuStreamDestroy_v2", made)

    def close(self) -> None:
        """Give back all that is still held."""
        self._stream = None
        self.free(*[handle for _, handle in list(self.held.values())])

    def allocate(self, size: int) -> Any:
        """Device memory of `size` bytes."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return self._hold("cuMemFree_v2", pointer)

    def pinned(self, size: int) -> Any:
        """Host memory of `size` bytes that the GPU reads and writes by itself."""
        pointer = ctypes.c_void_p()
        self.call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return self._hold("cuMemFreeHost", pointer)

    @contextmanager
    def events(self, count: int) -> Iterator[list[Any]]:
        """Timing events, given back afterwards."""
        found: list[Any] = []
        try:
            for _ in range(count):
                made = ctypes.c_void_p()
                self.call("cuEventCreate", ctypes.byref(made), 0)
                found.append(self._hold("cuEventDestroy_v2", made))
            yield found
        finally:
            self.free(*found)

    def capture(self, launch: Callable[[], None], stream: Any) -> Any:
        """What `launch` enqueues on a stream, as a CUDA graph to replay."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, 1)  # 1: of this thread only
        try:
            try:
                launch()
            finally:  # a stream left in capture refuses everything after
                status = self.lib.cuStreamEndCapture(stream, ctypes.byref(graph))
            self.check("cuStreamEndCapture", status)
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_uint64(0))
        except WorkerError as error:
            raise WorkerError("graph-refused", error.message) from error
        finally:
            if graph.value:
                self.call("cuGraphDestroy", graph)
        return self._hold("cuGraphExecDestroy", made)


def version_of(module: Any) -> tuple[int, int]:
    """Major and minor version of a module."""
    major, minor = str(module.__version__).split(".")[:2]
    return int(major), int(minor)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: an int, or the bytes of the others."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _varint(data, at)
        elif not size:
            raise ValueError(f"no protobuf: wire type {kind}")
        yield key >> 3, data[at : at + size]
        at += size


def _text(value: Any) -> str:
    return bytes(value).decode(errors="replace")


class OnnxFile:
    """Names of an ONNX file's nodes, read without the onnx package, which no board has.

    `nodes` has `name`, `operator`, `inputs` and `module` (the path in the PyTorch model, where the
    exporter left it) of each. A file that cannot be read has none: the parser says what is wrong.
    """

    def __init__(self, blob: bytes) -> None:
        """Read what messages need: field numbers are those of onnx.proto."""
        self.nodes: list[dict[str, Any]] = []
        self._constants: dict[str, memoryview] = {}
        try:
            graphs = [v for number, v in _fields(memoryview(blob)) if number == 7]
            for number, value in _fields(graphs[-1]):
                if number == 1:
                    self.nodes.append(self._node(value))
                elif number == 5:
                    named = [_text(v) for n, v in _fields(value) if n == 8]
                    self._constants[named[0] if named else ""] = value
        except (IndexError, ValueError, TypeError):
            self.nodes = []

    @staticmethod
    def _node(message: memoryview) -> dict[str, Any]:
        found: dict[str, Any] = {"name": "", "operator": "", "module": None, "inputs": []}
        first = ""
        for number, value in _fields(message):
            if number == 1:
                found["inputs"].append(_text(value))
            elif number == 2 and not first:
                first = _text(value)
            elif number in (3, 4):
                found["name" if number == 3 else "operator"] = _text(value)
            elif number == 9:
                key, text = ([_text(v) for n, v in _fields(value) if n == i] for i in (1, 2))
                if key == ["pkg.torch.onnx.name_scopes"] and text:
                    found["module"] = _module(text[0])
        found["name"] = found["name"] or f"node_of_{first}"  # TensorRT's own name for it
        return found

    def describe(self, number: int, name: str = "", operator: str = "") -> str:
        """Operator, name and module of a node by its number, or by the name it is known to have."""
        by_name = {node["name"]: node for node in self.nodes}
        by_number = dict(enumerate(self.nodes))
        node = by_name.get(name, {}) if name else by_number.get(number, {})
        words = [operator or node.get("operator", ""), name or node.get("name", "")]
        if node.get("module"):
            words.append(f"(module {node['module']})")
        return " ".join(word for word in words if word) or f"node {number}"

    def asymmetric(self) -> str | None:
        """A Q/DQ node whose zero point is unsigned or not 0, described; else None."""
        for i, node in enumerate(self.nodes):
            if node["operator"] in ("QuantizeLinear", "DequantizeLinear"):
                point = self._constants.get((node["inputs"] + ["", "", ""])[2])
                fields = [] if point is None else list(_fields(point))
                unsigned = (2, 2) in fields  # data_type: uint8
                values = [v for n, v in fields if n in (5, 9)]  # int32_data, raw_data
                if unsigned or any(any(v) if isinstance(v, memoryview) else v for v in values):
                    kind = "unsigned" if unsigned else "not 0"
                    return f"{self.describe(i)}: the zero point is {kind}"
        return None


def _module(scopes: str) -> str | None:
    """The innermost module of the exporter's list of scopes, whose last entry is the node."""
    try:
        path = [str(part) for part in ast.literal_eval(scopes)]
    except (ValueError, SyntaxError):
        return None
    return path[-2] or None if len(path) > 1 else None


RECORD = ("sha256", "compute_capability", "platform")


def write_engine(engine: str, blob: bytes, about: dict[str, Any]) -> dict[str, Any]:
    """Write an engine and beside it, as ENGINE.json, what `preflight` will ask for.

    The record is first, so that a build that is cut off leaves no engine without one.
    """
    _write(engine + ".json", json.dumps(about, sort_keys=True).encode())
    _write(engine, blob)
    return about


def preflight(path: str, blob: bytes, here: dict[str, Any], expected: Any) -> dict[str, Any]:
    """The record of an engine that is whole and of this machine, else an error that says why not.

    Args:
        path: of the engine; the record is beside it.
        blob: the engine.
        here: `backend`, its `version`, and the `compute_capability` and `platform` of here.
        expected: stands in for the record; it must have what a record has.
    """
    built = _read_record(path) if expected is None else expected
    named = built if isinstance(built, dict) else {}
    known = [backend for backend in ("tensorrt", "onnxruntime") if backend in named]
    if len(known) != 1 or any(key not in named for key in RECORD):
        wanted = ", ".join(("tensorrt or onnxruntime", *RECORD))
        raise WorkerError("engine-unknown", f"the record of {path} lacks one of {wanted}")
    if hashlib.sha256(blob).hexdigest() != built["sha256"]:
        size = built.get("bytes")
        short = isinstance(size, int) and len(blob) < size
        what = f"truncated: {len(blob)} of {size} bytes" if short else "its SHA-256 is another"
        raise WorkerError("engine-damaged", f"{path} is not what was built: {what}")
    backend, version = known[0], str(built[known[0]])
    same = backend == here["backend"] and version.split(".")[:3] == here["version"].split(".")[:3]
    if not same or any(built[k] != here[k] for k in RECORD[1:]):
        there = _origin(backend, version, built)
        now = _origin(here["backend"], here["version"], here)
        raise WorkerError("engine-mismatch", f"built by {there}; here {now}")
    return dict(built)


def _origin(backend: str, version: str, facts: dict[str, Any]) -> str:
    capability = facts["compute_capability"]
    gpu = f" for sm_{str(capability).replace('.', '')}" if capability else ""
    return f"{backend} {version}{gpu} on {facts['platform']}"


def _read_record(path: str) -> Any:
    if not os.path.isfile(path + ".json"):
        raise WorkerError("engine-unknown", f"no {path}.json says what built {path}")
    with open(path + ".json", "rb") as stream:
        try:
            return json.loads(stream.read().decode())
        except ValueError as error:
            raise WorkerError("engine-unknown", f"{path}.json is no record: {error}") from error


def typing_plan(trt: Any, precision: str) -> dict[str, Any] | None:
    """How this TensorRT is told a precision: by flags where it has them, else by the ONNX.

    Returns:
        `onnx`: the precision of the ONNX file to parse; `flags`: builder flags, by name;
        `network`: network creation flags, by name. None where this TensorRT has no such precision.
    """
    kinds, builder = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    weak = hasattr(builder, "FP16") and version_of(trt) < CAST_ONNX_SINCE
    network = [name for name in ("EXPLICIT_BATCH",) if hasattr(kinds, name)]
    # 8.6 has a flag FP8 and the type, but its parser ends before the opset that brought float 8
    new = version_of(trt) >= (10, 0)
    if precision not in PRECISIONS or (precision in ("bf16", "fp8") and not new):
        return None
    if not weak:
        network += [name for name in ("STRONGLY_TYPED",) if hasattr(kinds, name)]
        return {"onnx": precision, "flags": [], "network": network}
    flags = {"fp32": [], "fp16": ["FP16"], "bf16": ["BF16"], "fp8": ["FP8", "FP16"],
             "int8": ["INT8", "FP16"], "mixed": ["INT8", "FP16"]}[precision]  # fmt: skip
    onnx = precision if precision in ("int8", "fp8", "mixed") else "fp32"
    return {"onnx": onnx, "flags": flags, "network": network}


class TensorRT:
    """TensorRT 8.5 to 11, by what the installed module has."""

    modes = MODES

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

    def why(self) -> str:
        """What TensorRT logged last."""
        return "; ".join(self.messages[-3:]) or "TensorRT gave no reason"

    def precisions(self) -> dict[str, dict[str, Any]]:
        """The plan of each precision that this TensorRT and this GPU have."""
        capability = tuple(int(part) for part in self.cuda.capability.split("."))
        able = [p for p in PRECISIONS if capability >= NEEDS_CAPABILITY.get(p, (0, 0))]
        plans = {p: typing_plan(self.trt, p) for p in able}
        return {p: plan for p, plan in plans.items() if plan is not None}

    def about(self) -> dict[str, Any]:
        """The GPU, and which ONNX each precision is built from."""
        return {"gpu": self.cuda.about(), "precisions": self.precisions()}

    def close(self) -> None:
        """Give back what the driver handed out."""
        self.cuda.close()

    def build(self, onnx: str, engine: str, precision: str, profile: Any = None,
              workspace_mb: int = 1024, timing_cache: str = "", deterministic: bool = False,
              optimization_level: int | None = None, dla: int | None = None,
              sparsity: bool = False) -> dict[str, Any]:  # fmt: skip
        """Compile an ONNX file to `engine`, with a record of how in `engine`.json.

        Args:
            onnx: the file that `hello` names for this precision.
            engine: the file to write.
            precision: one of `hello`'s.
            profile: [min, opt, max] shapes of the input whose sizes are free, or those of each by
                its name.
            workspace_mb: scratch memory of a layer.
            timing_cache: file of kernel timings, read where it fits and written.
            deterministic: build from the cache alone where it fits, so that builds are equal.
            optimization_level: of the builder, 0 to 5.
            dla: core; the GPU takes the layers that it cannot run.
            sparsity: consider 2:4 kernels.
        """
        plan = self.precisions().get(precision)
        if plan is None:
            here = f"TensorRT {self.version} on compute capability {self.cuda.capability}"
            able = ", ".join(self.precisions())
            raise WorkerError("precision-refused", f"{here} builds {able}, not {precision!r}")
        if deterministic and not timing_cache:
            raise WorkerError("request-invalid", "deterministic needs a timing_cache")
        start = time.perf_counter()
        del self.messages[:]
        with open(onnx, "rb") as stream:
            source = stream.read()
        graph = OnnxFile(source)
        builder = self.trt.Builder(self.logger)
        network, _parser = self._parse(builder, plan, source, onnx, graph)  # holds the weights
        config = self._configure(builder, plan, workspace_mb, optimization_level, sparsity)
        fallback = self._use_dla(builder, network, config, dla, precision)
        _add_profile(builder, network, config, profile)
        cache, cache_state = self._open_cache(config, timing_cache, deterministic)
        bound = self._bind_to_cache(config, deterministic, cache_state)
        made = builder.build_serialized_network(network, config)
        if made is None:
            if bound == "enforced" and re.search("timing.?cache", self.why(), re.IGNORECASE):
                raise WorkerError("cache-incomplete", f"{timing_cache}: {self.why()}")
            raise WorkerError("build-failed", self.why())
        blob = bytes(made)
        if cache is not None and bound != "enforced":
            _write(timing_cache, bytes(config.get_timing_cache().serialize()))
        return write_engine(engine, blob, {
            "tensorrt": self.version, "compute_capability": self.cuda.capability,
            "gpu": self.cuda.name, "platform": _platform(), "precision": precision,
            "flags": plan["flags"], "sha256": hashlib.sha256(blob).hexdigest(),
            "onnx_sha256": hashlib.sha256(source).hexdigest(), "bytes": len(blob),
            "timing_cache": cache_state, "deterministic": bound, "dla": dla,
            "workspace_mb": workspace_mb, "optimization_level": optimization_level,
            "sparsity": sparsity, "profile": profile,
            "dla_fallback": fallback, "layers": self._layers_of(blob, graph),
            "seconds": time.perf_counter() - start,
        })  # fmt: skip

    def _parse(self, builder: Any, plan: dict[str, Any], source: bytes, path: str,
               graph: OnnxFile) -> tuple[Any, Any]:  # fmt: skip
        trt, asymmetric = self.trt, graph.asymmetric()
        if asymmetric:
            raise WorkerError("qdq-asymmetric", asymmetric)
        kinds = trt.NetworkDefinitionCreationFlag
        network = builder.create_network(sum(1 << int(getattr(kinds, n)) for n in plan["network"]))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(source, path):
            text = "; ".join(_parse_errors(parser, graph))
            about_zero = re.search("zero.?point|symmetric quantization", text, re.IGNORECASE)
            raise WorkerError("qdq-asymmetric" if about_zero else "onnx-refused", text)
        return network, parser

    def _configure(self, builder: Any, plan: dict[str, Any], workspace_mb: int,
                   level: int | None, sparsity: bool) -> Any:  # fmt: skip
        trt, config = self.trt, builder.create_builder_config()
        for name in plan["flags"] + (["SPARSE_WEIGHTS"] if sparsity else []):
            config.set_flag(getattr(trt.BuilderFlag, name))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb * MIB)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
        if version_of(trt) < (10, 0):  # the others call cuBLAS and cuDNN, which 10 no longer needs
            names = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
            config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, n)) for n in names))
        if level is not None:
            if not hasattr(config, "builder_optimization_level"):
                text = f"TensorRT {self.version} has no builder optimisation level; 8.6 has"
                raise WorkerError("option-refused", text)
            if level not in range(6):
                raise WorkerError("request-invalid", f"optimization_level {level} is not 0 to 5")
            config.builder_optimization_level = level
        return config

    def _use_dla(self, builder: Any, network: Any, config: Any, core: int | None,
                 precision: str) -> list[str] | None:  # fmt: skip
        """Prefer a DLA core; the names of the layers that stay on the GPU, None without a DLA."""
        if core is None:
            return None
        if precision not in ("fp16", "int8", "mixed"):
            raise WorkerError("option-refused", f"a DLA computes in fp16 and int8, not {precision}")
        if core not in range(builder.num_DLA_cores):
            there = builder.num_DLA_cores
            raise WorkerError("option-refused", f"no DLA core {core}: this board has {there}")
        trt = self.trt
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        return [str(layer.name) for layer in layers if not config.can_run_on_DLA(layer)]

    def _open_cache(self, config: Any, path: str, deterministic: bool) -> tuple[Any, str]:
        """Give the builder the timings of an earlier build, where they are of this TensorRT.

        The caller holds the cache object while it builds: the configuration only points at it.
        """
        if not path:
            return None, "none"
        flags = self.trt.BuilderFlag
        if deterministic and hasattr(flags, "EDITABLE_TIMING_CACHE"):
            config.set_flag(flags.EDITABLE_TIMING_CACHE)  # it changes the keys: from the first on
        old = b""
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                old = stream.read()
        if old:
            try:
                cache = config.create_timing_cache(old)
                if cache is not None and config.set_timing_cache(cache, False):
                    return cache, "reused"
            except Exception as error:  # pybind11 turns a refusal into whichever it likes
                self.messages.append(f"timing cache {path}: {error}")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
        return cache, "replaced" if old else "new"

    def _bind_to_cache(self, config: Any, wanted: bool, state: str) -> str:
        """Keep a deterministic build to the cache's kernels.

        Returns:
            `off`; `recorded`: the cache now holds this build's kernels, for the next one;
            `enforced`: kernels are the cache's, or the build fails; `best-effort`: this TensorRT
            cannot be bound, it takes the cache's timings where it finds them.
        """
        if not wanted:
            return "off"
        flags = self.trt.BuilderFlag
        if not hasattr(flags, "ERROR_ON_TIMING_CACHE_MISS"):
            return "best-effort"
        if state != "reused":
            return "recorded"
        config.set_flag(flags.ERROR_ON_TIMING_CACHE_MISS)
        return "enforced"

    def _layers_of(self, blob: bytes, graph: OnnxFile) -> list[dict[str, Any]] | None:
        """The engine's layers; None where the GPU that it is for is not this one."""
        runtime = self.trt.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            return None
        return layers_of(self.trt, engine, {node["name"] for node in graph.nodes})

    def load(self, path: str, graph: bool = False, expected: Any = None) -> TensorRTSession:
        """An engine that this TensorRT built on this kind of GPU."""
        with open(path, "rb") as stream:
            blob = stream.read()
        here = {"backend": "tensorrt", "version": self.version, "platform": _platform(),
                "compute_capability": self.cuda.capability}  # fmt: skip
        record = preflight(path, blob, here, expected)
        self._check_header(path, blob)
        del self.messages[:]
        runtime = self.trt.Runtime(self.logger)
        if record.get("dla") is not None:
            runtime.DLA_core = record["dla"]
        engine = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise WorkerError("engine-refused", self.why())
        return TensorRTSession(self, runtime, engine, graph, record.get("layers"))

    def _check_header(self, path: str, blob: bytes) -> None:
        """From 8.6 on a plan starts with a tag, and byte 24 on is the version that made it."""
        if version_of(self.trt) < (8, 6):
            return
        if len(blob) < 28 or blob[:4] not in (b"ftrt", b"vtrt"):
            raise WorkerError("engine-damaged", f"{path} is no TensorRT plan: {blob[:4]!r}")
        made = ".".join(str(byte) for byte in blob[24:27])
        here = ".".join(self.version.split(".")[:3])
        if blob[4:8] == bytes(4) and made != here:  # the one layout of a plan that is known
            text = f"{path} is a plan of TensorRT {made}; here {here}"
            raise WorkerError("engine-mismatch", text)


def _add_profile(builder: Any, network: Any, config: Any, asked: Any) -> None:
    """One optimisation profile over every input that has a free size."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = {image.name: image for image in inputs if -1 in tuple(image.shape)}
    if isinstance(asked, dict):
        absent = [name for name in asked if name not in [image.name for image in inputs]]
        if absent:
            names = ", ".join(image.name for image in inputs)
            raise WorkerError("profile-refused", f"no input {absent[0]!r}; there is {names}")
    if not free:
        return
    if asked and not isinstance(asked, dict):
        if len(free) > 1:
            raise WorkerError("profile-missing", f"inputs {', '.join(free)} are dynamic")
        asked = dict.fromkeys(free, asked)
    profile = builder.create_optimization_profile()
    for name, image in free.items():
        if not asked or name not in asked:
            raise WorkerError("profile-missing", f"input {name} is dynamic: {tuple(image.shape)}")
        shapes = [tuple(shape) for shape in asked[name]]
        if not _fits(shapes, tuple(image.shape)):
            raise WorkerError("profile-refused", f"{name}: {shapes} for {tuple(image.shape)}")
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise WorkerError("profile-refused", f"TensorRT takes none of {asked}")


def _fits(shapes: list[tuple[int, ...]], size: tuple[int, ...]) -> bool:
    """Whether shapes are min <= opt <= max of a network's size, in which -1 is free."""
    if len(shapes) != 3 or any(len(shape) != len(size) for shape in shapes):
        return False
    columns = zip(size, *shapes)  # noqa: B905  # Python 3.8
    return all(0 < a <= b <= c and n in (-1, a) and n in (-1, c) for n, a, b, c in columns)


def _parse_errors(parser: Any, graph: OnnxFile) -> list[str]:
    """Each parser error with its node; 8.x knows only the number, 10 the name and the operator."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        named = [str(getattr(error, f)()) if hasattr(error, f) else ""
                 for f in ("node_name", "node_operator")]  # fmt: skip
        found.append(f"{graph.describe(error.node(), *named)}: {error.desc()}")
    return found or ["the parser gave no reason"]


NUMBER_TYPES = (("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"),
                ("fp16", "fp16"), ("half", "fp16"), ("fp32", "fp32"), ("float", "fp32"),
                ("int32", "int32"), ("int64", "int64"), ("bool", "bool"))  # fmt: skip


def _number_type(text: str) -> str | None:
    """The precision that a type or format text names, such as "Row major Int8 format"."""
    words = re.findall("[a-z0-9]+", text.lower())
    return next((name for word, name in NUMBER_TYPES if word in words), None)


def _layer(entry: Any, known: set[str]) -> dict[str, Any]:
    """One layer of the inspector: its name, type, precision and the ONNX nodes that it came from.

    A tensor's type is in `Format/Datatype` up to 10, in `Datatype` or `DataType` from 11. A layer
    computes in the type of its weights, or else of its first input.
    """
    if isinstance(entry, str):  # an engine that was built without detailed verbosity
        entry = {"Name": entry}
    name = str(entry.get("Name", ""))
    texts = [str((entry.get("Weights") or {}).get("Type", ""))]
    for tensor in entry.get("Inputs") or []:
        keys = sorted((k for k in tensor if "type" in k.lower()), key=len)
        texts += [str(tensor[k]) for k in keys]
    found = (_number_type(text) for text in texts)
    precision = next((kind for kind in found if kind), None)
    nodes = re.findall(r"\[ONNX Layer: (.*?)\]", str(entry.get("Metadata", "")))
    if not nodes:  # 8.5 has only the name, which joins those of the fused nodes
        nodes = [part for part in re.split(r" \+ |, |PWN\(|\)", name) if part in known]
    nodes = sorted({n for n in nodes if n in known} or set(nodes), key=nodes.index)
    return {"name": name, "type": entry.get("LayerType"), "precision": precision,
            "onnx": nodes or None}  # fmt: skip


def layers_of(trt: Any, engine: Any, known: set[str]) -> list[dict[str, Any]]:
    """The layers of an engine; `known` are the names of the ONNX file's nodes."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return [_layer(entry, known) for entry in json.loads(text).get("Layers", [])]


class HostArray:
    """Pinned memory with the numpy array that lies in it."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], kind: Any) -> None:
        """Room for an array of one shape and type."""
        self.bytes = int(np.prod(shape)) * kind.itemsize
        self.pointer = cuda.pinned(self.bytes)
        raw = (ctypes.c_char * self.bytes).from_address(self.pointer.value)
        self.array = np.frombuffer(raw, kind).reshape(shape)


class TensorRTSession:
    """An engine with its buffers, remade when the input shapes change."""

    def __init__(self, backend: TensorRT, runtime: Any, engine: Any, graph: bool,
                 layers: Any, stream: Any = None) -> None:  # fmt: skip
        """Make a context; the buffers come with the first inputs. `stream` is its own, if any."""
        trt = backend.trt
        self.backend, self.cuda, self.engine = backend, backend.cuda, engine
        self.runtime = runtime  # which must outlive its engine
        self.wants_graph, self.graph = graph, None
        self.layers, self._own_stream = layers, stream
        self.beside: list[TensorRTSession] = []  # more contexts, each with a stream of its own
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

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int,
             mode: str) -> tuple[dict[str, list[float]], bool]:  # fmt: skip
        """Milliseconds of each inference by clock, and whether a CUDA graph ran."""
        self.bind(arrays)
        go, graph = self._once(mode)
        count, copies = warmup + iterations, self._copied(mode)
        if any(copies):
            found = {"end_to_end": self._time_transfers(go, count, *copies)}
        elif mode == "enqueue":
            found = {"device": self._time_queue(go, count)}
        else:
            found = self._time_single(go, count)
        return {clock: times[warmup:] for clock, times in found.items()}, graph

    def _once(self, mode: str) -> tuple[Callable[[], None], bool]:
        """One inference in a mode, without its copies, and whether it is a CUDA graph."""
        graph = mode == "graph" or (mode != "device" and self.wants_graph)
        return (self._replay() if graph else self.launch), graph

    def _copied(self, mode: str) -> list[list[tuple[Any, ...]]]:
        """The copies that a mode counts, before an inference and after it."""
        sides = (("copy_in", self.inputs), ("copy_out", self.outputs))
        return [self._copies(names) if mode in (own, "end_to_end") else [] for own, names in sides]

    def time_streams(self, arrays: dict[str, Any], warmup: int, iterations: int, mode: str,
                     streams: int) -> tuple[dict[str, list[float]], bool, float]:  # fmt: skip
        """With so many inferences in flight: milliseconds of each, and how many a second.

        By events around each with its copies, as the clock sees its end only when its turn comes.
        Contexts take turns, as trtexec's do. The pipeline is full before the first that counts,
        and others follow the last.
        """
        lanes = self._lanes(streams, arrays)
        ways = [lane._once(mode) for lane in lanes]
        first = max(warmup, streams)
        last = first + iterations
        cuda, lib, clock = self.cuda, self.cuda.lib, time.perf_counter
        begun, took, elapsed = [0.0] * (last + streams), [0.0] * last, ctypes.c_float()
        copies = [lane._copied(mode) for lane in lanes]
        with cuda.events(2 * streams) as events:
            for i in range(last + streams):
                lane = i % streams
                stream, (begin, end) = lanes[lane].stream, events[2 * lane : 2 * lane + 2]
                if i >= streams:
                    cuda.call("cuEventSynchronize", end)
                    cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
                    took[i - streams] = float(elapsed.value)
                begun[i] = clock()
                failed = lib.cuEventRecord(begin, stream)
                for copy in copies[lane][0]:
                    failed = failed or lib.cuMemcpyHtoDAsync_v2(*copy)
                ways[lane][0]()
                for copy in copies[lane][1]:
                    failed = failed or lib.cuMemcpyDtoHAsync_v2(*copy)
                cuda.check("timing", failed or lib.cuEventRecord(end, stream))
            for session in lanes:
                session._wait()
        rate = iterations / (begun[last] - begun[first])
        return {"device": took[first:]}, ways[0][1], rate

    def _lanes(self, count: int, arrays: dict[str, Any]) -> list[TensorRTSession]:
        """This context and others of its engine, with the inputs in buffers of each."""
        self.bind(arrays)
        try:
            while len(self.beside) < count - 1:
                self._add_lane()
            for lane in self.beside[: count - 1]:
                lane.bind(arrays)
        except WorkerError as error:
            if error.code not in ("engine-refused", "shape-refused"):
                raise
            # up to 9, an engine with free sizes has room for one context a profile
            text = f"no {count} contexts of this engine at once: {error.message}"
            raise WorkerError("streams-refused", text) from error
        return [self, *self.beside[: count - 1]]

    def _add_lane(self) -> None:
        stream = self.cuda.new_stream()
        try:
            lane = TensorRTSession(self.backend, self.runtime, self.engine, self.wants_graph,
                                   self.layers, stream)  # fmt: skip
        except Exception:
            self.cuda.free(stream)
            raise
        self.beside.append(lane)

    def _time_single(self, go: Callable[[], None], count: int) -> dict[str, list[float]]:
        """By events around each inference, and by the clock with the wait for it."""
        cuda, lib, stream, clock = self.cuda, self.cuda.lib, self.stream, time.perf_counter
        device, wall, elapsed = [0.0] * count, [0.0] * count, ctypes.c_float()
        ms = ctypes.byref(elapsed)
        with cuda.events(2) as (begin, end):
            for i in range(count):
                start = clock()
                failed = lib.cuEventRecord(begin, stream)
                go()
                failed = failed or lib.cuEventRecord(end, stream) or lib.cuStreamSynchronize(stream)
                wall[i] = 1000 * (clock() - start)
                cuda.check("timing", failed or lib.cuEventElapsedTime(ms, begin, end))
                device[i] = elapsed.value
        return {"device": device, "wall": wall}

    def _time_transfers(self, go: Callable[[], None], count: int, into: list[tuple[Any, ...]],
                        out: list[tuple[Any, ...]]) -> list[float]:  # fmt: skip
        """By the clock: inputs from pinned memory, the inference, outputs to pinned memory."""
        lib, stream, clock = self.cuda.lib, self.stream, time.perf_counter
        times = [0.0] * count
        for i in range(count):
            failed, start = 0, clock()
            for copy in into:
                failed = failed or lib.cuMemcpyHtoDAsync_v2(*copy)
            go()
            for copy in out:
                failed = failed or lib.cuMemcpyDtoHAsync_v2(*copy)
            failed = failed or lib.cuStreamSynchronize(stream)
            times[i] = 1000 * (clock() - start)
            self.cuda.check("timing", failed)
        return times

    def _time_queue(self, go: Callable[[], None], count: int) -> list[float]:
        """By events between inferences that are queued without a wait, as trtexec counts them."""
        cuda, lib, stream = self.cuda, self.cuda.lib, self.stream
        with cuda.events(count + 1) as events:
            failed = lib.cuEventRecord(events[0], stream)
            for event in events[1:]:
                go()
                failed = failed or lib.cuEventRecord(event, stream)
            cuda.check("timing", failed or lib.cuStreamSynchronize(stream))
            times, elapsed = [], ctypes.c_float()
            for i in range(count):
                cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), events[i], events[i + 1])
                times.append(float(elapsed.value))
        return times

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


def check_inputs(arrays: dict[str, Any], types: dict[str, Any],
                 names: list[str]) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes of a network's inputs, once all are there and of a type that it takes."""
    for name in names:
        if name not in arrays:
            given = ", ".join(arrays) or "nothing"
            raise WorkerError("input-missing", f"no array for input {name}; given {given}")
        if not np.can_cast(arrays[name].dtype, types[name], "same_kind"):
            text = f"{name} is {types[name]}, the array {arrays[name].dtype}"
            raise WorkerError("input-refused", text)
    return {name: tuple(arrays[name].shape) for name in names}


class OnnxRuntime:
    """ONNX Runtime on one execution provider; on the CPU it plays a board where there is none."""

    modes = ("device", "end_to_end", "copy_in", "copy_out")
    provider = "CPUExecutionProvider"
    precision_names: tuple[str, ...] = ("fp32", "fp16", "int8", "fp8", "mixed")
    cuda: Any = None

    def __init__(self) -> None:
        """Import the module, and see that it has the provider."""
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when the library loads
        try:
            import onnxruntime
        except ImportError as error:
            raise WorkerError("onnxruntime-missing", str(error)) from error
        self.ort: Any = onnxruntime
        self.version = str(onnxruntime.__version__)
        there = onnxruntime.get_available_providers()
        if self.provider not in there:
            text = f"onnxruntime {self.version} has {', '.join(there)}, not {self.provider}"
            raise WorkerError("onnxruntime-missing", text)
        if self.provider != "CPUExecutionProvider":
            self.cuda = Cuda()

    def about(self) -> dict[str, Any]:
        """The GPU where there is one; every precision is its own ONNX."""
        plans = {p: {"onnx": p, "flags": [], "network": []} for p in self.precision_names}
        return {"gpu": self.cuda.about() if self.cuda else None, "precisions": plans}

    def close(self) -> None:
        """Give back what the driver handed out."""
        if self.cuda:
            self.cuda.close()

    def settings(self, precision: str) -> dict[str, Any]:
        """Options of the provider."""
        return {}

    def build(self, onnx: str, engine: str, precision: str, profile: Any = None,
              workspace_mb: int = 1024, timing_cache: str = "", deterministic: bool = False,
              optimization_level: int | None = None, dla: int | None = None,
              sparsity: bool = False) -> dict[str, Any]:  # fmt: skip
        """Nothing to compile: the model is checked and copied, with the record of an engine.

        Profile, workspace and timing cache are TensorRT's and say nothing here; what would change
        the result is refused.
        """
        start = time.perf_counter()
        if precision not in self.precision_names:
            able = ", ".join(self.precision_names)
            raise WorkerError("precision-refused", f"{self.provider} has {able}, not {precision!r}")
        asked = {"deterministic": deterministic, "dla": dla is not None, "sparsity": sparsity,
                 "optimization_level": optimization_level is not None}  # fmt: skip
        for name, given in asked.items():
            if given:
                raise WorkerError("option-refused", f"ONNX Runtime has no {name}")
        with open(onnx, "rb") as stream:
            blob = stream.read()
        self._open(blob, precision)
        sha256, nodes = hashlib.sha256(blob).hexdigest(), OnnxFile(blob).nodes
        return write_engine(engine, blob, {
            "onnxruntime": self.version, "compute_capability": self._capability(),
            "gpu": self.cuda.name if self.cuda else None, "platform": _platform(),
            "precision": precision, "flags": [], "sha256": sha256, "onnx_sha256": sha256,
            "bytes": len(blob), "timing_cache": "none", "deterministic": "off", "dla": None,
            "workspace_mb": workspace_mb, "optimization_level": None, "sparsity": False,
            "profile": profile,
            "dla_fallback": None, "provider": self.provider,
            "layers": [{"name": n["name"], "type": n["operator"], "precision": None,
                        "onnx": [n["name"]]} for n in nodes],
            "seconds": time.perf_counter() - start,
        })  # fmt: skip

    def _capability(self) -> str | None:
        return str(self.cuda.capability) if self.cuda else None

    def _open(self, blob: bytes, precision: str, trace: str = "", threads: int = 0) -> Any:
        """A session of the provider asked for and no other; `threads` of an operator, 0 for all."""
        options = self.ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if trace:
            options.enable_profiling, options.profile_file_prefix = True, trace
        chosen = [(self.provider, self.settings(precision))]
        try:
            made = self.ort.InferenceSession(blob, options, providers=chosen)
        except Exception as error:  # its exceptions share no other base
            raise WorkerError("onnx-refused", str(error)) from error
        made.disable_fallback()  # or a failing run would silently go on elsewhere
        if made.get_providers()[0] != self.provider:
            text = f"asked for {self.provider}, onnxruntime took {made.get_providers()[0]}"
            raise WorkerError("provider-fallback", text)
        return made

    def load(self, path: str, graph: bool = False, expected: Any = None,
             threads: int = 0) -> OnnxRuntimeSession:  # fmt: skip
        """A session of what `build` copied."""
        if graph:
            raise WorkerError("mode-refused", f"{self.provider} runs no CUDA graph here")
        with open(path, "rb") as stream:
            blob = stream.read()
        here = {"backend": "onnxruntime", "version": self.version, "platform": _platform(),
                "compute_capability": self._capability()}  # fmt: skip
        record = preflight(path, blob, here, expected)
        precision = str(record.get("precision", "fp32"))
        nodes = {node["name"] for node in OnnxFile(blob).nodes}
        make = partial(self._open, blob, precision, threads=threads)
        return OnnxRuntimeSession(self, make, nodes)


class OnnxRuntimeCuda(OnnxRuntime):
    """On the GPU."""

    provider = "CUDAExecutionProvider"


class OnnxRuntimeTensorRT(OnnxRuntime):
    """On the GPU by the TensorRT that ONNX Runtime was built for."""

    provider = "TensorrtExecutionProvider"
    precision_names = ("fp32", "fp16", "int8", "mixed")

    def settings(self, precision: str) -> dict[str, Any]:
        """Precision flags, which 1.27 lost with its TensorRT 11: there the ONNX alone decides."""
        if version_of(self.ort) >= (1, 27) or precision == "fp32":
            return {}
        return {"trt_fp16_enable": True, "trt_int8_enable": precision != "fp16"}


ORT_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64",
             "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
             "tensor(double)": "float64", "tensor(bool)": "bool"}  # fmt: skip
# what computes sizes is left to the CPU by every provider
OF_SIZES = {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Floor", "Gather", "Mul",
            "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze",
            "Where"}  # fmt: skip


class OnnxRuntimeSession:
    """A session with the same calls as an engine."""

    def __init__(self, backend: OnnxRuntime, make: Callable[..., Any], nodes: set[str]) -> None:
        """`make` opens the network, with a file prefix for the trace of a profile."""
        self.backend, self.make, self.nodes = backend, make, nodes
        self.session, self.is_checked = make(), False
        self.beside: list[Any] = []  # more sessions, for more streams
        self.ports = {i.name: i for i in self.session.get_inputs()}
        self.types = {n: np.dtype(ORT_NUMPY.get(i.type, "O")) for n, i in self.ports.items()}

    def about(self) -> dict[str, Any]:
        """Inputs and outputs; ONNX Runtime does not say what memory it will take."""
        return {"device_memory_mb": None, "inputs": self._tensors(self.session.get_inputs()),
                "outputs": self._tensors(self.session.get_outputs())}  # fmt: skip

    @staticmethod
    def _tensors(ports: list[Any]) -> dict[str, Any]:
        shapes = {i.name: [n if isinstance(n, int) else -1 for n in i.shape] for i in ports}
        return {i.name: {"dtype": ORT_NUMPY.get(i.type, i.type), "shape": shapes[i.name]}
                for i in ports}  # fmt: skip

    def _feeds(self, arrays: dict[str, Any]) -> dict[str, Any]:
        wanted = check_inputs(arrays, self.types, list(self.ports))
        for name, shape in wanted.items():
            size = tuple(n if isinstance(n, int) else -1 for n in self.ports[name].shape)
            pairs = zip(shape, size)  # noqa: B905  # Python 3.8
            if len(shape) != len(size) or any(n not in (-1, a) for a, n in pairs):
                raise WorkerError("shape-refused", f"{name} of {shape}; the network has {size}")
        return {n: np.ascontiguousarray(arrays[n], self.types[n]) for n in self.ports}

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        found = self.session.run(None, self._feeds(arrays))
        names = [o.name for o in self.session.get_outputs()]
        return {name: found[i] for i, name in enumerate(names)}

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int,
             mode: str) -> tuple[dict[str, list[float]], bool]:  # fmt: skip
        """Milliseconds of each inference by the clock; there is no device clock to ask."""
        feeds, times, clock = self._feeds(arrays), [], time.perf_counter
        self._check_providers(feeds)
        go = self._once(self.session, feeds, mode)
        for _ in range(warmup + iterations):
            start = clock()
            go()
            times.append(1000 * (clock() - start))
        return {"wall" if mode == "device" else "end_to_end": times[warmup:]}, False

    def time_streams(self, arrays: dict[str, Any], warmup: int, iterations: int, mode: str,
                     streams: int) -> tuple[dict[str, list[float]], bool, float]:  # fmt: skip
        """With so many inferences in flight: milliseconds of each, and how many a second.

        Each has a session and a thread. All are busy before the first that counts, and others
        follow the last.
        """
        feeds = self._feeds(arrays)
        self._check_providers(feeds)
        while len(self.beside) < streams - 1:
            self.beside.append(self.make())
        sessions = [self.session, *self.beside[: streams - 1]]
        first = max(warmup, streams)
        last = first + iterations
        begun, took = ([0.0] * (last + streams) for _ in range(2))
        turns, clock, failures = iter(range(last + streams)), time.perf_counter, []
        ready = threading.Barrier(streams)

        def work(go: Callable[[], Any]) -> None:
            ready.wait()
            try:
                for n in turns:  # of all threads: whoever is free takes the next
                    begun[n] = clock()
                    go()
                    took[n] = 1000 * (clock() - begun[n])
            except Exception as error:  # raised below, in the thread that answers
                failures.append(error)

        ways = [self._once(session, feeds, mode) for session in sessions]
        threads = [threading.Thread(target=work, args=(go,), daemon=True) for go in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        rate = iterations / (begun[last] - begun[first])
        return {"wall" if mode == "device" else "end_to_end": took[first:last]}, False, rate

    def _once(self, session: Any, feeds: dict[str, Any], mode: str) -> Callable[[], Any]:
        """One inference in a mode: what is not copied lies where the provider computes."""
        if mode == "end_to_end":
            return partial(session.run, None, feeds)
        binding = self._bound(session, feeds)
        go = partial(session.run_with_iobinding, binding)

        def copy_in() -> None:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            go()

        def copy_out() -> None:
            go()
            binding.copy_outputs_to_cpu()

        return {"copy_in": copy_in, "copy_out": copy_out}.get(mode, go)

    def _bound(self, session: Any, feeds: dict[str, Any]) -> Any:
        """Inputs and outputs where the provider computes."""
        place = "cuda" if self.backend.cuda else "cpu"
        binding = session.io_binding()
        for name, array in feeds.items():
            value = self.backend.ort.OrtValue.ortvalue_from_numpy(array, place, 0)
            binding.bind_ortvalue_input(name, value)
        for port in session.get_outputs():
            binding.bind_output(port.name, place)
        return binding

    def _check_providers(self, feeds: dict[str, Any]) -> None:
        """Refuse a latency that is partly the CPU's: nodes move there one by one, and untold."""
        wanted = self.backend.provider
        if self.is_checked or wanted == OnnxRuntime.provider:
            return
        for name, ((_, provider, operator), *_) in self._trace(feeds, 1).items():
            if provider != wanted and operator not in OF_SIZES:
                text = f"{operator} {name} runs on {provider}, not {wanted}"
                raise WorkerError("provider-fallback", text)
        self.is_checked = True

    def _trace(self, feeds: dict[str, Any], count: int) -> dict[str, list[tuple[float, Any, Any]]]:
        """(ms, provider, operator) of each node in each inference, as ONNX Runtime tells them."""
        with tempfile.TemporaryDirectory() as folder:
            session = self.make(os.path.join(folder, "trace"))
            for _ in range(count):
                session.run(None, feeds)
            with open(session.end_profiling(), encoding="utf-8") as stream:
                events = json.load(stream)
        found: dict[str, list[tuple[float, Any, Any]]] = {}
        for event in events:
            name, kind, more = event["name"], "_kernel_time", event.get("args", {})
            if event.get("cat") == "Node" and name.endswith(kind):
                entry = (event["dur"] / 1000, more.get("provider"), more.get("op_name"))
                found.setdefault(name[: -len(kind)], []).append(entry)
        return found

    def profile(self, arrays: dict[str, Any], iterations: int) -> list[dict[str, Any]]:
        """Mean milliseconds of each node in one inference, from ONNX Runtime's own trace."""
        found = self._trace(self._feeds(arrays), iterations + 1)  # the first one warms up
        return [{"name": name, "ms": sum(ms for ms, *_ in calls[1:]) / iterations,
                 "precision": None, "onnx": self._nodes(name), "provider": calls[0][1]}
                for name, calls in found.items()]  # fmt: skip

    def _nodes(self, name: str) -> list[str] | None:
        """The ONNX nodes in a fused or transformed node's name."""
        parts = [re.sub("_nchwc$", "", part) for part in name.split(" ")]
        return [part for part in parts if part in self.nodes] or None

    def release(self) -> None:
        """Let the other sessions go."""
        self.beside = []


BACKENDS: Dict[str, Callable[[], Any]] = {
    "tensorrt": TensorRT, "onnxruntime": OnnxRuntime, "onnxruntime-cuda": OnnxRuntimeCuda,
    "onnxruntime-tensorrt": OnnxRuntimeTensorRT,
}  # fmt: skip


def _write(path: str, blob: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    temporary = f"{path}.{os.getpid()}.tmp"  # of this worker: two may build on one board
    with open(temporary, "wb") as stream:
        stream.write(blob)
    os.replace(temporary, path)


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}".lower()


def _first_line(path: str) -> str | None:
    return _content(path).partition("\n")[0].strip("\0 ") or None


def _content(path: str) -> str:
    """What a file says; empty where it is absent, not for this user, or goes meanwhile."""
    try:
        with open(path, errors="replace") as stream:
            return stream.read().strip("\0\n ")
    except OSError:
        return ""


def _number(path: str) -> float | None:
    try:
        return float(_first_line(path) or "")
    except ValueError:
        return None


def _power_mode() -> str | None:
    """The Jetson's power mode, as nvpmodel words it; None where there is no nvpmodel."""
    if shutil.which("nvpmodel") is None:
        return None
    try:
        asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join((asked.stdout + asked.stderr).decode(errors="replace").split())


def affinity() -> list[int]:
    """The CPUs that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


CPU = "sys/devices/system/cpu"
CPU_LIMITS = {"governor": "scaling_governor", "cpu_min_hz": "scaling_min_freq",
              "cpu_max_hz": "scaling_max_freq"}  # fmt: skip
DEVFREQ_LIMITS = {"governor": "governor", "min_hz": "min_freq", "max_hz": "max_freq"}
GPU_CLOCKS = ("gpu", "gv11b", "gp10b", "ga10b", "gb10b")  # in names of a Jetson's devfreq
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what libraries take their threads from
BUSY, IDLE, STEAL = (0, 1, 2, 5, 6), (3, 4), 7  # columns of /proc/stat; guests are in user
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
NS = 1e-9


def facts(root: str) -> dict[str, Any]:
    """What a machine is set to and latency depends on; None where nothing tells.

    Of several values among the CPUs in use, such as those of two clusters, each is told once.
    `clock_limits` are those of a Jetson's GPU, memory and engines, by devfreq and by nvpmodel.
    """
    cpus, limits = affinity(), {}
    for name, file in CPU_LIMITS.items():
        told = [_first_line(os.path.join(root, CPU, f"cpu{n}", "cpufreq", file)) for n in cpus]
        found = sorted({_setting(text, 1000) for text in told if text}, key=str)
        limits[name] = found[0] if len(found) == 1 else found or None
    driver = _content(os.path.join(root, "proc/driver/nvidia/version"))
    version = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", driver)
    return {
        "cpu": cpu_model(root), "cores": _online(root), "usable_cores": len(cpus),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ} or None,
        "cpu_boost": _boost(root), "clock_limits": _clock_limits(root) or None,
        "cpu_quota": _content(os.path.join(root, "sys/fs/cgroup/cpu.max")) or None,
        "driver_version": version[1] if version else None, **limits,
    }  # fmt: skip


def cpu_model(root: str) -> str:
    """The processor's model; a board without a model name gives its device-tree model."""
    info = re.search(r"^model name\s*:\s*(.+)$", _content(os.path.join(root, "proc/cpuinfo")), re.M)
    board = _first_line(os.path.join(root, "proc/device-tree/model"))
    return (info[1].strip() if info else board) or platform.processor() or platform.machine()


def _online(root: str) -> int:
    """How many CPUs are on; nvpmodel turns some off."""
    text = _content(os.path.join(root, CPU, "online"))
    spans = [[int(n) for n in span.split("-")] for span in re.findall(r"\d+(?:-\d+)?", text)]
    return sum(span[-1] - span[0] + 1 for span in spans) or os.cpu_count() or 1


def _setting(text: str, unit: int) -> int | str:
    """A clock in Hz, or the word that stands for one."""
    return int(text) * unit if text.isdigit() else text


def _boost(root: str) -> bool | None:
    """Whether a CPU may exceed its nominal clock."""
    no_turbo = _number(os.path.join(root, CPU, "intel_pstate/no_turbo"))
    if no_turbo is not None:
        return no_turbo == 0
    boost = _number(os.path.join(root, CPU, "cpufreq/boost"))
    return None if boost is None else boost == 1


def _clock_limits(root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/devfreq/*"))):
        told = {k: _first_line(os.path.join(folder, file)) for k, file in DEVFREQ_LIMITS.items()}
        found[os.path.basename(folder)] = {k: _setting(v, 1) for k, v in told.items() if v}
    for path in sorted(glob.glob(os.path.join(root, "sys/kernel/nvpmodel_*cap/*"))):
        text = _first_line(path)  # of the memory and the DLA, which have no devfreq
        if text:
            found[f"nvpmodel.{os.path.basename(path)}"] = _setting(text, 1)
    return {name: value for name, value in found.items() if value != {}}


def signals(root: str, pids: Iterable[int | str], cpus: Iterable[int]) -> dict[str, Any]:
    """Counters and clocks at this moment; what nothing tells is absent.

    Args:
        root: what stands for `/`.
        pids: the processes that measure, the timed one first.
        cpus: on which these may run.

    Returns:
        Of all CPUs in question, in CPU seconds: `busy_s` of every process, `total_s` with the idle
        ones, `steal_s` that a virtual machine's host gave to others. Of the processes: `own_s` that
        they had. Of the timed one: `wait_s` that it was ready and had no CPU, `switches` that took
        it off one, `quota_s` that its control group was held back. `throttle_events` of the CPU's
        temperature and of a Jetson's current, `cooling`, the steps by which cooling devices other
        than fans slow something down, `cpu_hz` and `gpu_hz`, the fastest of either.
    """
    pids, cpus = list(pids), set(cpus)
    own = [_threads(root, pid) for pid in pids]
    timed = own[0] if own else (None, None, None)
    clocks = _clocks(os.path.join(root, "sys"))
    gpu = [hz for name, hz in clocks.items() if hz and any(word in name for word in GPU_CLOCKS)]
    khz = [_number(os.path.join(root, CPU, f"cpu{n}/cpufreq/scaling_cur_freq")) for n in cpus]
    found = {
        **_ticks(root, cpus), "own_s": _total([ran for ran, _, _ in own]),
        "wait_s": timed[1], "switches": timed[2],
        "quota_s": _quota(root, pids[0]) if pids else None,
        "throttle_events": _throttles(root, cpus), "cooling": _total(cooling(root).values()),
        # an idle core's clock says nothing of the one that computes
        "cpu_hz": 1000 * max(filter(None, khz)) if any(khz) else None,
        "gpu_hz": float(max(gpu)) if gpu else None,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _ticks(root: str, cpus: set[int]) -> dict[str, float]:
    busy = idle = steal = 0.0
    for line in _content(os.path.join(root, "proc/stat")).splitlines():
        found = re.match(r"cpu(\d+) ", line)
        if found and int(found[1]) in cpus:
            columns = [int(word) for word in line.split()[1:]] + [0] * 8
            busy += sum(columns[i] for i in BUSY)
            idle += sum(columns[i] for i in IDLE)
            steal += columns[STEAL]
    if not busy + idle:
        return {}
    found_s = {"busy_s": busy, "total_s": busy + idle + steal, "steal_s": steal}
    return {name: ticks / TICKS_PER_S for name, ticks in found_s.items()}


def _threads(root: str, pid: int | str) -> tuple[float | None, float | None, float | None]:
    """Seconds that a process's threads ran and waited, and their involuntary switches."""
    ran, waited, switches = [], [], []
    for task in glob.glob(os.path.join(root, f"proc/{pid}/task/*")):
        words = _content(os.path.join(task, "schedstat")).split()
        if len(words) == 3:
            ran.append(int(words[0]) * NS)
            waited.append(int(words[1]) * NS)
        status = _content(os.path.join(task, "status"))
        found = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", status, re.M)
        if found:
            switches.append(float(found[1]))
    if not ran:  # a kernel without the scheduler's statistics; coarser
        fields = _content(os.path.join(root, f"proc/{pid}/stat")).rpartition(")")[2].split()
        ran = [(int(fields[11]) + int(fields[12])) / TICKS_PER_S] if len(fields) > 12 else []
    return _total(ran), _total(waited), _total(switches)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _quota(root: str, pid: int | str) -> float | None:
    """Seconds that the control group was held back: cgroup 2 in microseconds, 1 in nanoseconds."""
    for line in _content(os.path.join(root, f"proc/{pid}/cgroup")).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        base = os.path.join(root, "sys/fs/cgroup", kinds)
        for group in (
            os.path.join(base, path.lstrip("/")),
            base,
        ):  # in a container it is its host's
            text = _content(os.path.join(group, "cpu.stat"))
            found = re.search(r"^throttled_(usec|time) (\d+)", text, re.M)
            if found:
                return int(found[2]) * (1e-6 if found[1] == "usec" else NS)
    return None


def _throttles(root: str, cpus: set[int]) -> float | None:
    paths = [os.path.join(root, CPU, f"cpu{n}/thermal_throttle/{kind}_throttle_count")
             for n in sorted(cpus) for kind in ("core", "package")]  # fmt: skip
    paths += glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"))
    return _total(map(_number, paths))


def cooling(root: str) -> dict[str, float]:
    """By how many steps each cooling device but a fan slows its machine down, by its type."""
    found: dict[str, float] = {}
    for folder in glob.glob(os.path.join(root, "sys/class/thermal/cooling_device*")):
        kind, state = (
            _first_line(os.path.join(folder, "type")) or "",
            _number(os.path.join(folder, "cur_state")),
        )
        if state is not None and "fan" not in kind.lower():
            found[kind] = found.get(kind, 0.0) + max(0.0, state)
    return found


def sensors(root: str) -> dict[str, Any]:
    """What passes and is told in a report: temperatures, load, power, what throttles now."""
    load = _content(os.path.join(root, "proc/loadavg")).split()
    rails = ina3221(root)
    celsius = {}
    for zone in sorted(glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*"))):
        value = _number(os.path.join(zone, "temp"))  # a Jetson's engine that is off tells none
        if value is not None:
            kind = _first_line(os.path.join(zone, "type")) or os.path.basename(zone)
            celsius[kind] = value / 1000
    busy = [_number(os.path.join(folder, "device/load"))  # in tenths of a per cent
            for folder in glob.glob(os.path.join(root, "sys/class/devfreq/*"))
            if any(word in os.path.basename(folder) for word in GPU_CLOCKS)]  # fmt: skip
    found = {
        "os_version": _first_line(os.path.join(root, "proc/sys/kernel/osrelease")),
        "load_average": [float(word) for word in load[:3]], "celsius": celsius,
        "clocks_hz": _clocks(os.path.join(root, "sys")),
        "throttling": sorted(kind for kind, steps in cooling(root).items() if steps),
        "power_w": {name: mw / 1000 for name, mw in rails.read().items()} if rails else None,
        "gpu_busy_percent": next((value / 10 for value in busy if value is not None), None),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def _clocks(root: str = "/sys") -> dict[str, int]:
    """Frequencies in Hz by name: a Jetson's GPU and memory by devfreq, any machine's CPUs."""
    found = {}
    for pattern, name_at, unit in (
        ("class/devfreq/*/cur_freq", -2, 1),
        ("devices/system/cpu/cpufreq/policy*/scaling_cur_freq", -2, 1000),
    ):
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            text = _first_line(path) or ""
            if text.isdigit():
                found[path.split(os.sep)[name_at]] = int(text) * unit
    return found


def _memory(path: str = "/proc/meminfo") -> dict[str, int | None]:
    """Total and free memory of the machine in MiB; a Jetson's GPU uses the same."""
    found: dict[str, int | None] = {"total": None, "free": None}
    try:
        with open(path) as stream:
            lines = dict(line.split(":", 1) for line in stream if ":" in line)
        for name, key in (("total", "MemTotal"), ("free", "MemAvailable")):
            found[name] = int(lines[key].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        pass
    return found


def _disk() -> int | None:
    try:
        return shutil.disk_usage(os.getcwd()).free // MIB
    except OSError:
        return None


SAMPLE_S = 0.02  # between two looks at the power; what is slower sets its own pace
CHUNK_S = 0.25  # of inferences between two looks at the clock
SM_CLOCK = 1  # NVML_CLOCK_SM


class GpuProcess(ctypes.Structure):
    """nvmlProcessInfo_t, versions 2 and 3."""

    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong),
                ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)]  # fmt: skip


class Nvml:
    """What NVIDIA's management library tells of the GPU of a CUDA context."""

    def __init__(self, cuda: Cuda, lib: Any = None) -> None:
        """Raise OSError where the library is absent or does not know this GPU."""
        self.lib, self.gpu = lib or ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        bus = ctypes.create_string_buffer(32)
        cuda.call("cuDeviceGetPCIBusId", bus, 32, cuda.device)
        handle: tuple[Any, ...] = (bus, ctypes.byref(self.gpu))
        for name, values in (("nvmlInit_v2", ()), ("nvmlDeviceGetHandleByPciBusId_v2", handle)):
            status = getattr(self.lib, name)(*values)
            if status:
                raise OSError(status, f"{name} gives status {status}")

    def value(self, name: str, kind: Any, *which: int) -> int | None:
        """A number of the GPU; None where this one or its driver does not tell."""
        found, function = kind(), getattr(self.lib, name, None)
        status = function(self.gpu, *which, ctypes.byref(found)) if function else 1
        return None if status else int(found.value)

    def power(self) -> Rails:
        """Energy by its counter, which misses nothing between two looks, or else the power."""
        for name, kind, unit in (
            ("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, "mJ"),
            ("nvmlDeviceGetPowerUsage", ctypes.c_uint, "mW"),
        ):
            if self.value(name, kind) is not None:
                return Rails("NVML", unit, partial(self._rail, name, kind))
        raise OSError("this GPU tells NVML neither energy nor power")

    def _rail(self, name: str, kind: Any) -> dict[str, float]:
        found = self.value(name, kind)
        return {} if found is None else {"GPU": float(found)}

    def facts(self) -> dict[str, str]:
        """Its limits, as nvidia-smi words them; what it does not tell is absent."""
        limit = self.value("nvmlDeviceGetPowerManagementLimit", ctypes.c_uint)
        clock = self.value("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, SM_CLOCK)
        found = {"gpu_power_limit_w": None if limit is None else f"{limit / 1000:.2f}",
                 "gpu_max_clock_mhz": None if clock is None else str(clock)}  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def signals(self) -> dict[str, float]:
        """`gpu_hz` and `gpu_flags`, the mask of what throttles it; absent what it does not tell."""
        mhz = self.value("nvmlDeviceGetClockInfo", ctypes.c_uint, SM_CLOCK)
        flags = self.value("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        found = {"gpu_hz": mhz and mhz * 1e6, "gpu_flags": flags}
        return {name: value for name, value in found.items() if value is not None}

    def process_mb(self) -> float | None:
        """GPU memory of this process."""
        found, count = (GpuProcess * 256)(), ctypes.c_uint(256)
        for version in ("_v3", "_v2"):
            ask = getattr(self.lib, "nvmlDeviceGetComputeRunningProcesses" + version, None)
            if ask and not ask(self.gpu, ctypes.byref(count), found):
                break
        else:
            return None
        all_of_it = found[: count.value]
        mine = [entry for entry in all_of_it if entry.pid == os.getpid()]
        if not mine and len(all_of_it) == 1:  # in a container the ids are the host's
            mine = all_of_it
        used = mine[0].used if mine else 2**64 - 1  # which is NVML's "not available"
        return None if used == 2**64 - 1 else used / MIB


class Rails:
    """Where power is read: milliwatts of each rail, or millijoules that it has used so far."""

    def __init__(self, source: str, unit: str, read: Callable[[], dict[str, float]],
                 close: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """`read` gives values by rail; what it cannot read is absent."""
        self.source, self.unit, self.read, self.close = source, unit, read, close

    def during(self, act: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """What `act` returns, and [seconds, values by rail] of each look meanwhile."""
        found: list[Any] = []
        done, start = threading.Event(), time.perf_counter()

        def look() -> None:
            while not done.is_set():
                try:
                    values = self.read()
                except (OSError, ValueError):  # a sensor may be busy; the next look will tell
                    values = {}
                found.append([time.perf_counter() - start, values])
                done.wait(SAMPLE_S)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            answer = act()
        finally:
            done.set()
            thread.join(5.0)
        return answer, [look for look in list(found) if look[1]]


def ina3221(root: str) -> Rails | None:
    """The rails that a Jetson's INA3221 sensors measure: hwmon since JetPack 5, iio before."""
    drivers, found = os.path.join(root, "sys/bus/i2c/drivers/ina3221*/*"), {}
    for pattern, voltage, current in (
        ("hwmon/hwmon*/in[123]_label", "in%s_input", "curr%s_input"),  # mV and mA
        ("iio*/rail_name_[012]", "in_voltage%s_input", "in_current%s_input"),
    ):
        for path in sorted(glob.glob(os.path.join(drivers, pattern))):
            folder, channel = os.path.split(path)
            number = "".join(re.findall("[0-9]", channel))
            files = [os.path.join(folder, name % number) for name in (voltage, current)]
            label = _first_line(path) or "NC"
            if label != "NC" and None not in [_number(file) for file in files]:
                found[label] = files

    def read() -> dict[str, float]:
        values = {label: [_number(file) for file in files] for label, files in found.items()}
        return {k: v[0] * v[1] / 1000 for k, v in values.items() if None not in v}  # type: ignore[operator]

    return Rails("INA3221", "mW", read) if found else None


def tegrastats_mw(line: str) -> dict[str, float]:
    """Power by rail in a line of tegrastats, `NAME now/mean` in mW, which newer ones write out."""
    pairs = re.findall(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)", line)
    return {name: float(now) for name, now in pairs}


def tegrastats() -> Rails | None:
    """The rails that tegrastats prints; None where there is none, or it prints no power."""
    if shutil.which("tegrastats") is None:
        return None
    command = ["tegrastats", "--interval", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    stream: Any = process.stdout

    def read() -> dict[str, float]:
        return tegrastats_mw(stream.readline().decode(errors="replace"))

    def close() -> None:
        process.terminate()
        process.wait()
        stream.close()

    if read():
        return Rails("tegrastats", "mW", read, close)
    close()
    return None


def find_power(cuda: Cuda | None, root: str = "/", nvml: Any = None) -> Rails | str:
    """What measures power here: INA3221, NVML or tegrastats; or why nothing does."""
    found, why = ina3221(root), "no GPU"
    if found is None and cuda is not None:
        try:
            found = Nvml(cuda, nvml).power()
        except (OSError, AttributeError, WorkerError) as error:
            why = f"NVML: {error}"
    return found or tegrastats() or f"no INA3221 sensor, no power in tegrastats, {why}"


class Worker:
    """One backend and its loaded networks; each operation answers with plain JSON values."""

    root = "/"  # of /proc and /sys
    nvml: Any = None  # the library; None opens the driver's own

    def __init__(self, backend: str) -> None:
        """Open a backend by name."""
        if np is None:
            raise WorkerError("numpy-missing", "numpy does not import")
        if backend not in BACKENDS:
            raise WorkerError("backend-unknown", f"no backend {backend!r}")
        self.name, self.backend = backend, BACKENDS[backend]()
        self.loaded: dict[str, Any] = {}
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "hello": self.hello, "signals": self.signals, "stat": self.stat, "remove": self.remove,
            "build": self.backend.build, "load": self.load, "run": self.run, "time": self.time,
            "profile": self.profile, "power": self.power, "memory": self.memory,
            "unload": self.unload, "quit": self.quit,
        }  # fmt: skip

    def hello(self) -> dict[str, Any]:
        """Versions, machine and GPU: what a measurement here depends on."""
        root, memory = self.root, os.path.join(self.root, "proc/meminfo")
        return {
            "protocol": PROTOCOL, "backend": self.name, "backend_version": self.backend.version,
            "python": platform.python_version(), "numpy": np.__version__, "platform": _platform(),
            "module": _first_line(os.path.join(root, "proc/device-tree/model")),
            "l4t": _first_line(os.path.join(root, "etc/nv_tegra_release")),
            "power_mode": _power_mode(), "machine": {**facts(root), **self._nvml("facts")},
            "clocks": _clocks(os.path.join(root, "sys")), "memory_mb": _memory(memory),
            "disk_mb": _disk(), "modes": list(self.backend.modes), "streams": STREAMS,
            **self.backend.about(),
        }  # fmt: skip

    def signals(self, beside: Any = (), with_sensors: bool = True) -> dict[str, Any]:
        """Counters, clocks and throttling now (`signals` above); what nothing tells is absent.

        Args:
            beside: ids of further processes of this machine that take part in measuring.
            with_sensors: temperatures, load and power (`sensors`) too, which take some ms.
        """
        found = signals(self.root, ["self", *map(int, beside)], affinity())
        more = sensors(self.root) if with_sensors else {}
        return {**more, **found, **self._nvml("signals")}

    def _nvml(self, method: str) -> dict[str, Any]:
        """What NVML tells of the backend's GPU; nothing where there is none of either."""
        found: dict[str, Any] = {}
        if self.backend.cuda is not None:
            with suppress(OSError, AttributeError, WorkerError):
                found = getattr(Nvml(self.backend.cuda, self.nvml), method)()
        return found

    def stat(self, path: str) -> dict[str, Any]:
        """Whether a file is there, its size and its SHA-256."""
        if not os.path.isfile(path):
            return {"exists": False, "bytes": 0, "sha256": None}
        hashed = hashlib.sha256()
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(MIB), b""):
                hashed.update(block)
            return {"exists": True, "bytes": stream.tell(), "sha256": hashed.hexdigest()}

    def remove(self, path: str) -> dict[str, Any]:
        """Delete a file, if it is there."""
        if os.path.lexists(path):
            os.remove(path)
        return {}

    def unload(self, name: str) -> dict[str, Any]:
        """Free a loaded network."""
        self._network(name).release()
        del self.loaded[name]
        return {}

    def quit(self) -> dict[str, Any]:
        """Free everything."""
        while self.loaded:
            self.loaded.popitem()[1].release()
        self.backend.close()
        return {}

    def load(self, path: str, name: str = "main", graph: bool = False,
             expected: Any = None, threads: int = 0) -> dict[str, Any]:  # fmt: skip
        """Load a built network under a name, in place of one that had it.

        With `graph` it runs as a CUDA graph, with `threads` on so many of a CPU. `expected` stands
        in for a lost record: its `sha256`, `tensorrt` or `onnxruntime`, `compute_capability` and
        `platform`.
        """
        if threads and self.backend.cuda:
            raise WorkerError("mode-refused", f"{self.name} runs on no threads of a CPU")
        more = {"threads": threads} if threads else {}
        fresh = self.backend.load(path, graph, expected, **more)
        if name in self.loaded:
            self.loaded.pop(name).release()
        self.loaded[name] = fresh
        return dict(fresh.about(), name=name)

    def _network(self, name: str) -> Any:
        if name not in self.loaded:
            there = ", ".join(self.loaded) or "nothing"
            raise WorkerError("not-loaded", f"no network is loaded as {name!r}; {there} is")
        return self.loaded[name]

    def _ready(self, name: str, path: str) -> tuple[Any, dict[str, Any]]:
        network = self._network(name)
        with np.load(path, allow_pickle=False) as arrays:
            return network, {key: arrays[key] for key in arrays.files}

    def run(self, inputs: str, outputs: str, name: str = "main") -> dict[str, Any]:
        """Arrays from one npz file, by input name, to another, by output name."""
        network, arrays = self._ready(name, inputs)
        found = network.run(arrays)
        np.savez(outputs, **found)
        return {"outputs": {key: list(value.shape) for key, value in found.items()}}

    def time(self, inputs: str, iterations: int = 50, warmup: int = 10, name: str = "main",
             mode: str = "device", samples: bool = False,
             streams: int = 1) -> dict[str, Any]:  # fmt: skip
        """Latency in milliseconds of inferences, one after the other or several in flight.

        Args:
            inputs: npz file.
            iterations: inferences that count.
            warmup: inferences before them.
            name: of the loaded network.
            mode: device (inputs on the GPU, events around each), graph (the same as a CUDA graph),
                end_to_end (copies from and to pinned memory, by the clock), copy_in or copy_out
                (one of the two) or enqueue (queued one after the other, events between them).
            samples: answer with each inference too.
            streams: inferences in flight; above 1 each has a context, or session, of its own.

        Returns:
            `device`, `wall` and `end_to_end`, null where the mode has no such clock; with several
            streams `per_second`, inferences of all together.
        """
        if iterations < 1 or warmup < 0:
            raise WorkerError("request-invalid", "needs iterations >= 1 and warmup >= 0")
        if mode not in self.backend.modes:
            able = ", ".join(self.backend.modes)
            raise WorkerError("mode-refused", f"{self.name} times by {able}, not {mode!r}")
        if not 1 <= streams <= STREAMS or (streams > 1 and mode == "enqueue"):
            text = f"{mode} on {streams} streams; enqueue has one, the others 1 to {STREAMS}"
            raise WorkerError("mode-refused", text)
        network, arrays = self._ready(name, inputs)
        more: dict[str, Any] = {}
        if streams == 1:
            times, graph = network.time(arrays, warmup, iterations, mode)
        else:
            found = network.time_streams(arrays, warmup, iterations, mode, streams)
            times, graph, more["per_second"] = found
        clocks = ("device", "wall", "end_to_end")
        answer = {clock: _summary(times.get(clock, [])) for clock in clocks}
        if samples:
            more["samples"] = times
        return {"mode": mode, "graph": graph, **answer, **more}

    def profile(self, inputs: str, iterations: int = 20, name: str = "main") -> dict[str, Any]:
        """Mean milliseconds of each layer; the total is more than an unprofiled inference takes."""
        if iterations < 1:
            raise WorkerError("request-invalid", "needs iterations >= 1")
        network, arrays = self._ready(name, inputs)
        layers = network.profile(arrays, iterations)
        return {"layers": layers, "total_ms": sum(layer["ms"] for layer in layers)}

    def power(self, inputs: str, seconds: float = 5.0, idle_s: float = 2.0, name: str = "main",
              mode: str = "device") -> dict[str, Any]:  # fmt: skip
        """Readings of the power while nothing runs, then while inferences follow each other.

        Args:
            inputs: npz file.
            seconds: of inferences; a fifth more warms up.
            idle_s: before them, with the network loaded.
            name: of the loaded network.
            mode: of `time`.

        Returns:
            `unavailable`: why nothing tells; or `source`, `unit` (mW, or mJ so far), `graph`,
            `idle` and `busy`: `samples` ([seconds, {rail: value}]), and of busy its `seconds` and
            `inferences`.
        """
        if not 0 < seconds <= 300 or not 0 < idle_s <= 60:
            raise WorkerError("request-invalid", "needs 0 < seconds <= 300 and 0 < idle_s <= 60")
        if mode not in self.backend.modes:
            able = ", ".join(self.backend.modes)
            raise WorkerError("mode-refused", f"{self.name} runs by {able}, not {mode!r}")
        network, arrays = self._ready(name, inputs)
        rails = find_power(self.backend.cuda, self.root, self.nvml)
        if isinstance(rails, str):
            return {"unavailable": rails}
        try:
            _, idle = rails.during(partial(time.sleep, idle_s))
            _busy(network, arrays, mode, seconds / 5)
            (count, took, graph), busy = rails.during(
                partial(_busy, network, arrays, mode, seconds)
            )
        finally:
            rails.close()
        return {"source": rails.source, "unit": rails.unit, "mode": mode, "graph": graph,
                "idle": {"samples": idle},
                "busy": {"samples": busy, "seconds": took, "inferences": count}}  # fmt: skip

    def memory(self, restart: bool = False) -> dict[str, Any]:
        """Memory now, in MiB; what nothing tells is null.

        Args:
            restart: forget the highest resident size so far, where the kernel lets it.

        Returns:
            `resident_mb` and `peak_mb` of this process, `restarted`; `available_mb` of the machine;
            `unified`, whether its GPU uses the same; `gpu_mb` of this process on the GPU, and
            `gpu_used_mb` of all.
        """
        restarted, process = False, os.path.join(self.root, "proc/self")
        if restart:
            with suppress(OSError), open(os.path.join(process, "clear_refs"), "w") as stream:
                stream.write("5")  # proc(5): the peak becomes the size of now
                stream.flush()  # here, where a refusal is seen
                restarted = True
        cuda, gpu, used, unified = self.backend.cuda, None, None, False
        if cuda is not None:
            told = cuda.about()
            used = told["memory_mb"] - told["free_mb"]
            unified = bool(cuda._attribute(18, cuda.device))  # integrated
            with suppress(OSError, AttributeError, WorkerError):  # told by none: null
                gpu = Nvml(cuda, self.nvml).process_mb()
        resident, peak = _sizes(os.path.join(process, "status"))
        return {"resident_mb": resident, "peak_mb": peak, "restarted": restarted,
                "available_mb": _memory(os.path.join(self.root, "proc/meminfo"))["free"],
                "unified": unified, "gpu_mb": gpu, "gpu_used_mb": used}  # fmt: skip

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


def _busy(network: Any, arrays: dict[str, Any], mode: str,
          seconds: float) -> tuple[int, float, bool]:  # fmt: skip
    """Inferences one after the other for about so long: their count, seconds, and CUDA graph."""
    count, chunk, start = 0, 1, time.perf_counter()
    while True:
        _, graph = network.time(arrays, 0, chunk, mode)
        count, took = count + chunk, time.perf_counter() - start
        if took >= seconds:
            return count, took, graph
        chunk = max(1, int(min(CHUNK_S, seconds - took) * count / took))


def _sizes(path: str) -> tuple[float | None, float | None]:
    """Resident size of a process and its peak in MiB, of its `status`."""
    found = dict(re.findall(r"^Vm(RSS|HWM):\s*(\d+) kB", _content(path), re.M))
    resident, peak = (float(found[k]) / 1024 if k in found else None for k in ("RSS", "HWM"))
    return resident, peak


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
