"""A bundle's network: open its engine or ONNX file, and check its outputs against recorded ones."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.bundle import form
from kdcompile.bundle.manifest import Bundle
from kdcompile.core.arrays import check_finite, open_arrays
from kdcompile.core.backends import is_served, of_record
from kdcompile.core.errors import EXIT_GATE, KDError, ToolMissingError
from kdcompile.core.readers import hold, parse_json

if TYPE_CHECKING:
    from kdcompile.remote.open import Place


Floats = NDArray[np.float32]
INSTEAD = "or run its ONNX file here: kdcompile run --onnx BUNDLE IMAGE..."


@contextmanager
def open_network(
    bundle: Bundle, via: str | None, onnx: bool
) -> Iterator[Callable[[Floats], Floats]]:
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
    from kdcompile.data.preprocess import Preprocess, RowPreprocess
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
        prepare = Preprocess.from_json(bundle.preprocess)
        place.ports = prepare.ports if isinstance(prepare, RowPreprocess) else None
        yield engine.EngineRunner(place, "main", backend, version)


def take_engine(place: "Place", bundle: Bundle) -> None:
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


def backend_of(bundle: Bundle) -> str:
    """The worker's backend that made the engine, by the engine's record.

    Raises:
        KDError: `engine-unknown`.
    """
    from kdcompile.backends import engine

    assert bundle.engine is not None, "the caller has seen one"
    return of_record(engine.record_of(bundle.engine))


def engine_missing(bundle: Bundle) -> KDError:
    """The refusal of `--via` for a bundle without an engine."""
    return KDError(
        "engine-missing",
        "--via needs an engine, and this bundle has none to run",
        where=str(bundle.folder),
        fix="leave out --via, or build the engine: kdcompile build --via PLACE",
    )


REFERENCES = {"kit": "reference.npz", "parity": "outputs.npz"}  # in a bundle, by its folder
NO_REFERENCE = "not checked: this bundle carries no reference outputs"


@dataclass(frozen=True)
class BundleCheck:
    """What was found of a bundle, as `kdcompile verify BUNDLE --json` prints it.

    Args:
        bundle: its folder.
        files: how many are intact.
        verdict: of the build.
        exit_code: of the build, or 3 where the outputs differ.
        parity: the agreement with the reference outputs, or why it was not checked.
        signature: whose it is, in words.
        engine: where its engine was loaded, if anywhere.
    """

    bundle: str
    files: str
    verdict: str
    exit_code: int
    parity: dict[str, Any] | str
    signature: str
    engine: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without an engine there is no `engine`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_outputs(bundle: Bundle, via: str | None = None) -> BundleCheck:
    """The network's outputs against the recorded ones.

    The exit code is the bundle's own verdict, or 3 when the outputs differ more than the parity
    gate allows.

    Args:
        bundle: whose files are intact.
        via: where its engine is loaded and run; None for this machine: the engine of a backend that
            kdcompile serves here, else the ONNX file.

    Raises:
        KDError: of an engine that does not load there `engine-mismatch` and its kin.
    """
    result = BundleCheck(
        bundle=str(bundle.folder),
        files=f"{len(bundle.manifest['files'])} intact",
        verdict=bundle.manifest["verdict"],
        exit_code=bundle.manifest["exit_code"],
        parity=NO_REFERENCE,
        signature="not checked",
    )
    if via is None and _carries(bundle) is None:
        return result
    served = bundle.engine is not None and is_served(backend_of(bundle))
    with open_network(bundle, via, onnx=via is None and not served) as network:
        if via is not None or served:
            result = replace(result, engine=f"loads at {via or 'this machine'}")
        # an engine is held against fp32, as on its board, in whichever precision a merge put it
        precision = bundle.manifest["precision"] if via is None else "fp32"
        return _parity(bundle, network, result, precision)


def _carries(bundle: Bundle) -> str | None:
    """The folder of a bundle that has its reference outputs: a kit's, or of another target."""
    found = (base for base, name in REFERENCES.items() if (bundle.folder / base / name).is_file())
    return next(found, None)


def _references(bundle: Bundle, base: str, precision: str) -> tuple[list[Floats], list[Floats]]:
    """Inputs, and the outputs that are recorded of them; fp32's where there are none of its own."""
    from kdcompile.data.preprocess import Preprocess

    with (
        bundle.reading(f"{base}/{REFERENCES[base]}") as content,
        open_arrays(content) as arrays,
    ):
        there = f"output_{precision}_0" in arrays
        expected = _arrays(arrays, f"output_{precision if there else 'fp32'}_")
        if base == "kit":
            inputs = _arrays(arrays, "input_", "fu")
            if len(inputs) != len(expected):
                raise ValueError(f"{len(inputs)} inputs, {len(expected)} outputs of them")
            return inputs, expected
    prepare = Preprocess.from_json(bundle.preprocess)
    with (
        bundle.reading("parity/photos.npz") as content,
        open_arrays(content) as photos,
    ):
        return [prepare(photos[name]) for name in list(photos)[: len(expected)]], expected


def _arrays(arrays: Mapping[str, NDArray[Any]], start: str, kinds: str = "f") -> list[Floats]:
    """The arrays of an archive whose names start so, of floats or of other `kinds` of numpy.

    Raises:
        ValueError: one is not of finite numbers, or there is none.
    """
    found = {name: arrays[name] for name in arrays if name.startswith(start)}
    if not found:
        raise ValueError(f"it has no {start}0")
    check_finite(found, kinds)
    return list(found.values())


def _parity(
    bundle: Bundle,
    network: Callable[[Floats], Floats],
    result: BundleCheck,
    precision: str,
) -> BundleCheck:
    """The result with the agreement of the network with the reference outputs, where there are.

    Args:
        bundle: checked against its manifest.
        network: what is verified.
        result: what is known so far.
        precision: of the reference outputs; fp32's, where the kit could not run it.
    """
    from kdcompile.tasks.agreement import agreement, pooled_sqnr

    base = _carries(bundle)
    if base is None:
        return result
    inputs, expected = _references(bundle, base, precision)
    outputs = [network(image) for image in inputs]
    # the worst image is reported; all of them together decide, as for the gate
    found = agreement(expected, outputs) | {"pooled_sqnr_db": pooled_sqnr(expected, outputs)}
    with bundle.reading(f"{base}/gates.json") as content:
        gates = parse_json(content)
        hold(form.Gates, gates)
        least = float(gates["parity"]["min_sqnr_db"])
    found["min_sqnr_db"] = least
    failed = found["pooled_sqnr_db"] < least
    return replace(result, parity=found, exit_code=EXIT_GATE if failed else result.exit_code)
