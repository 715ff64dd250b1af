"""ONNX Runtime on the CPU, which runs the network during calibration."""

from typing import Any

from onnx import ModelProto

from kdcompile.lazy import need

QUIET = 3  # errors only: ONNX Runtime's severity


def cpu_session(model: ModelProto, as_written: bool = False) -> Any:
    """An ONNX Runtime session of a model in memory.

    Args:
        model: at most 2 GB.
        as_written: compute each Q/DQ pair where it stands. Else ONNX Runtime moves pairs and fuses
            them into integer kernels, whose results differ by a step now and then, and which are
            wrong for fp8.

    Raises:
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "calibration")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
