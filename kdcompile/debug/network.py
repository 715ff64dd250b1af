"""A bundle's network, open to be run: its engine through the worker, or its ONNX file here."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kdcompile.core.backends import is_served, of_record
from kdcompile.core.errors import KDError, ToolMissingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdcompile.bundle.manifest import Bundle
    from kdcompile.remote.open import Place

    Floats = NDArray[np.float32]

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
            raise engine_missing(bundle)
        yield open_session(bundle.model)
        return
    from kdcompile.backends import engine
    from kdcompile.remote.open import open_place

    backend = backend_of(bundle)
    with ExitStack() as stack:
        try:
            place = stack.enter_context(open_place(via, backend))
            take_engine(place, bundle)
        except ToolMissingError as error:
            fix = f"{error.fix}; {INSTEAD}"
            raise ToolMissingError(error.code, error.message, error.where, fix) from error
        version = str(place.about["backend_version"])
        yield engine.EngineRunner(place, "main", backend, version)


def take_engine(place: "Place", bundle: "Bundle") -> None:
    """Load the bundle's engine as `main`.

    Raises:
        KDError: the place's pre-flight refuses it; the fix is one that a bundle's owner can do.
    """
    from kdcompile.backends import engine

    assert bundle.engine is not None, "the caller has seen one"
    try:
        engine.take(place, bundle.engine, "main")
    except KDError as error:
        if not error.code.startswith("engine-"):
            raise
        again = f"in the spec's folder: kdcompile build --target {bundle.target}"
        if not is_served(backend_of(bundle)):
            again += " --via PLACE, on the place that is to run it"
        fix = f"{again}; {INSTEAD}"
        raise KDError(error.code, error.message, str(bundle.engine), fix) from error


def backend_of(bundle: "Bundle") -> str:
    """The worker's backend that made the engine, by the engine's record.

    Raises:
        KDError: `engine-unknown`.
    """
    from kdcompile.backends import engine

    assert bundle.engine is not None, "the caller has seen one"
    return of_record(engine.record_of(bundle.engine))


def engine_missing(bundle: "Bundle") -> KDError:
    """The refusal of `--via` for a bundle without an engine."""
    return KDError(
        "engine-missing",
        "--via needs an engine, and this bundle has none to run",
        where=str(bundle.folder),
        fix="leave out --via, or build the engine: kdcompile build --via PLACE",
    )
