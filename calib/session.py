"""ONNX Runtime on the CPU, which runs the network during calibration."""

from typing import Any

from onnx import ModelProto

from kdcompile.lazy import need

QUIET = 3  # errors only: ONNX Runtime's severity


def cpu_session(model: ModelProto) -> Any:
    """An ONNX Runtime session of a model in memory.

    Raises:
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "calibration")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
