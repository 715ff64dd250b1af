"""ONNX Runtime sessions, for everything that runs an ONNX network in this process."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.optional import need
from kdcompile.core.ports import Port, Ports, as_row

if TYPE_CHECKING:
    from onnx import ModelProto

QUIET = 3  # errors only: ONNX Runtime's severity
CPU = "CPUExecutionProvider"
LARGE_BYTES = 1 << 28  # of a network in memory, of which ONNX Runtime would keep three copies
SYSTEM_ERROR = re.compile(r"system error number (\d+)")  # how it tells that a read failed
ROW_AXES = 2  # of a row [1, width]; an image has more
NUMPY_TYPES = {  # of ONNX Runtime's names
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(bool)": "bool",
}  # fmt: skip


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
        model: in memory at most 2 GB; a large one is read from a temporary file, since the session
            of a string keeps the string.
        as_written: compute each Q/DQ pair where it is and keep biases float32, as TensorRT does.
            Else ONNX Runtime quantises biases too and fuses pairs into integer kernels.
        optimised: let ONNX Runtime fuse nodes and fold constants.
        threads: of one operator; None leaves the choice to the library.
        providers: execution providers, the preferred one first.

    Raises:
        ToolMissingError: onnxruntime is not installed.
        OSError: the file cannot be read.
    """
    if not isinstance(model, Path) and model.ByteSize() > LARGE_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            return cpu_session(
                path, as_written, optimised=optimised, threads=threads, providers=providers
            )
    ort = need("onnxruntime", "cpu", "running ONNX")
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    if isinstance(model, Path) and model.stat().st_size > LARGE_BYTES:
        options.add_session_config_entry("session.disable_prepacking", "1")  # of one more copy
    if threads is not None:
        options.intra_op_num_threads = threads
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if _has_fp8(model):  # from the next level on its results on fp8 are garbage (1.32)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # its classes of errors have no other base
        failed = SYSTEM_ERROR.search(str(error))
        if failed is None or not isinstance(model, Path):
            raise
        number = int(failed[1])
        raise OSError(number, os.strerror(number), str(model)) from error


def _has_fp8(model: ModelProto | Path) -> bool:
    """Whether a network has constants of E4M3, as explicit fp8 pairs do."""
    import onnx

    loaded = onnx.load(model) if isinstance(model, Path) else model
    return any(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in loaded.graph.initializer)


def feeds_of(session: Any, given: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What a session is fed with.

    Args:
        session: of `cpu_session`.
        given: the input [N, C, H, W] of a network of images, or a row [1, width] of all inputs.
    """
    inputs = session.get_inputs()
    if given.ndim != ROW_AXES:
        return {inputs[0].name: given}
    return ports_of_session(session).unpack(given)


def ports_of_session(session: Any) -> Ports:
    """The inputs of a session whose sizes are fixed."""
    return Ports(
        tuple(Port(i.name, tuple(i.shape), NUMPY_TYPES[i.type]) for i in session.get_inputs())
    )


def run_session(session: Any, given: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output for an image; for a row all outputs as a row."""
    outputs: list[NDArray[np.float32]] = session.run(None, feeds_of(session, given))
    return as_row(outputs) if given.ndim == ROW_AXES else outputs[0]


def run_onnx(model: ModelProto | Path, given: NDArray[np.float32]) -> NDArray[np.float32]:
    """`run_session` of a model."""
    return run_session(cpu_session(model), given)
