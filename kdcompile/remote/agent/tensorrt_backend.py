"""Builds and loads engines with TensorRT 8.5 to 11, by what the installed module has."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Any

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.engine_record import preflight, write_engine
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.onnx_file import OnnxFile
from kdcompile.remote.agent.system import MIB, platform_name, version_of, write_file
from kdcompile.remote.agent.tensorrt_network import (
    NEEDS_CAPABILITY,
    PRECISIONS,
    add_profile,
    layers_of,
    parse_errors,
    typing_plan,
)
from kdcompile.remote.agent.tensorrt_timing import TensorRTSession

MODES = ("device", "graph", "end_to_end", "copy_in", "copy_out", "enqueue")


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
              tf32: bool = True) -> dict[str, Any]:  # fmt: skip
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
            tf32: float32 layers may multiply in it.
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
        config = self._configure(builder, plan, workspace_mb, optimization_level)
        if tf32 is False:  # every generation sets it by default
            config.clear_flag(self.trt.BuilderFlag.TF32)
        fallback = self._use_dla(builder, network, config, dla, precision)
        add_profile(builder, network, config, profile)
        cache, cache_state = self._open_cache(config, timing_cache, deterministic)
        bound = self._bind_to_cache(config, deterministic, cache_state)
        made = builder.build_serialized_network(network, config)
        if made is None:
            if bound == "enforced" and re.search("timing.?cache", self.why(), re.IGNORECASE):
                raise WorkerError("cache-incomplete", f"{timing_cache}: {self.why()}")
            raise WorkerError("build-failed", self.why())
        blob = bytes(made)
        if cache is not None and bound != "enforced":
            write_file(timing_cache, bytes(config.get_timing_cache().serialize()))
        return write_engine(engine, blob, {
            "tensorrt": self.version, "compute_capability": self.cuda.capability,
            "gpu": self.cuda.name, "platform": platform_name(), "precision": precision,
            "flags": plan["flags"], "sha256": hashlib.sha256(blob).hexdigest(),
            "onnx_sha256": hashlib.sha256(source).hexdigest(), "bytes": len(blob),
            "timing_cache": cache_state, "deterministic": bound, "dla": dla,
            "workspace_mb": workspace_mb, "optimization_level": optimization_level,
            "tf32": tf32, "profile": profile,
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
            text = "; ".join(parse_errors(parser, graph))
            about_zero = re.search("zero.?point|symmetric quantization", text, re.IGNORECASE)
            raise WorkerError("qdq-asymmetric" if about_zero else "onnx-refused", text)
        return network, parser

    def _configure(self, builder: Any, plan: dict[str, Any], workspace_mb: int,
                   level: int | None) -> Any:  # fmt: skip
        trt, config = self.trt, builder.create_builder_config()
        for name in plan["flags"]:
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
        here = {"backend": "tensorrt", "version": self.version, "platform": platform_name(),
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
