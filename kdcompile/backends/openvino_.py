"""OpenVINO on an Intel CPU, in one file: ONNX networks in fp32 and, by their Q/DQ pairs, in int8.

What ships is the ONNX file itself, which OpenVINO reads and compiles as it loads it. Its exported
blob would be bound to one version and one CPU's instruction set, and an IR would be two files that
nothing else reads.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.backends.base import (
    Arrays,
    BuildOptions,
    Capabilities,
    Engine,
    Layer,
    Tensor,
    register,
)
from kdcompile.core.errors import KDError, ToolMissingError

if TYPE_CHECKING:
    from kdcompile.backends.base import Backend
    from kdcompile.targets import Target

CPUINFO = Path("/proc/cpuinfo")
OPSETS = (1, 23)


def open_network(path: str, threads: int = 0, profiled: bool = False) -> Any:
    """A compiled network as a function of one array; its attribute `request` is OpenVINO's.

    Arithmetic is float32 outside of Q/DQ pairs: on a CPU with bfloat16 units OpenVINO would
    otherwise compute an fp32 network in bfloat16.
    """
    import sys

    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it sends usage data
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if profiled:
        settings["PERF_COUNT"] = "YES"
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(image: Any) -> Any:
        request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
        request.infer()
        return request.get_output_tensor(0).data.copy()

    run.request = request  # type: ignore[attr-defined]
    return run


@register("openvino")
class OpenVino:
    """OpenVINO's CPU device; the library is imported when a network is built or loaded."""

    title, compiles = "OpenVINO", False
    precisions = ("fp32", "int8")
    opener = staticmethod(open_network)

    @property
    def version(self) -> str:
        """Of the distribution."""
        try:
            return version("openvino")
        except PackageNotFoundError:
            raise ToolMissingError(
                "tool-missing",
                "OpenVINO is not installed",
                fix="pip install 'kdcompile[openvino]'",
            ) from None

    def capabilities(self, target: "Target") -> Capabilities:
        """Precisions of both; int8 by Q/DQ pairs; no option of a builder."""
        able = tuple(p for p in self.precisions if p in target.precisions)
        return Capabilities(able, OPSETS)

    def differences(self, target: "Target", about: Mapping[str, Any]) -> list[str] | None:
        """Empty on an x86-64 CPU of the target's vendor; None on another CPU."""
        wanted = target.vendor.get("cpu_vendor")
        here = cpu_vendor()
        return [] if wanted is not None and here == wanted and _is_x86_64() else None

    def build(self, onnx: Path, engine: Path, options: BuildOptions) -> Engine:
        """The ONNX file, once OpenVINO has compiled it."""
        run = _opened(onnx, "onnx-refused", "export it again: kdcompile export")
        engine.write_bytes(onnx.read_bytes())
        return Engine(engine, layers=_origins(run.request.get_compiled_model()))

    def load(self, engine: Path, threads: int = 0) -> "OpenVinoNetwork":
        """A network compiled for this CPU."""
        return OpenVinoNetwork(engine, threads)


if TYPE_CHECKING:
    _backend: Backend = OpenVino()  # holds it against the protocol


class OpenVinoNetwork:
    """A compiled network and its one inference request."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self._request = _opened(path, "engine-refused", "build it again", threads).request
        self._compiled = self._request.get_compiled_model()

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs by name."""
        return {port.any_name: _tensor(port) for port in self._compiled.inputs}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """The outputs by name."""
        return {port.any_name: _tensor(port) for port in self._compiled.outputs}

    def run(self, inputs: Arrays) -> dict[str, Any]:
        """The outputs by name, copied."""
        self.bind(inputs)()
        return {name: self._request.get_tensor(name).data.copy() for name in self.outputs}

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Inference on inputs in OpenVINO's memory, which is this process's."""
        return _bound(self._request, inputs)

    def profile(self, inputs: Arrays, iterations: int) -> Sequence[Layer]:
        """Executed nodes with OpenVINO's own counters, in a second copy that counts."""
        opened = _opened(self.path, "engine-refused", "build it again", self.threads, True)
        go, found = _bound(opened.request, inputs), dict[str, list[Any]]()
        origins = _origins(opened.request.get_compiled_model())
        go()  # warms up
        for _ in range(iterations):
            go()
            for node in opened.request.profiling_info:
                if node.status == node.EXECUTED:
                    found.setdefault(node.node_name, []).append(node)
        return [
            Layer(
                name,
                sum(1000 * n.real_time.total_seconds() for n in nodes) / iterations,
                _precision(nodes[0].exec_type),
                origins.get(name, ()),
            )
            for name, nodes in found.items()
        ]


def cpu_vendor() -> str | None:
    """The vendor that this CPU reports, such as `GenuineIntel`; None where nothing tells it."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux: Windows names the vendor last in the identifier
        return next((word for word in reversed(platform.processor().split())), None)
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("vendor_id")), None)


def _is_x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _opened(path: Path, code: str, fix: str, threads: int = 0, profiled: bool = False) -> Any:
    try:
        return open_network(str(path), threads, profiled)
    except Exception as error:  # the library's have no base of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"OpenVINO does not load it: {' / '.join(lines[-2:])}"
        raise KDError(code, said, where=str(path), fix=fix) from error


def _bound(request: Any, inputs: Arrays) -> Callable[[], object]:
    import openvino

    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(np.array(array, order="C")))
    infer: Callable[[], object] = request.infer
    return infer


def _origins(compiled: Any) -> dict[str, tuple[str, ...]]:
    """The ONNX nodes that each executed node stands for, by its name."""
    found = {}
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        text = str(about["originalLayersNames"].get()) if "originalLayersNames" in about else ""
        found[node.get_friendly_name()] = tuple(name for name in text.split(",") if name)
    return found


def _tensor(port: Any) -> Tensor:
    sizes = (-1 if n.is_dynamic else n.get_length() for n in port.partial_shape)
    return Tensor(str(port.element_type.to_dtype()), tuple(sizes))


def _precision(exec_type: str) -> str | None:
    """The arithmetic at the end of a kernel's name, such as `brgconv_avx512_amx_i8`."""
    names = {"i8": "int8", "u8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}
    return names.get(exec_type.rsplit("_", 1)[-1])
