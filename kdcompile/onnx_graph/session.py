"""ONNX Runtime sessions, for everything that runs an ONNX network in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.optional import need

if TYPE_CHECKING:
    from onnx import ModelProto

QUIET = 3  # errors only: ONNX Runtime's severity
CPU = "CPUExecutionProvider"


def cpu_session(
    model: ModelProto | Path,
    as_written: bool = False,
    *,
    optimised: bool = True,
    threads: int | None = None,
    providers: Sequence[str] = (CPU,),
) -> Any:
    """An ONNX Runtime session of a model in memory or in a file.

    Args:
        model: in memory at most 2 GB.
        as_written: compute each Q/DQ pair where it is and keep biases float32, as TensorRT does.
            Else ONNX Runtime quantises biases too and fuses pairs into integer kernels.
        optimised: let ONNX Runtime fuse nodes and fold constants.
        threads: of one operator; None leaves the choice to the library.
        providers: execution providers, the preferred one first.

    Raises:
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "running ONNX")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if _has_fp8(model):  # from the next level on its results on fp8 are garbage (1.32)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=list(providers))


def _has_fp8(model: ModelProto | Path) -> bool:
    """Whether a network has constants of E4M3, as explicit fp8 pairs do."""
    import onnx

    loaded = onnx.load(model) if isinstance(model, Path) else model
    return any(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in loaded.graph.initializer)


def run_onnx(model: ModelProto | Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output for one input."""
    session = cpu_session(model)
    output: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: image})[0]
    return output
