"""Files of a bundle with which its network can be evaluated again: reference inputs and networks.

A build kit has the networks, reference inputs and gates (`kit.py`). Where there is no kit the
bundle has `parity/`: `photos.npz`, some validation images as uint8 at the network's size;
`gates.json`; `student_fp32.onnx` where `model.onnx` is another file; and `outputs.npz`, what ONNX
Runtime makes of the first photos.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import RUNS_HERE
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.config.gates import Gates
from kdcompile.core.arrays import check_finite, open_arrays
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.readers import hold, read_json
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.data.splits import evenly
from kdcompile.remote.kit import MAX_REFERENCES
from kdcompile.tasks.task import Task

FOLDER, KIT, MODEL = "parity", "kit", "model.onnx"
IMAGES, BYTES = 16, 4 * 1024 * 1024  # at most; one image is there however large it is
Files = Mapping[str, Mapping[str, Any]]  # of a manifest: SHA-256 and size by name
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Carried:
    """What the parity ladder of a bundle stands on.

    Args:
        fp32: the fp32 network.
        files: its other ONNX files by precision.
        gates: the spec's gates `accuracy` and `parity`, as JSON values.
        inputs: network inputs, float32 [1, C, H, W].
        frames: where an image lies in each; None in a kit, which keeps the inputs alone.
    """

    fp32: Path
    files: Mapping[str, Path]
    gates: Mapping[str, Any]
    inputs: Sequence[Floats]
    frames: Sequence[Frame] | None


def gates_json(gates: Gates, task: Task) -> dict[str, Any]:
    """The gates as JSON values, each with the metric that it judges."""
    return gates.with_metric(task.judged.name).to_json()


def write_carried(
    folder: Path,
    fp32: Path,
    photos: Sequence[Photo],
    preprocess: Preprocess,
    gates: Mapping[str, Any],
) -> None:
    """Write `folder/parity/`, beside the `model.onnx` that is there.

    Args:
        folder: of the bundle to be.
        fp32: the student's fp32 ONNX file.
        photos: of the validation split; up to `IMAGES`, spread over it, of `BYTES` in all.
        preprocess: how images become inputs.
        gates: the spec's as JSON values; `accuracy` and `parity` are kept.

    Raises:
        KDError: an image cannot be read.
    """
    parity = folder / FOLDER
    parity.mkdir()
    if file_sha256(fp32) != file_sha256(folder / MODEL):
        shutil.copyfile(fp32, parity / "student_fp32.onnx")
    arrays: dict[str, NDArray[np.uint8]] = {}
    size = 0
    for photo in evenly(photos, IMAGES):
        pixels = preprocess.kept(photo)
        size += pixels.nbytes
        if arrays and size > BYTES:
            break
        arrays[str(len(arrays))] = pixels
    np.savez_compressed(parity / "photos.npz", allow_pickle=False, **arrays)
    write_json(parity / "gates.json", {name: gates[name] for name in ("accuracy", "parity")})


def write_outputs(folder: Path, fp32: Path, precision: str, preprocess: Preprocess) -> None:
    """Write `parity/outputs.npz`: `output_PRECISION_I` for the first images of `write_carried`.

    Of fp32, which an engine is held against, and of `model.onnx` as it runs here; nothing of a
    precision that ONNX Runtime's CPU has not.

    Args:
        folder: of the bundle to be.
        fp32: the student's fp32 ONNX file.
        precision: of `model.onnx`.
        preprocess: how images become inputs.
    """
    if precision not in RUNS_HERE:
        return
    with np.load(folder / FOLDER / "photos.npz", allow_pickle=False) as photos:
        inputs = [preprocess(photos[name]) for name in photos.files[:MAX_REFERENCES]]
    arrays: dict[str, Floats] = {}
    size = 0
    runners = {"fp32": open_session(fp32)} | {precision: open_session(folder / MODEL)}
    for index, image in enumerate(inputs):
        found = {f"output_{name}_{index}": run(image) for name, run in runners.items()}
        size += sum(output.nbytes for output in found.values())
        if arrays and size > BYTES:
            break
        arrays |= found
    np.savez_compressed(folder / FOLDER / "outputs.npz", allow_pickle=False, **arrays)


def read_carried(folder: Path, files: Files, preprocess: Path) -> Carried:
    """What `parity/` or the kit of a bundle holds.

    Args:
        folder: of the bundle, checked against its manifest.
        files: of its manifest.
        preprocess: `preprocess.json`.

    Raises:
        KDError: `parity-incomplete`, naming what the bundle lacks; `bundle-corrupt`.
    """
    has_kit = f"{KIT}/kit.json" in files
    base, images = (KIT, "reference.npz") if has_kit else (FOLDER, "photos.npz")
    needed = {f"{base}/{images}": "reference inputs", f"{base}/gates.json": "gates"}
    if has_kit:
        needed[f"{KIT}/student_fp32.onnx"] = "fp32 network"
    lacks = [f"{what} ({name})" for name, what in needed.items() if name not in files]
    if lacks:
        raise incomplete(folder, lacks)
    stem = f"{base}/student_"
    networks = {
        name.removeprefix(stem).removesuffix(".onnx"): folder / name
        for name in files
        if name.startswith(stem) and name.endswith(".onnx")
    }
    with _refusing(folder / base / images), open_arrays(folder / base / images) as arrays:
        check_finite({name: arrays[name] for name in arrays if has_kit <= name.startswith("input")})
        if has_kit:
            inputs, frames = [arrays[n] for n in arrays if n.startswith("input_")], None
        else:
            prepare = Preprocess.from_json(read_json(preprocess))
            photos = list(arrays.values())
            inputs = [prepare(pixels) for pixels in photos]
            frames = [prepare.frame(*pixels.shape[:2]) for pixels in photos]
    with _refusing(folder / base / "gates.json"):
        gates = read_json(folder / base / "gates.json")
        hold(Gates, gates)
    return Carried(networks.pop("fp32", folder / MODEL), networks, gates, inputs, frames)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """The block that reads a file of the bundle, and fails only by what is written there."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise KDError(
            "bundle-corrupt",
            f"{path.name} is not as the bundle was written: {error}",
            where=str(path),
            fix="kdcompile build, in the folder of the spec, makes the bundle again",
        ) from error


def incomplete(folder: Path, lacks: Sequence[str]) -> KDError:
    """The refusal to judge a bundle that does not carry what that takes."""
    return KDError(
        "parity-incomplete",
        f"the bundle carries no {', no '.join(lacks)}",
        where=str(folder),
        fix="name the spec that it was built from instead, with the same --target: "
        "kdcompile verify --parity SPEC, kdcompile bisect SPEC",
    )


def source_of(shipped: Path, folder: Path, files: Files) -> tuple[str, Path]:
    """What an engine of a bundle computes in, and the ONNX file that it was built from.

    Its own record says both: a board may have chosen another precision than the manifest's.

    Args:
        shipped: the engine.
        folder: of the bundle, checked against its manifest.
        files: of its manifest.

    Raises:
        KDError: `engine-unknown`.
    """
    record = engine.record_of(shipped)
    sha = record.get("onnx_sha256")
    for name, about in files.items():
        if name.endswith(".onnx") and about["sha256"] == sha:
            return str(record["precision"]), folder / name
    raise KDError(
        "engine-unknown",
        f"the ONNX file that {shipped.name} was built from is not in the bundle",
        where=f"{shipped}.json",
        fix="merge the engine that this bundle's kit built, or build it again: kdcompile build "
        "--via PLACE",
    )
