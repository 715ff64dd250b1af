"""Registry of backends: the runtimes that build, run and time networks, by name.

A backend is a class with the protocol of `kdcompile.backends.base`. It is imported when it is used,
so a name costs nothing; an installed distribution adds its own by entry
points (`core.plugins`).
"""

import importlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from zipfile import ZipFile

from kdcompile.core import plugins
from kdcompile.core.errors import KDError, nearest

ONNXRUNTIME = "kdcompile.backends.onnxruntime_"
# module:class of each, so that a name imports nothing; `register` adds to them
BACKENDS = {
    "tensorrt": "kdcompile.backends.tensorrt_:TensorRT",
    "onnxruntime": f"{ONNXRUNTIME}:OnnxRuntime",
    "onnxruntime-cuda": f"{ONNXRUNTIME}:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": f"{ONNXRUNTIME}:OnnxRuntimeTensorRT",
    "openvino": "kdcompile.backends.openvino_:OpenVino",
}
PROVIDERS = {
    "CUDAExecutionProvider": "onnxruntime-cuda",
    "TensorrtExecutionProvider": "onnxruntime-tensorrt",
}
C = TypeVar("C", bound=type)


def register(name: str) -> Callable[[C], C]:
    """Register the decorated class as the backend `name`.

    Raises:
        ValueError: another class has the name.
    """

    def add(backend: C) -> C:
        reference = f"{backend.__module__}:{backend.__qualname__}"
        if BACKENDS.setdefault(name, reference) != reference:
            raise ValueError(f"backend {name!r} is {BACKENDS[name]} already")
        return plugins.register("backends", name)(backend)

    return add


def _known() -> dict[str, str]:
    """The `module:class` of every backend; one that is registered keeps its name."""
    installed = {point.name: point.value for point in plugins.entries("backends")}
    return BACKENDS | {name: value for name, value in installed.items() if name not in BACKENDS}


def names() -> tuple[str, ...]:
    """Every backend's name, the built-in ones first."""
    return tuple(_known())


def reference(name: str) -> str:
    """The `module:class` of a backend.

    Raises:
        KDError: `backend-unknown`.
    """
    found = _known().get(name)
    if found is None:
        raise KDError(
            "backend-unknown",
            f"there is no backend {name!r}{nearest(name, names())}",
            where=name,
            fix=f"use one of {', '.join(names())}, or install the package that has it",
        )
    return found


def find(name: str) -> Any:
    """The backend of a name, a new `kdcompile.backends.base.Backend` or `Description`.

    Raises:
        KDError: `backend-unknown`.
    """
    return opened(reference(name))


def opened(reference: str) -> Any:
    """A new instance of the class that a `module:class` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)()


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
    return name in names() and hasattr(find(name), "load")


def program(name: str) -> bytes:
    """The zip file with which an interpreter here serves a backend, in place of the agent."""
    path = json.dumps([entry for entry in sys.path if entry])
    call = f"from kdcompile.backends.serve import main\nmain({name!r}, {reference(name)!r})\n"
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", f"import sys\nsys.path[:] = {path}\n{call}")
    return file.getvalue()
