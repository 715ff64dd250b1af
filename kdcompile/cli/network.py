"""A bundle's network, open to be run: its engine through the worker, or its ONNX file here."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdcompile.errors import KDError, ToolMissingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdcompile.bundle.manifest import Bundle

    Floats = NDArray[np.float32]

PROVIDERS = {"CUDAExecutionProvider": "-cuda", "TensorrtExecutionProvider": "-tensorrt"}
INSTEAD = "or run its ONNX file here: kdcompile run --onnx BUNDLE PHOTO..."


@contextmanager
def open_network(
    bundle: "Bundle", via: str | None, onnx: bool
) -> Iterator["Callable[[Floats], Floats]"]:
    """The network of a bundle, float32 [1, C, H, W] to its output.

    Args:
        bundle: checked against its manifest.
        via: where an engine runs; None for this machine.
        onnx: the ONNX file, even where there is an engine.

    Raises:
        KDError: `engine-missing`, `via` without an engine; the worker's, such as
            `engine-mismatch`.
        ToolMissingError: the engine's backend is not installed there.
    """
    from kdcompile.backends.onnxruntime_ import open_session

    if bundle.engine is None or onnx:
        if via is not None:
            raise KDError(
                "engine-missing",
                "a place is named, and no engine is to be run",
                where=str(bundle.folder),
                fix="leave out --via, or build the engine: kdcompile build --via PLACE",
            )
        yield open_session(bundle.model)
        return
    from kdcompile.backends import engine
    from kdcompile.backends.via import open_place

    backend = backend_of(bundle)
    try:
        with open_place(via, backend) as place:
            engine.take(place, bundle.engine, "main")
            version = str(place.about["backend_version"])
            yield engine.EngineRunner(place, "main", backend, version)
    except ToolMissingError as error:
        fix = f"{error.fix}; {INSTEAD}"
        raise ToolMissingError(error.code, error.message, error.where, fix) from error


def backend_of(bundle: "Bundle") -> str:
    """The worker's backend that made the engine, by the engine's record."""
    built = json.loads(bundle.file(f"{bundle.manifest['engine']}.json").read_text(encoding="utf-8"))
    if "tensorrt" in built:
        return "tensorrt"
    return "onnxruntime" + PROVIDERS.get(str(built.get("provider")), "")
