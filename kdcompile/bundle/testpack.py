"""Test pack: test samples and the teacher, with which a board measures accuracy and speed-up.

`pack.json` with the names of the test images, their annotated values and the teacher's predictions,
and the SHA-256 of every other file; `teacher_PRECISION.onnx`; and the images as uint8 [h, w, C] in
`photos_NNN.npz`, scaled to what the network takes, so that the board only normalises them. Samples
of named tensors are rows there (`kdcompile.core.ports`), each beside the teacher's outputs. Of a
task of records `judged.npz` has the annotations and the teacher's records: the board keeps what
its engines gave, and home judges it.
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
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.ports import Ports, as_row

NAME = "pack.json"
FORMAT = 1
JUDGED = "judged.npz"  # annotations, for home alone
SHARD = 32  # photos that are in memory at once, here and on the board
Kept = tuple[NDArray[Any], Mapping[str, NDArray[Any]]]


def write_test_pack(
    folder: Path,
    photos: Iterable[Kept],
    rows: Sequence[Mapping[str, Any]],
    teachers: Mapping[str, Path],
    *,
    preprocess: Path,
    task: Mapping[str, Any],
    seed: int,
    available: int,
    samples: str,
    judged: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """Write a pack, whole or not at all; an older pack in the folder is replaced.

    Args:
        folder: where; absent, empty or a pack.
        photos: uint8 [h, w, C] no larger than the network takes, or a row, in the order of `rows`;
            and the teacher's outputs by name where they tell what is right, else nothing.
        rows: `name`, `true` and `teacher` of each photo, and `taught` where the teacher lacks its
            class, as the report's `predictions` has them.
        teachers: the teacher's ONNX by precision.
        preprocess: `preprocess.json` of the build; the kit's must be the same.
        task: `kind` and `output` of the task, and its `settings` where outputs are judged at home.
        seed: of the gates' resampling.
        available: photos of the whole test split.
        samples: `photos_digest` of it.
        judged: of a task whose outputs are judged at home, what it takes (`JUDGED`).

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
            shards, outputs = _write_photos(fresh, photos, len(rows))
            if judged is not None:
                np.savez_compressed(fresh / JUDGED, allow_pickle=False, **judged)
            about = {
                "format": FORMAT,
                "task": task["kind"],
                "output": task["output"],
                "settings": task.get("settings", {}),
                "preprocess": file_sha256(preprocess),
                "seed": seed,
                "available": available,
                "samples": samples,
                "outputs": outputs.to_json(),
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


def _write_photos(folder: Path, photos: Iterable[Kept], count: int) -> tuple[list[str], Ports]:
    """The shards' names, and what outputs the answers are of.

    A photo's key is its index I, that of the answer to it `answer_I`.
    """
    shards: list[str] = []
    outputs, index = Ports(()), 0
    for part in _parts(iter(photos)):
        name = f"photos_{len(shards):03d}.npz"
        arrays: dict[str, NDArray[Any]] = {}
        for place, (kept, answer) in enumerate(part, index):
            arrays[str(place)] = kept
            if answer:
                outputs = Ports.of(answer)
                arrays[f"answer_{place}"] = as_row(list(answer.values()))
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
    return shards, outputs


def _parts(photos: Iterator[Kept]) -> Iterator[list[Kept]]:
    while part := list(islice(photos, SHARD)):
        yield part


def _refuse_foreign(folder: Path) -> None:
    """Raise unless the folder is absent, empty, or holds nothing but an older pack."""
    if not folder.exists():
        return
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else [folder.name]
    ours = all(
        name in (NAME, JUDGED)
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
