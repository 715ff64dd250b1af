"""Outputs that a board kept of a test pack, evaluated at home by the pack's annotations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.arrays import Arrays, check_finite, open_arrays, read_arrays
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.gates.board_record import BoardRecord, Candidate
from kdcompile.remote.agent.pack import JUDGED, Pack
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.task import Floats, find_task

LARGEST = 8 << 30  # bytes of a candidate's outputs, unpacked: as much as is copied from a board
ROWS = "rows_"  # and the network, of `judged.npz`


@dataclass(frozen=True)
class Home:
    """What a merge judges outputs by: the test pack here, and the folder of the board's outputs."""

    pack: Path
    outputs: Path


@dataclass(frozen=True, eq=False)
class BoardRows:
    """Rows [N, 1 + W] of the test images, by `Recording.record`.

    Args:
        students: of each candidate that kept its outputs, by precision.
        teacher: of the teacher.
        previous: of the network of an earlier bundle, where one is judged against.
    """

    students: Mapping[str, Floats]
    teacher: Floats
    previous: Floats | None


def board_rows(home: Home, kit: Mapping[str, Any], record: BoardRecord, name: str) -> BoardRows:
    """The rows of every candidate of a record.

    Args:
        home: the pack and the outputs.
        kit: `kit.json` of the bundle.
        record: of the board.
        name: of the task.

    Raises:
        KDError: `pack-*`; `merge-mismatch`, it is another pack than the board's; `device-outputs`,
            the outputs are absent, torn or of another run; those of `Recording.record`.
    """
    of_build = {key: kit.get(key) for key in ("task", "output", "teacher") if key in kit}
    preprocess = {"preprocess.json": kit["files"].get("preprocess.json")}
    pack = Pack(str(home.pack), {"task": None, "output": None, **of_build, "files": preprocess})
    ran = None if record.test is None else (record.test.pack, record.test.digest)
    if not pack.is_judged_at_home or ran != (pack.sha256, pack.summary()["digest"]):
        raise KDError(
            "merge-mismatch",
            f"the board did not run the test pack {home.pack.name}",
            where=str(home.pack),
            fix="give --test-pack the folder that was copied to the board",
        )
    task = find_task(name).with_settings(pack.about["settings"])
    assert isinstance(task, Recording), "no other task's outputs are judged at home"
    judged = read_arrays(home.pack / JUDGED, LARGEST)
    photos = [_photo(pack.names[i], i, judged) for i in range(len(pack.names))]
    frames = [
        Frame((one[0], one[1]), (one[2], one[3]), (one[4], one[5]))
        for one in judged["frames"].reshape(-1, 6).tolist()
    ]
    views = list(zip(photos, frames, strict=True))
    students: dict[str, Floats] = {
        c.precision: _rows_of(c, home.outputs, views, task, judged[f"{ROWS}teacher"].shape)
        for c in record.candidates
        if c.outputs is not None
    }
    return BoardRows(students, judged[f"{ROWS}teacher"], judged.get(f"{ROWS}previous"))


def _photo(name: str, index: int, judged: Mapping[str, NDArray[Any]]) -> Photo:
    """A photo's annotations, without its pixels."""
    if f"mask_{index}" in judged:
        return Photo(name, mask=judged[f"mask_{index}"])
    return Photo(name, boxes=judged[f"boxes_{index}"])


def _rows_of(
    candidate: Candidate,
    folder: Path,
    views: list[tuple[Photo, Frame]],
    task: Recording,
    shape: tuple[int, ...],
) -> Floats:
    """The rows of what one candidate gave; they must be of the teacher's shape."""
    assert candidate.outputs is not None, "who has none is left out"
    path = folder / candidate.outputs.file
    try:
        if file_sha256(path) != candidate.outputs.sha256:
            raise ValueError("it is not the file of this device.json")
        with open_arrays(path, LARGEST) as outputs:
            rows = [_row(outputs, i, *view, task) for i, view in enumerate(views)]
        if any(len(row) != shape[1] for row in rows):
            raise ValueError("its outputs are of another network than the teacher's task")
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from error
    except KeyError as error:
        raise _unusable(path, f"it has no output {error} of {len(views)}") from error
    except (ValueError, IndexError) as error:
        raise _unusable(path, str(error)) from error
    return np.array(rows)


def _row(outputs: Arrays, index: int, photo: Photo, frame: Frame, task: Recording) -> Floats:
    """The row of one image's output, which must be a task's [1, ...] of finite numbers.

    Raises:
        KeyError: there is none.
        ValueError: it is another.
    """
    output = outputs[str(index)]
    check_finite({photo.name: output}, "f")
    try:
        why = task.check_output(output.shape)
        if why is None and 0 not in output.shape and output.shape[0] == 1:
            return task.record(output, photo, frame)
    except KDError as error:  # a head, or a class, of another network
        why = error.message
    why = why or "it is not of one image"
    raise ValueError(f"{photo.name} has an output {list(output.shape)}: {why}")


def _unusable(path: Path, why: str) -> KDError:
    return KDError(
        "device-outputs",
        f"the board's outputs {path.name} cannot be evaluated: {why}",
        where=str(path),
        fix=f"copy out/{path.name} from the board, of the run of this device.json, next to it",
    )
