"""The errors that a request can be answered with, each with a code and a remedy."""

from __future__ import annotations

from kdcompile.core.errors import KDError

FIXES = {
    "backend-unknown": "use tensorrt, onnxruntime, onnxruntime-cuda or onnxruntime-tensorrt",
    "build-failed": "raise the workspace, or free memory on the board",
    "cache-incomplete": "delete the timing cache, build once, then rebuild from what that left",
    "cuda-error": "free memory, or lower the workspace; see dmesg",
    "cuda-missing": "run on the board, with its own NVIDIA driver",
    "engine-damaged": "copy it again, or rebuild it here with build_engine.py",
    "engine-mismatch": "rebuild it here with build_engine.py",
    "engine-refused": "rebuild it here with build_engine.py",
    "engine-unknown": "build it here with build_engine.py, which writes the record beside it",
    "file": "check the path and the free disk",
    "graph-refused": "run it without a CUDA graph (mode device)",
    "input-missing": "name the arrays of the npz after the network's inputs",
    "input-refused": "give arrays of the network's own types",
    "internal": "report it, with the request",
    "mode-refused": "use one of hello's modes",
    "not-loaded": "send load first",
    "numpy-missing": "sudo apt install python3-numpy",
    "onnx-refused": "export again, with operators that this backend has",
    "onnxruntime-missing": "pip install onnxruntime (onnxruntime-gpu for cuda and tensorrt)",
    "option-refused": "leave this option out for this board",
    "precision-refused": "use one of hello's precisions",
    "profile-missing": "give min, opt and max shapes, as {input: [min, opt, max]} for several",
    "profile-refused": "min <= opt <= max, with the ONNX's own fixed sizes",
    "provider-fallback": "install the CUDA, cuDNN or TensorRT that this onnxruntime was built for, "
    "or use the backend tensorrt",
    "qdq-asymmetric": "quantise with symmetric int8 (zero points 0), as kdcompile calibrate does",
    "request-invalid": "send {id, op, ...} with an op and its values as the worker names them",
    "run-failed": "rebuild it here with build_engine.py",
    "streams-refused": "time it on one stream, or build it for one fixed shape",
    "shape-refused": "give a shape between the profile's min and max",
    "tensorrt-missing": "sudo apt install python3-libnvinfer (a part of JetPack)",
    "tensorrt-too-old": "flash JetPack 5.1 or later",
}


class WorkerError(KDError):
    """A failure of a request, with the remedy that its code has in `FIXES`, where none is given."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        """Keep the code and what went wrong."""
        super().__init__(code, message, fix=fix or FIXES[code])


def to_json(error: KDError) -> dict[str, str]:
    """An error as the protocol carries it."""
    return {"code": error.code, "message": error.message, "fix": error.fix}
