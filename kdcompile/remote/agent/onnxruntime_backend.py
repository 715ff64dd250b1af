"""Builds and loads networks with ONNX Runtime on one execution provider."""

from __future__ import annotations

import hashlib
import os
import time
from functools import partial
from typing import Any

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.engine_record import preflight, write_engine
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.onnx_file import OnnxFile
from kdcompile.remote.agent.onnxruntime_session import CPU_PROVIDER, OnnxRuntimeSession
from kdcompile.remote.agent.system import platform_name, version_of


class OnnxRuntime:
    """ONNX Runtime on one execution provider; on the CPU it plays a board where there is none."""

    modes = ("device", "end_to_end", "copy_in", "copy_out")
    provider = CPU_PROVIDER
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
        if self.provider != CPU_PROVIDER:
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
              tf32: bool = True) -> dict[str, Any]:  # fmt: skip
        """Nothing to compile: the model is checked and copied, with the record of an engine.

        Profile, workspace and timing cache are TensorRT's and say nothing here; what would change
        the result is refused.
        """
        start = time.perf_counter()
        if precision not in self.precision_names:
            able = ", ".join(self.precision_names)
            raise WorkerError("precision-refused", f"{self.provider} has {able}, not {precision!r}")
        asked = {"deterministic": deterministic, "dla": dla is not None,
                 "optimization_level": optimization_level is not None,
                 "tf32": tf32 is False}  # fmt: skip
        for name, given in asked.items():
            if given:
                raise WorkerError("option-refused", f"ONNX Runtime has no option {name}")
        with open(onnx, "rb") as stream:
            blob = stream.read()
        self._open(blob, precision)
        sha256, nodes = hashlib.sha256(blob).hexdigest(), OnnxFile(blob).nodes
        return write_engine(engine, blob, {
            "onnxruntime": self.version, "compute_capability": self._capability(),
            "gpu": self.cuda.name if self.cuda else None, "platform": platform_name(),
            "precision": precision, "flags": [], "sha256": sha256, "onnx_sha256": sha256,
            "bytes": len(blob), "timing_cache": "none", "deterministic": "off", "dla": None,
            "workspace_mb": workspace_mb, "optimization_level": None,
            "profile": profile, "dla_fallback": None, "provider": self.provider,
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
        here = {"backend": "onnxruntime", "version": self.version, "platform": platform_name(),
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
