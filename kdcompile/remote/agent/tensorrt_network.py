"""Describes a network to TensorRT, and lists the layers of the engine that it makes of it."""

from __future__ import annotations

import json
import re
from typing import Any

from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.onnx_file import OnnxFile
from kdcompile.remote.agent.system import version_of

CAST_ONNX_SINCE = (10, 12)  # weak typing, and with it the FP16 and INT8 flags, is deprecated here
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")
NEEDS_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}


def typing_plan(trt: Any, precision: str) -> dict[str, Any] | None:
    """How this TensorRT is told a precision: by flags where it has them, else by the ONNX.

    Returns:
        `onnx`: the precision of the ONNX file to parse; `flags`: builder flags, by name;
        `network`: network creation flags, by name. None where this TensorRT has no such precision.
    """
    kinds, builder = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    weak = hasattr(builder, "FP16") and version_of(trt) < CAST_ONNX_SINCE
    network = [name for name in ("EXPLICIT_BATCH",) if hasattr(kinds, name)]
    # 8.6 has a flag FP8 and the type, but its parser ends before the opset that brought float 8
    new = version_of(trt) >= (10, 0)
    if precision not in PRECISIONS or (precision in ("bf16", "fp8") and not new):
        return None
    if not weak:
        network += [name for name in ("STRONGLY_TYPED",) if hasattr(kinds, name)]
        return {"onnx": precision, "flags": [], "network": network}
    flags = {"fp32": [], "fp16": ["FP16"], "bf16": ["BF16"], "fp8": ["FP8", "FP16"],
             "int8": ["INT8", "FP16"], "mixed": ["INT8", "FP16"]}[precision]  # fmt: skip
    onnx = precision if precision in ("int8", "fp8", "mixed") else "fp32"
    return {"onnx": onnx, "flags": flags, "network": network}


def add_profile(builder: Any, network: Any, config: Any, asked: Any) -> None:
    """One optimisation profile over every input that has a free size."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = {image.name: image for image in inputs if -1 in tuple(image.shape)}
    if isinstance(asked, dict):
        absent = [name for name in asked if name not in [image.name for image in inputs]]
        if absent:
            names = ", ".join(image.name for image in inputs)
            raise WorkerError("profile-refused", f"no input {absent[0]!r}; there is {names}")
    if not free:
        return
    if asked and not isinstance(asked, dict):
        if len(free) > 1:
            raise WorkerError("profile-missing", f"inputs {', '.join(free)} are dynamic")
        asked = dict.fromkeys(free, asked)
    profile = builder.create_optimization_profile()
    for name, image in free.items():
        if not asked or name not in asked:
            raise WorkerError("profile-missing", f"input {name} is dynamic: {tuple(image.shape)}")
        shapes = [tuple(shape) for shape in asked[name]]
        if not _fits(shapes, tuple(image.shape)):
            raise WorkerError("profile-refused", f"{name}: {shapes} for {tuple(image.shape)}")
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise WorkerError("profile-refused", f"TensorRT takes none of {asked}")


def _fits(shapes: list[tuple[int, ...]], size: tuple[int, ...]) -> bool:
    """Whether shapes are min <= opt <= max of a network's size, in which -1 is free."""
    if len(shapes) != 3 or any(len(shape) != len(size) for shape in shapes):
        return False
    columns = zip(size, *shapes)  # Python 3.8
    return all(0 < a <= b <= c and n in (-1, a) and n in (-1, c) for n, a, b, c in columns)


def parse_errors(parser: Any, graph: OnnxFile) -> list[str]:
    """Each parser error with its node; 8.x knows only the number, 10 the name and the operator."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        named = [str(getattr(error, f)()) if hasattr(error, f) else ""
                 for f in ("node_name", "node_operator")]  # fmt: skip
        found.append(f"{graph.describe(error.node(), *named)}: {error.desc()}")
    return found or ["the parser gave no reason"]


NUMBER_TYPES = (("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"),
                ("fp16", "fp16"), ("half", "fp16"), ("fp32", "fp32"), ("float", "fp32"),
                ("int32", "int32"), ("int64", "int64"), ("bool", "bool"))  # fmt: skip


def _number_type(text: str) -> str | None:
    """The precision that a type or format text names, such as "Row major Int8 format"."""
    words = re.findall("[a-z0-9]+", text.lower())
    return next((name for word, name in NUMBER_TYPES if word in words), None)


def _layer(entry: Any, known: set[str]) -> dict[str, Any]:
    """One layer of the inspector: its name, type, precision and the ONNX nodes that it came from.

    A tensor's type is in `Format/Datatype` up to 10, in `Datatype` or `DataType` from 11. A layer
    computes in the type of its weights, or else of its first input.
    """
    if isinstance(entry, str):  # an engine that was built without detailed verbosity
        entry = {"Name": entry}
    name = str(entry.get("Name", ""))
    texts = [str((entry.get("Weights") or {}).get("Type", ""))]
    for tensor in entry.get("Inputs") or []:
        keys = sorted((k for k in tensor if "type" in k.lower()), key=len)
        texts += [str(tensor[k]) for k in keys]
    found = (_number_type(text) for text in texts)
    precision = next((kind for kind in found if kind), None)
    nodes = re.findall(r"\[ONNX Layer: (.*?)\]", str(entry.get("Metadata", "")))
    if not nodes:  # 8.5 has only the name, which joins those of the fused nodes
        nodes = [part for part in re.split(r" \+ |, |PWN\(|\)", name) if part in known]
    nodes = sorted({n for n in nodes if n in known} or set(nodes), key=nodes.index)
    return {"name": name, "type": entry.get("LayerType"), "precision": precision,
            "onnx": nodes or None}  # fmt: skip


def layers_of(trt: Any, engine: Any, known: set[str]) -> list[dict[str, Any]]:
    """The layers of an engine; `known` are the names of the ONNX file's nodes."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return [_layer(entry, known) for entry in json.loads(text).get("Layers", [])]
