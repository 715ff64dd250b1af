"""Reads the nodes of an ONNX file without the onnx package, which no board has."""

from __future__ import annotations

import ast
from typing import Any, Iterator


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: an int, or the bytes of the others."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _varint(data, at)
        elif not size:
            raise ValueError(f"no protobuf: wire type {kind}")
        yield key >> 3, data[at : at + size]
        at += size


def _text(value: Any) -> str:
    return bytes(value).decode(errors="replace")


class OnnxFile:
    """Names of an ONNX file's nodes, read without the onnx package, which no board has.

    `nodes` has `name`, `operator`, `inputs` and `module` (the path in the PyTorch model, where the
    exporter left it) of each. A file that cannot be read has none: the parser says what is wrong.
    """

    def __init__(self, blob: bytes) -> None:
        """Read what messages need: field numbers are those of onnx.proto."""
        self.nodes: list[dict[str, Any]] = []
        self._constants: dict[str, memoryview] = {}
        try:
            graphs = [v for number, v in _fields(memoryview(blob)) if number == 7]
            for number, value in _fields(graphs[-1]):
                if number == 1:
                    self.nodes.append(self._node(value))
                elif number == 5:
                    named = [_text(v) for n, v in _fields(value) if n == 8]
                    self._constants[named[0] if named else ""] = value
        except (IndexError, ValueError, TypeError):
            self.nodes = []

    @staticmethod
    def _node(message: memoryview) -> dict[str, Any]:
        found: dict[str, Any] = {"name": "", "operator": "", "module": None, "inputs": []}
        first = ""
        for number, value in _fields(message):
            if number == 1:
                found["inputs"].append(_text(value))
            elif number == 2 and not first:
                first = _text(value)
            elif number in (3, 4):
                found["name" if number == 3 else "operator"] = _text(value)
            elif number == 9:
                key, text = ([_text(v) for n, v in _fields(value) if n == i] for i in (1, 2))
                if key == ["pkg.torch.onnx.name_scopes"] and text:
                    found["module"] = _module(text[0])
        found["name"] = found["name"] or f"node_of_{first}"  # TensorRT's own name for it
        return found

    def describe(self, number: int, name: str = "", operator: str = "") -> str:
        """Operator, name and module of a node by its number, or by the name it is known to have."""
        by_name = {node["name"]: node for node in self.nodes}
        by_number = dict(enumerate(self.nodes))
        node = by_name.get(name, {}) if name else by_number.get(number, {})
        words = [operator or node.get("operator", ""), name or node.get("name", "")]
        if node.get("module"):
            words.append(f"(module {node['module']})")
        return " ".join(word for word in words if word) or f"node {number}"

    def asymmetric(self) -> str | None:
        """A Q/DQ node whose zero point is unsigned or not 0, described; else None."""
        for i, node in enumerate(self.nodes):
            if node["operator"] in ("QuantizeLinear", "DequantizeLinear"):
                point = self._constants.get((node["inputs"] + ["", "", ""])[2])
                fields = [] if point is None else list(_fields(point))
                unsigned = (2, 2) in fields  # data_type: uint8
                values = [v for n, v in fields if n in (5, 9)]  # int32_data, raw_data
                if unsigned or any(any(v) if isinstance(v, memoryview) else v for v in values):
                    kind = "unsigned" if unsigned else "not 0"
                    return f"{self.describe(i)}: the zero point is {kind}"
        return None


def _module(scopes: str) -> str | None:
    """The innermost module of the exporter's list of scopes, whose last entry is the node."""
    try:
        path = [str(part) for part in ast.literal_eval(scopes)]
    except (ValueError, SyntaxError):
        return None
    return path[-2] or None if len(path) > 1 else None
