"""`export.nms = "in-graph"`: a detector's network with its boxes decoded and suppressed inside.

It lies next to the network that is quantised, timed and evaluated, whose outputs can be compared
as numbers; here it is shown that its boxes are those of the task's own decode.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.export.nms import refuse_head, with_nms
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import kernel_ms
from kdcompile.onnx_graph.shapes import input_shape
from kdcompile.targets import Target
from kdcompile.tasks.detection.boxes import Found
from kdcompile.tasks.detection.task import Detection
from kdcompile.tasks.task import Task

FOLDER, MODEL, RECORD = "nms", "model.onnx", "nms.json"
IMAGES = 16  # of the validation split, on which boxes are compared
MOST_APART = 0.01  # of the boxes: rounding decides which of two equal ones is left
SCORE, PIXELS = 1e-3, 0.1  # within which a box is the same one
Proof = tuple[Path, Sequence[Photo], Preprocess]


def refuse_suppression(task: Task, shape: tuple[int, ...]) -> None:
    """Refuse a head of this output's shape that has nothing to suppress.

    Raises:
        KDError: `export-nms`, `task-decode`.
    """
    assert isinstance(task, Detection), "the spec takes it of detection alone"
    refuse_head(*task.head_of(shape))


def write_suppression(
    folder: Path, proof: Proof, task: Task, target: Target, shape: Sequence[int]
) -> None:
    """Write `nms/model.onnx`, and `nms.json` with what was compared and what it costs.

    Args:
        folder: of the stage, with `model.onnx`.
        proof: a file of the network that runs here, the validation photos, and how they become its
            input.
        task: what the outputs mean.
        target: whose model predicts the cost.
        shape: of the exported network's input, [N, C, H, W].

    Raises:
        KDError: `export-nms`.
    """
    assert isinstance(task, Detection), "the spec takes it of detection alone"
    (folder / FOLDER).mkdir()
    there, (plain, photos, prepare) = folder / FOLDER / MODEL, proof
    shipped = onnx.load(folder / "model.onnx")
    made = _with_head(shipped, task, shape)
    proven = folder / FOLDER / "proven.onnx"
    onnx.save(_with_head(onnx.load(plain), task, shape), proven)
    about = compared(task, (plain, proven), photos[:IMAGES], prepare)
    proven.unlink()
    onnx.save(made, there)
    more = None
    if target.kind != "cpu":
        own = input_shape(shipped)
        after, before = (kernel_ms(kernels_of(m, own), target, "fp16") for m in (made, shipped))
        more = after - before
    write_json(folder / FOLDER / RECORD, {**about, "predicted_ms": more})


def _with_head(model: onnx.ModelProto, task: Detection, shape: Sequence[int]) -> onnx.ModelProto:
    dims = model.graph.output[0].type.tensor_type.shape.dim
    decoder, setting = task.head_of(tuple(dim.dim_value for dim in dims))
    return with_nms(model, decoder, setting, (shape[2], shape[3]))


def compared(
    task: Detection, files: tuple[Path, Path], photos: Sequence[Photo], prepare: Preprocess
) -> dict[str, int]:
    """How many boxes of some photos the network with its head inside gives otherwise.

    Args:
        task: that decodes the outputs of the first file.
        files: of the network, and of the same with its head inside.
        photos: of the validation split.
        prepare: how they become its input.

    Raises:
        KDError: `export-nms`, more than `MOST_APART` of them are other ones.
    """
    outside, inside = (open_session(path) for path in files)
    final = Detection(task.head, "boxes", count=task.count)
    boxes = apart = 0
    for photo in photos:
        image, frame = prepare.view(photo)
        own, other = task.found(outside(image), frame), final.found(inside(image), frame)
        boxes += len(own)
        apart += unlike(own, other)
    if apart > MOST_APART * boxes:
        raise KDError(
            "export-nms",
            f"{apart} of {boxes} boxes on {len(photos)} validation images are other ones where "
            f"the graph decodes them (allowed {MOST_APART:.0%})",
            where="[export] nms",
            fix='set export.nms = "none", and report the network\'s head',
        )
    return {"images": len(photos), "boxes": boxes, "apart": apart}


def unlike(own: Found, other: Found) -> int:
    """How many boxes of either are not among those of the other: score, class and corners."""
    free = np.ones(len(other), np.bool_)
    missed = 0
    for box, score, kind in zip(own.boxes, own.scores, own.classes, strict=True):
        same = free & (other.classes == kind) & (np.abs(other.scores - score) <= SCORE)
        same &= (np.abs(other.boxes - box) <= PIXELS).all(1)
        if same.any():
            free[same.argmax()] = False
        else:
            missed += 1
    return max(missed, int(free.sum()))
