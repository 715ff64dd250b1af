"""The artifact that is measured: an ONNX file, an engine with its record, or a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcompile.backends.engine import record_of
from kdcompile.bundle import form
from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.signature import open_bundle
from kdcompile.bundle.trust import Trust
from kdcompile.core.backends import of_record
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.optional import need
from kdcompile.core.readers import hold, parse_json

if TYPE_CHECKING:
    from onnx import ModelProto

Shape = tuple[int, ...]
ENGINES = (".engine", ".plan")
DEFAULT = "onnxruntime"


@dataclass(frozen=True)
class Subject:
    """One artifact to measure.

    Args:
        name: for people.
        path: the file that is loaded, or that an engine is built from.
        sha256: of that file.
        kind: whether it is built before it runs.
        precision: that an engine is built in, or was.
        backend: that it needs; None for an ONNX file, which any backend takes.
        input_shape: typical, [N, C, H, W] for an image; None where only the engine knows it.
        record: what is written beside an engine.
        target: of a bundle, the device that it is for.
    """

    name: str
    path: Path
    sha256: str
    kind: Literal["onnx", "engine"]
    precision: str
    backend: str | None = None
    input_shape: Shape | None = None
    record: Mapping[str, Any] | None = None
    target: str | None = None


def find_subject(
    path: Path,
    backend: str | None = None,
    *,
    shape: Sequence[int] | None = None,
    trust: Trust | None = None,
) -> Subject:
    """The artifact that a path names.

    An ONNX file is built in the precision that its own types ask for: with Q/DQ pairs int8 (or
    fp8), with half-precision weights fp16 (or bf16), else fp32.

    Args:
        path: an ONNX file; an engine (`.engine`, `.plan`) with `NAME.json` beside it; or the
            folder of a bundle, whose engine is taken, else its ONNX file.
        backend: the worker's: tensorrt, onnxruntime, ... A bundle's engine of another backend is
            passed over for its ONNX file.
        shape: of the input, where the artifact leaves sizes open or another is wanted.
        trust: as for `open_bundle`; with it only a bundle is taken.

    Raises:
        KDError: `artifact-missing`, `artifact-unknown`, `artifact-unsigned`, `onnx-refused`,
            `engine-unknown`, `engine-damaged`, `backend-differs`, those of `open_bundle`.
    """
    given = None if shape is None else tuple(shape)
    if not path.exists():
        raise KDError(
            "artifact-missing",
            "there is no such file or folder",
            where=str(path),
            fix="name an ONNX file, an engine or a bundle; kdcompile build makes one",
        )
    if path.is_dir():
        return _bundle(open_bundle(path, trust), backend, given)
    if trust is not None:
        raise KDError(
            "artifact-unsigned",
            f"{path.name} is no bundle: nothing says whose it is",
            where=str(path),
            fix="name the bundle's folder, or leave out --trusted and --expect",
        )
    if path.suffix == ".onnx":
        return _onnx(path, path.name, backend, given)
    if path.suffix in ENGINES:
        return _engine(path, path.name, backend, given)
    raise KDError(
        "artifact-unknown",
        f"{path.name} is no artifact that can be measured",
        where=str(path),
        fix=f"name a file that ends in .onnx or {' or '.join(ENGINES)}, or a bundle's folder",
    )


def common_backend(subjects: Sequence[Subject]) -> str:
    """The one that all need; ONNX Runtime where none needs one.

    Raises:
        KDError: `backend-differs`.
    """
    wanted = {subject.backend for subject in subjects} - {None}
    if len(wanted) > 1:
        named = ", ".join(f"{subject.name}: {subject.backend or 'any'}" for subject in subjects)
        raise KDError(
            "backend-differs",
            f"the artifacts run on different backends ({named})",
            where="the measurement",
            fix="compare two that run on one, such as two ONNX files; or name one with --backend",
        )
    return wanted.pop() or DEFAULT if wanted else DEFAULT


def _bundle(bundle: Bundle, backend: str | None, shape: Shape | None) -> Subject:
    name = f"{bundle.name} for {bundle.target}"
    shape = shape or _typical(bundle)
    if bundle.engine is not None:
        made = of_record(record_of(bundle.engine))
        if backend in (None, made):
            found = _engine(bundle.engine, name, made, shape)
            return replace(found, target=bundle.target)
    return replace(_onnx(bundle.model, name, backend, shape), target=bundle.target)


def _typical(bundle: Bundle) -> Shape | None:
    """The input shape that the build was made for, as far as the bundle tells it."""
    if "kit/kit.json" in bundle.manifest["files"]:
        with bundle.reading("kit/kit.json") as content:
            kit = parse_json(content)
            hold(form.Kit, kit)
            return tuple(kit["profile"][1])
    images = bundle.preprocess
    if images["min_hw"] == images["max_hw"]:
        sides = tuple(int(size) for size in images["max_hw"])
        channels = int(images["channels"])
        return (1, *sides, channels) if images.get("in_graph") else (1, channels, *sides)
    return None


def _engine(path: Path, name: str, backend: str | None, shape: Shape | None) -> Subject:
    record, sha256 = record_of(path), file_sha256(path)
    made = of_record(record)
    if backend not in (None, made):
        raise KDError(
            "backend-differs",
            f"{path.name} is an engine of {made}, and {backend} was asked for",
            where=str(path),
            fix=f"leave the backend out or ask for {made}; an ONNX file runs on any",
        )
    if record.get("sha256") != sha256:
        raise KDError(
            "engine-damaged",
            f"{path.name} is not the engine that {path.name}.json tells of",
            where=str(path),
            fix="copy both again, or build the engine again: kdcompile build --via PLACE",
        )
    return Subject(name, path, sha256, "engine", str(record["precision"]), made, shape, record)


def _onnx(path: Path, name: str, backend: str | None, shape: Shape | None) -> Subject:
    onnx = need("onnx", "cpu", "reading the network")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has errors of its own
        raise _no_onnx(path, str(error).strip().splitlines()[0]) from error
    if not model.graph.node:  # to protobuf an empty file is a whole message
        raise _no_onnx(path, "it holds no operator")
    shape = shape or _fixed(model)
    return Subject(name, path, file_sha256(path), "onnx", _precision(model), backend, shape)


def _no_onnx(path: Path, reason: str) -> KDError:
    return KDError(
        "onnx-refused",
        f"{path.name} is no ONNX file: {reason}",
        where=str(path),
        fix="export it again: kdcompile export",
    )


def _fixed(model: "ModelProto") -> Shape | None:
    """The shape of the one input; None where a size is open, or there are several inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        return None
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    return tuple(sizes) if sizes and all(sizes) else None


def _precision(model: "ModelProto") -> str:
    """What a builder must be allowed for the types that the file itself has."""
    from onnx import TensorProto

    kinds = {tensor.data_type for tensor in model.graph.initializer}
    operators = {node.op_type for node in model.graph.node}
    if {"QuantizeLinear", "DequantizeLinear"} & operators:
        return "fp8" if TensorProto.FLOAT8E4M3FN in kinds else "int8"
    for kind, name in ((TensorProto.BFLOAT16, "bf16"), (TensorProto.FLOAT16, "fp16")):
        if kind in kinds:
            return name
    return "fp32"
