"""`triton/`: a model repository for Triton Inference Server.

It holds a copy of the network, not a link: a server follows no links out of its repository, and
the manifest lists the copy as any file. A student is small.
"""

import json
import re
import shutil
from pathlib import Path

from kdcompile.bundle.fill import fill
from kdcompile.bundle.manifest import ENGINE
from kdcompile.bundle.network_io import Tensor
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text

FOLDER = "triton"
TYPES = {
    "FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "BFLOAT16": "TYPE_BF16", "INT8": "TYPE_INT8",
    "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL",
}  # fmt: skip


def write_triton(
    folder: Path, name: str, target: str, device: str, io: tuple[Tensor, Tensor]
) -> None:
    """Write `triton/NAME/config.pbtxt` and the network, the engine where the bundle has one.

    Args:
        folder: the bundle, with its networks.
        name: of the build; characters that a server does not take become `_`.
        target: the device, for the file's comment.
        device: its kind: cpu, jetson or workstation.
        io: the network's input and output.

    Raises:
        KDError: `triton-type`, a tensor of a type that the server does not know.
    """
    has_plan = is_plan(folder)
    source, copy = (ENGINE, "model.plan") if has_plan else ("model.onnx", "model.onnx")
    served = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # an earlier board's
    version = folder / FOLDER / served / "1"
    version.mkdir(parents=True)
    shutil.copyfile(folder / source, version / copy)
    config = fill(
        "config.pbtxt.j2",
        name=served,
        target=target,
        platform="tensorrt_plan" if has_plan else "onnxruntime_onnx",
        awaits_engine=device == "jetson" and not has_plan,
        kind="KIND_CPU" if device == "cpu" else "KIND_GPU",
        inputs=[_entry(io[0])],
        outputs=[_entry(io[1])],
    )
    write_text(version.parent / "config.pbtxt", config)


def is_plan(folder: Path) -> bool:
    """Whether the bundle has an engine, and one of TensorRT (ONNX Runtime may play a board)."""
    record = folder / f"{ENGINE}.json"
    return record.is_file() and "tensorrt" in json.loads(record.read_text(encoding="utf-8"))


def _entry(tensor: Tensor) -> dict[str, str]:
    if tensor.type not in TYPES:
        raise KDError(
            "triton-type",
            f"Triton has no type for the tensor {tensor.name} of {tensor.type}",
            where="triton/",
            fix="export a network with float32 input and output: kdcompile export",
        )
    dims = ", ".join(map(str, tensor.dims))
    return {"name": tensor.name, "type": TYPES[tensor.type], "dims": dims}
