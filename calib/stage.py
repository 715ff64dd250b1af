"""The calibrate stage: a table of ranges and the int8 network that uses it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.artifact import Artifact, Step, Store
from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.qdq import Storage, insert_qdq
from kdcompile.calib.session import cpu_session
from kdcompile.data.agreement import agreement
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.data.splits import evenly, load_splits

if TYPE_CHECKING:
    from kdcompile.targets import Target

CHECK_IMAGES = 4


def run(step: Step, store: Store, target: "Target") -> Artifact:
    """Write `student_int8.onnx` and `calibration.json`.

    The meta record holds the calibrator, how many images it had, the seconds that it took, and
    `sqnr_db`, the worst of int8 against fp32 over a few validation photos.

    Raises:
        KDError: `calib-empty`, `calib-nonfinite` or `calib-nothing`.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, target, folder))


def _build(step: Step, target: "Target", folder: Path) -> Mapping[str, Any]:
    start = time.monotonic()
    spec, exported = step.spec, step.inputs["export"]
    prepare = Preprocess.from_json(exported.json("preprocess.json"))
    splits = load_splits(spec.data, spec.folder)
    chosen = evenly(splits.train, spec.quantize.images)
    model = onnx.load(exported.file("student.onnx"))
    table = calibrate(
        model,
        exported.files["student.onnx"],
        _inputs(chosen, prepare),
        [(photo.name, photo.sha256()) for photo in chosen],
        spec.quantize.calibrator,
    )
    table.write(folder / "calibration.json")
    quantised = insert_qdq(model, table, weight_storage(target.backend or target.tensorrt))
    onnx.save(quantised, folder / "student_int8.onnx")
    checks = list(_inputs(splits.val[:CHECK_IMAGES], prepare))
    return {
        "calibrator": spec.quantize.calibrator,
        "images": len(chosen),
        "sqnr_db": worst_sqnr(model, quantised, checks),
        "seconds": round(time.monotonic() - start, 3),
    }


def weight_storage(tensorrt: str | None) -> Storage:
    """How weights are stored for a target's TensorRT ("10.3", "8.6..11", None for none).

    Int8 constants are read since TensorRT 10; an 8.x of the range asks for float32 and a pair.
    """
    return "float" if tensorrt is not None and int(tensorrt.split(".")[0]) < 10 else "int8"


def worst_sqnr(
    reference: ModelProto, quantised: ModelProto, images: Sequence[NDArray[np.float32]]
) -> float:
    """The lowest 20 log10(||a|| / ||a-b||) over the images, by ONNX Runtime; at most 200 dB."""
    sessions = [cpu_session(model) for model in (reference, quantised)]
    feed = reference.graph.input[0].name
    a, b = ([s.run(None, {feed: image})[0] for image in images] for s in sessions)
    return agreement(a, b)["sqnr_db"]


def _inputs(photos: Sequence[Photo], prepare: Preprocess) -> Iterator[NDArray[np.float32]]:
    return (prepare(photo.pixels(prepare.channels)) for photo in photos)
