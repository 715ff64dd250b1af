"""ONNX Runtime on the CPU: the reference that an exported file is held to."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.core.optional import need

QUIET = 3  # errors only: ONNX Runtime's severity


def cpu_session(model: ModelProto | Path) -> Any:
    """An ONNX Runtime session of a model in memory or in a file.

    Raises:
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "checking an exported network")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_onnx(model: ModelProto | Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output for one input."""
    session = cpu_session(model)
    output: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: image})[0]
    return output
