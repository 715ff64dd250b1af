"""TensorRT-RTX as a compile check: it parses and compiles without a GPU."""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kdcompile.config.deploy import Profile

LABEL = (
    "compile check with TensorRT-RTX: proves that a TensorRT parser and compiler take the graph; "
    "it is not an engine for the target"
)


def compile_check(
    onnx_path: Path,
    capabilities: Sequence[str] = ("8.0", "8.6"),
    profile: Profile | None = None,
) -> list[dict[str, Any]]:
    """Compile an ONNX file for each compute capability, on the CPU.

    Args:
        onnx_path: the file.
        capabilities: such as "8.6"; one that the library does not know is a failed check.
        profile: smallest, typical and largest input shape; needed where a size is free.

    Returns:
        For each capability `{check, capability, ok, engine_bytes, seconds, errors, version}`, with
        `errors` a list of `{node, message}`. Without the library `ok` is None and `skipped` says
        why: a skipped check has not passed.
    """
    try:
        trt = importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError) as error:
        reason = f"tensorrt_rtx does not import ({error}); pip install 'kdcompile[rtx]'"
        return [_row(capability, skipped=reason) for capability in capabilities]
    return [_check(trt, onnx_path, capability, profile) for capability in capabilities]


def _check(
    trt: ModuleType, onnx_path: Path, capability: str, profile: Profile | None
) -> dict[str, Any]:
    start = time.perf_counter()
    size, errors = _compile(trt, onnx_path, capability, profile)
    return _row(
        capability,
        ok=size is not None,
        engine_bytes=size,
        seconds=time.perf_counter() - start,
        errors=errors,
        version=str(trt.__version__),
    )


def _row(capability: str, **known: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("ok", "engine_bytes", "seconds", "version"))
    return {"check": LABEL, "capability": capability, **nothing, "errors": [], **known}


def _compile(
    trt: ModuleType, onnx_path: Path, capability: str, profile: Profile | None
) -> tuple[int | None, list[dict[str, str]]]:
    """The size of the engine, or None and why there is none."""
    messages: list[str] = []
    logger = _logger(trt, messages)
    wanted = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
    if wanted is None:
        message = f"TensorRT-RTX {trt.__version__} has no compute capability {capability}"
        return None, [{"node": "", "message": message}]
    builder = trt.Builder(logger)
    # strongly typed is the only kind; the flag exists for callers of older generations
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        return None, [{"node": _node(e), "message": e.desc()} for e in found]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(wanted, 0)
    dynamic = [t for t in map(network.get_input, range(network.num_inputs)) if -1 in t.shape]
    if dynamic and profile is None:
        message = "the input has free sizes: give the smallest, typical and largest shape"
        return None, [{"node": dynamic[0].name, "message": message}]
    if dynamic and profile is not None:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(dynamic[0].name, *(tuple(shape) for shape in profile))
        config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reasons = messages or ["the compiler gave no reason"]
        return None, [{"node": "", "message": message} for message in reasons]
    return int(engine.nbytes), []


def _node(error: Any) -> str:
    """The node that a parser error names: its name and operator."""
    return " ".join(part for part in (error.node_name(), f"({error.node_operator()})") if part)


def _logger(trt: ModuleType, messages: list[str]) -> Any:
    """A logger that keeps error messages and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.append(message)

    return Log()
