"""Outputs that a board kept: judged by the test pack's annotations, or refused with a fix."""

import hashlib
import json

import numpy as np
import pytest
from played_board import GATES, candidate, host_report, record

from kdcompile.config.gates import Gates
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.gates.board_choice import chosen_at_home
from kdcompile.gates.board_context import board_context
from kdcompile.gates.board_outputs import BoardRows, Home, board_rows
from kdcompile.gates.board_record import read_record
from kdcompile.gates.from_board import _untaken, judge_board
from kdcompile.tasks.task import find_task

NAMES = ["a", "b"]
FRAME = Frame((12, 20), (6, 10), (8, 16))  # scaled to half, and padded
KIT = {"task": "segmentation", "output": "logits", "teacher": "3" * 64,
       "files": {"preprocess.json": "2" * 64}}  # fmt: skip
TASK = find_task("segmentation")


def masks():
    made = np.zeros((2, 12, 20), np.uint8)
    made[:, :, 10:], made[1, 6:] = 1, 2
    return made


def logits(mask):
    """What says of each cell over the photo what its mask has there, and in the padding class 2."""
    classes = np.full((8, 16), 2)
    classes[:6, :10] = mask[::2, ::2]
    return np.float32(9) * (classes == np.arange(3)[:, None, None])[None].astype(np.float32)


@pytest.fixture
def home(tmp_path):
    """A test pack, what a board kept of it, and `device.json` (in `home.record`)."""
    pack, out = tmp_path / "pack", tmp_path / "out"
    pack.mkdir()
    out.mkdir()
    photos = [Photo(name, mask=mask) for name, mask in zip(NAMES, masks(), strict=True)]
    rows = np.array([TASK.record(logits(photo.mask), photo, FRAME) for photo in photos])
    judged = {f"mask_{i}": mask for i, mask in enumerate(masks())}
    sizes = np.array([[FRAME.photo, FRAME.seen, FRAME.plane]] * 2)
    np.savez(pack / "judged.npz", frames=sizes, rows_teacher=rows, **judged)
    about = {
        "format": 1, "task": "segmentation", "output": "logits", "settings": {},
        "preprocess": "2" * 64, "seed": 0, "available": 2, "names": NAMES, "true": [0.0, 0.0],
        "teacher": rows[:, 0].tolist(), "shards": [],
        "files": {"judged.npz": file_sha256(pack / "judged.npz"), "teacher_fp32.onnx": "3" * 64},
    }  # fmt: skip
    (pack / "teacher_fp32.onnx").write_bytes(b"a teacher")
    about["files"]["teacher_fp32.onnx"] = file_sha256(pack / "teacher_fp32.onnx")
    (pack / "pack.json").write_text(json.dumps(about))
    np.savez(out / "outputs_fp16.npz", **{str(i): logits(m) for i, m in enumerate(masks())})
    return Home(pack, out)


def kit_of(home):
    return {**KIT, "teacher": file_sha256(home.pack / "teacher_fp32.onnx")}


def made_record(home, **other):
    """The record of a run of the pack, which kept the fp16 engine's outputs."""
    about = json.loads((home.pack / "pack.json").read_text())
    told = [[about[key] for key in ("names", "true", "teacher")]]
    found = record("0" * 64)
    found["test"] |= {
        "pack": file_sha256(home.pack / "pack.json"), "n": 2,
        "digest": hashlib.sha256(json.dumps(*told).encode()).hexdigest(), **other,
    }  # fmt: skip
    own = candidate("fp16")
    del own["predictions"]
    path = home.outputs / "outputs_fp16.npz"
    sha = file_sha256(path) if path.exists() else "0" * 64
    found["candidates"] = [own | {"outputs": {"file": path.name, "sha256": sha}}]
    found["chosen"], found["engine"] = "fp16", "e_fp16.plan"
    return found


def rows_of(home, **other):
    found = read_record(made_record(home, **other), "device.json")
    return board_rows(home, kit_of(home), found, "segmentation")


def test_outputs_become_rows_by_the_annotations_without_the_padding(home):
    found = rows_of(home)
    assert found.students["fp16"].shape == found.teacher.shape == (2, 10)
    np.testing.assert_array_equal(found.students["fp16"], found.teacher)
    assert found.students["fp16"][:, 1:].sum(0)[:3].sum() + found.teacher[:, 7:].sum() == 2 * 240
    assert found.previous is None


def change(arrays, **other):
    return {**arrays, **other}


FAULTS = {
    "a class fewer": (lambda a: change(a, **{"1": a["1"][:, :2]}), "an output [1, 2, 8, 16]"),
    "a class more": (lambda a: change(a, **{"1": np.ones((1, 4, 8, 16))}), "another network"),
    "no map": (lambda a: change(a, **{"1": a["1"][0, 0]}), "logits [N, K, h, w]"),
    "an empty map": (lambda a: change(a, **{"1": a["1"][..., :0]}), "[1, 3, 8, 0]"),
    "two images in one": (lambda a: change(a, **{"1": a["1"].repeat(2, 0)}), "[2, 3, 8, 16]"),
    "a NaN": (lambda a: change(a, **{"1": a["1"] * np.nan}), "not of finite numbers"),
    "whole numbers": (lambda a: change(a, **{"1": a["1"].astype(int)}), "of int64"),
    "one image fewer": (lambda a: {"0": a["0"]}, "no output '1'"),
    "no array": (lambda a: b"nothing", "no .npz archive"),
    "nothing": (lambda a: None, "No such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_outputs_that_cannot_be_judged_are_refused(home, fault):
    spoil, why = FAULTS[fault]
    path = home.outputs / "outputs_fp16.npz"
    with np.load(path) as arrays:
        spoiled = spoil(dict(arrays))
    path.unlink()
    if isinstance(spoiled, dict):
        np.savez(path, **spoiled)
    elif spoiled is not None:
        path.write_bytes(spoiled)
    with pytest.raises(KDError) as caught:
        rows_of(home)
    assert caught.value.code == "device-outputs"
    assert why in caught.value.message
    assert "copy out/outputs_fp16.npz from the board" in str(caught.value.fix)


def test_outputs_of_another_run_are_refused(home):
    found = made_record(home)
    found["candidates"][0]["outputs"]["sha256"] = "0" * 64
    with pytest.raises(KDError, match=r"not the file of this device\.json"):
        board_rows(home, kit_of(home), read_record(found, "device.json"), "segmentation")


@pytest.mark.parametrize("other", [{"pack": "0" * 64}, {"pack": None}, {"digest": "0" * 64}])
def test_another_pack_than_the_boards_is_refused(home, other):
    with pytest.raises(KDError) as caught:
        rows_of(home, **other)
    assert caught.value.code == "merge-mismatch"
    assert "the folder that was copied to the board" in str(caught.value.fix)


def test_annotations_that_were_changed_are_refused(home):
    found = read_record(made_record(home), "device.json")
    (home.pack / "judged.npz").write_bytes(b"others")
    with pytest.raises(KDError) as caught:
        board_rows(home, kit_of(home), found, "segmentation")
    assert caught.value.code == "pack-corrupt"


def test_no_task_of_numbers_takes_a_pack_at_the_merge(home):
    value = record("0" * 64)
    kit = {"target": {"name": "jetson-orin-nano-8gb", "title": "NVIDIA Jetson Orin Nano 8GB",
                      "compute_capability": "8.7", "tensorrt": "10.3", "memory_gb": 8},
           "files": {"agent.pyz": value["worker"]}, "profile": [[1, 1, 32, 48]] * 3}  # fmt: skip
    with pytest.raises(KDError) as caught:
        judge_board(host_report(), kit, GATES, value, "device.json", home)
    assert caught.value.code == "test-pack-unneeded"


def test_what_was_read_of_another_engine_is_not_the_chosen_ones(home):
    value = made_record(home)
    int8 = dict(value["candidates"][0], precision="int8", engine="e_int8.plan", sqnr_db=41.0)
    value["candidates"].append(int8)
    value["chosen"] = "int8"
    value["frame"] = {
        "precision": "int8", "blocks": [3.0] * 12, "images": 2, "sizes": "20x12 PNG",
        "parts": dict.fromkeys(("decode", "preprocess", "inference", "postprocess"), 0.5),
    }  # fmt: skip
    report, taken = host_report("segmentation"), read_record(value, "device.json")
    right = np.array([TASK.record(logits(m), Photo("a", mask=m), FRAME) for m in masks()])
    wrong = np.array([TASK.record(-logits(m), Photo("a", mask=m), FRAME) for m in masks()])
    every, settings = np.tile(right, (15, 1)), Gates.model_validate({"accuracy": {}})
    rows = BoardRows({"fp16": every, "int8": np.tile(wrong, (15, 1))}, every, None)
    found = chosen_at_home(report, settings, taken, rows)
    assert found.chosen == "fp16"
    assert "does not pass" in found.why
    assert board_context(report, taken, taken.winner, rows).frame is not None
    assert board_context(report, found, found.winner, rows).frame is None
    assert "build_engine.py --precision fp16" in _untaken(found.frame, "fp16", "never")
    assert _untaken(None, "fp16", "never") == "never"
