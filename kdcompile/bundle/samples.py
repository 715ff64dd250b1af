"""Files for other runtimes: `cpp/` for a device without Python, `triton/` for Triton Server.

`triton/` holds a copy of the network, not a link: a server follows no links out of its repository,
and the manifest lists the copy like any file. A student is small.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdcompile import __version__
from kdcompile.bundle.manifest import ENGINE
from kdcompile.core.errors import KDError
from kdcompile.core.escape import c_string, markdown, plain
from kdcompile.core.files import write_text
from kdcompile.core.optional import need
from kdcompile.core.readers import read_json
from kdcompile.data.preprocess import INPUTS


def fill(template: str, **values: Any) -> str:
    """A template of `templates/` with its values; `version` is kdcompile's.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader("kdcompile.bundle"),
        autoescape=False,  # C++, text-proto and Markdown, which escape for themselves
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "literal": c_string, "float32": float32, "cell": markdown, "plain": plain
    }  # fmt: skip
    return environment.get_template(template).render(version=__version__, **values)


def float32(value: float) -> str:
    """A float literal of C++ that is the float32 nearest to the value."""
    text = f"{float(np.float32(value)):.9g}"
    return f"{text}f" if set(text) & set(".en") else f"{text}.0f"


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its name, ONNX element type and sizes, -1 where they may vary."""

    name: str
    type: str
    dims: tuple[int, ...]


IO = tuple[list[Tensor], list[Tensor]]  # inputs and outputs


def network_io(path: Path) -> IO:
    """The inputs and the outputs of an ONNX file.

    Raises:
        ToolMissingError: onnx is not installed.
    """
    onnx = need("onnx", "cpu", "reading the network")
    graph = onnx.load(path, load_external_data=False).graph
    fixed = {initializer.name for initializer in graph.initializer}
    inputs = [_tensor(onnx, value) for value in graph.input if value.name not in fixed]
    return inputs, [_tensor(onnx, value) for value in graph.output]


def _tensor(onnx: Any, value: Any) -> Tensor:
    kind = value.type.tensor_type
    dims = (d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(value.name, str(onnx.TensorProto.DataType.Name(kind.elem_type)), tuple(dims))


CPP = "cpp"
SOURCES = ("engine.hpp", "gpu.hpp", "npy.hpp", "sha256.hpp", "CMakeLists.txt")


def write_cpp(
    folder: Path,
    preprocess: Mapping[str, Any],
    io: IO,
    task: str,
    classes: Sequence[str] | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the sources, and `preprocess.hpp` with this network's constants.

    Args:
        folder: the bundle.
        preprocess: `preprocess.json`.
        io: the network's inputs and outputs, one each unless it runs on rows.
        task: the task kind.
        classes: names of the classes, where they have any.
        settings: of the task, `task.json`.
    """
    (folder / CPP).mkdir(exist_ok=True)
    rows = preprocess.get(INPUTS)
    image = preprocess["image"] if rows else preprocess
    if not rows and (task == "generic" or ":" in ((settings or {}).get("decode") or "")):
        rows = [_port(io[0][0])]  # no C++ knows what the outputs mean: they are written
    sources = dict(zip(SOURCES, SOURCES, strict=True))
    sources |= {"infer.cpp": "infer_tensors.cpp", "npz.hpp": "npz.hpp"} if rows else {}
    sources |= {"image.hpp": "image.hpp"} if image else {}
    templates = files("kdcompile.bundle").joinpath("templates")
    for name, template in ({"infer.cpp": "infer.cpp"} | sources).items():
        text = templates.joinpath(template).read_text(encoding="utf-8")
        write_text(folder / CPP / name, text)
    header = fill(
        "preprocess.hpp.j2",
        pre=image,
        inputs=[{**port, "type": np.dtype(port["dtype"]).str} for port in rows or ()],
        task=task,
        input=io[0][0].name,
        outputs=[tensor.name for tensor in io[1]],
        classes=classes or (),
        head=(settings or {}).get("head"),
        centre=(settings or {}).get("decode") in (None, "centre") and len(io[1][0].dims) == 4,
    )
    write_text(folder / CPP / "preprocess.hpp", header)


def _port(tensor: Tensor) -> dict[str, Any]:
    """The network's image among the inputs that a sample may give by name."""
    kind = "uint8" if tensor.type == "UINT8" else "float32"
    return {"name": tensor.name, "shape": list(tensor.dims), "dtype": kind}


TRITON = "triton"
TYPES = {
    "FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "BFLOAT16": "TYPE_BF16", "INT8": "TYPE_INT8",
    "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL",
}  # fmt: skip


def write_triton(folder: Path, name: str, target: str, device: str, io: IO) -> None:
    """Write `triton/NAME/config.pbtxt` and the network, the engine where the bundle has one.

    Args:
        folder: the bundle, with its networks.
        name: of the build; characters that a server does not take become `_`.
        target: the device, for the file's comment.
        device: its kind: cpu, jetson or workstation.
        io: the network's inputs and outputs.

    Raises:
        KDError: `triton-type`, a tensor of a type that the server does not know.
    """
    has_plan = is_plan(folder)
    source, copy = (ENGINE, "model.plan") if has_plan else ("model.onnx", "model.onnx")
    served = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    shutil.rmtree(folder / TRITON, ignore_errors=True)  # an earlier board's
    version = folder / TRITON / served / "1"
    version.mkdir(parents=True)
    shutil.copyfile(folder / source, version / copy)
    config = fill(
        "config.pbtxt.j2",
        name=served,
        target=target,
        platform="tensorrt_plan" if has_plan else "onnxruntime_onnx",
        awaits_engine=device == "jetson" and not has_plan,
        kind="KIND_CPU" if device == "cpu" else "KIND_GPU",
        inputs=[_entry(tensor) for tensor in io[0]],
        outputs=[_entry(tensor) for tensor in io[1]],
    )
    write_text(version.parent / "config.pbtxt", config)


def is_plan(folder: Path) -> bool:
    """Whether the bundle has an engine, and one of TensorRT (ONNX Runtime may play a board)."""
    record = folder / f"{ENGINE}.json"
    return record.is_file() and "tensorrt" in read_json(record)


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
