"""The layers of an engine, as TensorRT's inspector lists them."""

from __future__ import annotations

import json
import re
from typing import Any

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
