"""Test pack: test images and the teacher, with which a board measures accuracy and speed-up.

`pack.json` with the names of the test images, their annotated values and the teacher's predictions,
and the SHA-256 of every other file; `teacher_PRECISION.onnx`; and the images as uint8 [h, w, C] in
`photos_NNN.npz`, scaled to what the network takes, so that the board only normalises them.
It is not a part of the bundle: images are large, and may be private.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.bundle.swap import beside, swap
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.store import Artifact
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import judged, load_splits
from kdcompile.tasks.task import task_of

NAME = "pack.json"
FORMAT = 1
TEACHERS = {"fp32": "teacher.onnx", "fp16": "teacher_fp16.onnx"}
SHARD = 32  # photos that are in memory at once, here and on the board
Pixels = NDArray[np.uint8]


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
    if task_of(spec).takes_rows:
        raise KDError(
            "pack-task",
            f"a board does not evaluate a task of kind {spec.task.kind}",
            where=f"{spec.path} [task] kind",
            fix="run build_engine.py of the kit without --test: it compares the outputs",
        )
    splits = load_splits(spec.data, spec.folder)
    photos = judged(splits.test, spec.data.max_test)
    if [photo.name for photo in photos] != [row["name"] for row in details["predictions"]]:
        raise KDError(
            "pack-photos",
            "the test split is not the one that verify evaluated",
            where="[data] test",
            fix="kdcompile build, then write the test pack again",
        )
    export = made["export"]
    preprocess = Preprocess.from_json(export.json("preprocess.json"))
    return write_test_pack(
        folder,
        (preprocess.scaled(photo.pixels(preprocess.channels)) for photo in photos),
        details["predictions"],
        {p: export.file(name) for p, name in TEACHERS.items() if name in export.files},
        preprocess=export.file("preprocess.json"),
        task=details["task"],
        seed=spec.seed,
        available=len(splits.test),
    )


def write_test_pack(
    folder: Path,
    photos: Iterable[Pixels],
    rows: Sequence[Mapping[str, Any]],
    teachers: Mapping[str, Path],
    *,
    preprocess: Path,
    task: Mapping[str, Any],
    seed: int,
    available: int,
) -> dict[str, Any]:
    """Write a pack, whole or not at all; an older pack in the folder is replaced.

    Args:
        folder: where; absent, empty or a pack.
        photos: uint8 [h, w, C] in the order of `rows`, no larger than the network takes.
        rows: `name`, `true` and `teacher` of each photo, and `taught` where the teacher lacks its
            class, as the report's `predictions` has them.
        teachers: the teacher's ONNX by precision.
        preprocess: `preprocess.json` of the build; the kit's must be the same.
        task: `kind` and `output` of the task.
        seed: of the gates' resampling.
        available: photos of the whole test split.

    Returns:
        What `pack.json` says.

    Raises:
        KDError: `output-exists`, the folder holds something else; `output-unwritable`;
            `pack-photos`, there are more or fewer photos than rows.
    """
    _refuse_foreign(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with beside(folder) as temporary:
            fresh = temporary / "new"
            fresh.mkdir()
            for precision, path in teachers.items():
                shutil.copyfile(path, fresh / f"teacher_{precision}.onnx")
            shards = _write_photos(fresh, photos, len(rows))
            about = {
                "format": FORMAT,
                "task": task["kind"],
                "output": task["output"],
                "preprocess": file_sha256(preprocess),
                "seed": seed,
                "available": available,
                "names": [str(row["name"]) for row in rows],
                "true": [float(row["true"]) for row in rows],
                "teacher": [float(row["teacher"]) for row in rows],
                "taught": [bool(row.get("taught", True)) for row in rows],
                "shards": shards,
                "files": {path.name: file_sha256(path) for path in sorted(fresh.iterdir())},
            }
            write_json(fresh / NAME, about)
            swap(fresh, folder)
    except OSError as error:
        raise KDError(
            "output-unwritable",
            f"the test pack cannot be written: {error.strerror}",
            where=str(folder.absolute()),
            fix="free the disk or the folder's permissions, or name another folder",
        ) from error
    return about


def _write_photos(folder: Path, photos: Iterable[Pixels], count: int) -> list[str]:
    """The shards' names; a photo's key is its index."""
    shards: list[str] = []
    index = 0
    for part in _parts(iter(photos)):
        name = f"photos_{len(shards):03d}.npz"
        arrays = {str(index + place): pixels for place, pixels in enumerate(part)}
        np.savez_compressed(folder / name, allow_pickle=False, **arrays)
        shards.append(name)
        index += len(part)
    if index != count:
        raise KDError(
            "pack-photos",
            f"{index} images and {count} rows",
            where="the test pack",
            fix="build again: the test split has changed since verify evaluated it",
        )
    return shards


def _parts(photos: Iterator[Pixels]) -> Iterator[list[Pixels]]:
    while part := list(islice(photos, SHARD)):
        yield part


def _refuse_foreign(folder: Path) -> None:
    """Raise unless the folder is absent, empty, or holds nothing but an older pack."""
    if not folder.exists():
        return
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else [folder.name]
    ours = all(
        name == NAME
        or (name.startswith(("teacher_", "photos_")) and name.endswith((".onnx", ".npz")))
        for name in present
    )
    if not folder.is_dir() or (present and not (ours and NAME in present)):
        raise KDError(
            "output-exists",
            f"{folder.name} holds something that is no test pack ({present[0]})",
            where=str(folder.absolute()),
            fix="name a new folder after --test-pack",
        )
