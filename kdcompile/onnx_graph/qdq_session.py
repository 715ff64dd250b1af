"""ONNX Runtime on the CPU, which runs the network during calibration."""

from typing import Any

from onnx import ModelProto, TensorProto

from kdcompile.core.optional import need

QUIET = 3  # errors only: ONNX Runtime's severity


def cpu_session(model: ModelProto, as_written: bool = False) -> Any:
    """An ONNX Runtime session of a model in memory.

    Args:
        model: at most 2 GB.
        as_written: compute each Q/DQ pair where it stands and keep biases float32, as TensorRT
            does. Else ONNX Runtime quantises biases too and fuses pairs into integer kernels.

    Raises:
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "calibration")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if any(t.data_type == TensorProto.FLOAT8E4M3FN for t in model.graph.initializer):
            # from the next level on its results on fp8 are garbage (1.32)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
