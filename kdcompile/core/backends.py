"""Backends by name: the runtimes that build, run and time networks.

A backend is a class with the protocol of `kdcompile.backends.base`, registered as a plug-in
(`core.plugins`). It is imported when it is used, so a name costs nothing.
"""

import io
import json
import sys
from collections.abc import Mapping
from typing import Any
from zipfile import ZipFile

from kdcompile.core import plugins

PROVIDERS = {
    "CUDAExecutionProvider": "onnxruntime-cuda",
    "TensorrtExecutionProvider": "onnxruntime-tensorrt",
}


def names() -> list[str]:
    """Every backend's name, the built-in ones first."""
    return plugins.names("backends")


def find(name: str) -> Any:
    """The backend of a name, a new `kdcompile.backends.base.Backend` or `Description`.

    Raises:
        KDError: `backend-unknown`, or those of `plugins.find`.
    """
    return _class(name)()


def _class(name: str) -> Any:
    return plugins.find("backends", name, type, "the backend")


def library(name: str) -> str:
    """The library of a backend: those of ONNX Runtime are named after their providers."""
    return "onnxruntime" if name.startswith("onnxruntime-") else name


def of_record(record: Mapping[str, Any]) -> str:
    """The backend that made an engine and loads it, by the engine's record."""
    if "backend" in record:
        return str(record["backend"])
    if "tensorrt" in record:
        return "tensorrt"
    return PROVIDERS.get(str(record.get("provider")), "onnxruntime")


def is_served(name: str) -> bool:
    """Whether an interpreter with kdcompile serves the backend, and not the agent's own source.

    The agent, which a board without kdcompile runs, knows TensorRT and ONNX Runtime by itself.
    """
    return name in names() and hasattr(_class(name), "load")


def program(name: str) -> bytes:
    """The zip file with which an interpreter here serves a backend, in place of the agent."""
    backend, path = _class(name), json.dumps([entry for entry in sys.path if entry])
    reference = backend.__module__, backend.__qualname__
    call = f"from kdcompile.backends.serve import main\nmain({name!r}, *{reference!r})\n"
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", f"import sys\nsys.path[:] = {path}\n{call}")
    return file.getvalue()
