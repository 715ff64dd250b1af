"""Test pack of a finished build: the samples that `verify` evaluated, and the exported teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.answers import answer_by
from kdcompile.backends.deployed_form import deployed_form
from kdcompile.bundle.testpack import write_test_pack
from kdcompile.config.spec import Spec
from kdcompile.core.arrays import read_arrays
from kdcompile.core.errors import KDError
from kdcompile.core.store import Artifact
from kdcompile.data.masks import mask_of
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import judged, load_splits, photos_digest
from kdcompile.passes.verify import ROWS
from kdcompile.tasks.metric import RELATIVE
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.task import task_of

TEACHERS = {"fp32": "teacher.onnx", "fp16": "teacher_fp16.onnx"}


def pack_build(
    folder: Path, spec: Spec, made: Mapping[str, Artifact], target: str
) -> dict[str, Any]:
    """Write the test pack of a finished build.

    Args:
        folder: as of `write_test_pack`.
        spec: of the build.
        made: its artifacts, of export, compile and verify.
        target: name of the device.

    Raises:
        KDError: `kit-missing`, the target has no build kit; `pack-photos`, the test split has
            changed; those of `write_test_pack`.
    """
    if "kit/kit.json" not in made["compile"].files:
        raise KDError(
            "kit-missing",
            f"{target} takes no build kit, so nothing there asks for a test pack",
            where="--test-pack",
            fix="name a board: --target jetson",
        )
    details = made["verify"].json("report.json")["details"]
    task = task_of(spec)
    gate = spec.gates.accuracy
    metric = task.find_metric(gate.metric if gate else None)
    own = isinstance(task, Recording) and task.is_own_code
    if own or (task.takes_rows and metric is not RELATIVE):
        raise KDError(
            "pack-task",
            f"neither a board nor a merge has the {metric.name} of "
            f"{spec.task.metric or spec.task.decode or spec.task.kind}",
            where=f"{spec.path} [task]",
            fix="kdcompile build --via PLACE evaluates the engine with it; without --test "
            "build_engine.py of the kit compares the outputs",
        )
    splits = load_splits(spec.data, spec.folder)
    photos = judged(splits.test, spec.data.max_test)
    samples = photos_digest(splits.test)
    same_names = [photo.name for photo in photos] == [r["name"] for r in details["predictions"]]
    if not same_names or samples != details["data"]["test"]["photos_sha256"]:
        raise KDError(
            "pack-photos",
            "the test split is not the one that verify evaluated",
            where="[data] test",
            fix="kdcompile build, then write the test pack again",
        )
    export = made["export"]
    preprocess = Preprocess.from_json(export.json("preprocess.json"))
    answer_by(export, photos, preprocess, task)
    with deployed_form(preprocess, spec.export.preprocess) as form:
        return write_test_pack(
            folder,
            ((preprocess.kept(photo), photo.answer) for photo in photos),
            details["predictions"],
            {p: form.file(export.file(n)) for p, n in TEACHERS.items() if n in export.files},
            preprocess=made["compile"].file("preprocess.json"),
            task={**details["task"], "settings": task.settings()},
            seed=spec.seed,
            available=len(splits.test),
            samples=samples,
            judged=_judged(photos, preprocess, made["verify"]) if task.records else None,
        )


def _judged(
    photos: Sequence[Photo], preprocess: Preprocess, verified: Artifact
) -> dict[str, NDArray[Any]]:
    """What home judges outputs of records by (`kdcompile.gates.board_outputs`).

    `frames`, int64 [N, 3, 2]: the size of each photo, as it is seen, and of the input; of photo I
    `mask_I` or `boxes_I`; by `rows_NETWORK` the rows of the teacher and of an earlier bundle.
    """
    found: dict[str, NDArray[Any]] = {}
    frames = []
    for index, photo in enumerate(photos):
        frame = preprocess.frame(*photo.pixels(preprocess.channels).shape[:2])
        frames.append([frame.photo, frame.seen, frame.plane])
        if photo.mask is not None:
            found[f"mask_{index}"] = mask_of(photo)
        else:
            found[f"boxes_{index}"] = photo.boxes
    rows = read_arrays(verified.file(ROWS))
    found |= {f"rows_{network}": own for network, own in rows.items()}
    return {"frames": np.array(frames, np.int64), **found}
