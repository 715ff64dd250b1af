"""Boxes from the outputs of each known head, and heads that nothing is known of."""

import numpy as np
import pytest

from kdcompile.config.detection import Head
from kdcompile.core.errors import KDError
from kdcompile.tasks.detection.anchors import packed_anchors, read_anchors, unpacked_anchors
from kdcompile.tasks.detection.boxes import Found
from kdcompile.tasks.detection.decode import checked, find_decoder
from kdcompile.tasks.detection.decoders import DECODERS, Setting

PLANE = (64, 96)
HEAD = Head()


def decoded(name: str, outputs: dict, anchors=None, **settings) -> Found:
    head = Head(**{**DECODERS[name].defaults, **settings})
    return DECODERS[name].of(outputs, Setting(head, anchors), PLANE)


def test_a_centre_map_gives_a_box_a_peak():
    maps = np.full((1, 2 + 4, 16, 24), -9.0, np.float32)
    maps[0, 1, 4, 5], maps[0, 1, 4, 6] = 2.0, 1.0  # the neighbour is no peak
    maps[0, 0, 10, 20] = -1.0
    maps[0, 2:, 4, 5] = np.log([1, 2, 3, 4])
    maps[0, 2:, 10, 20] = np.log(2)
    found = decoded("centre", {"boxes": maps})
    assert found.classes.tolist() == [1, 0]
    assert found.scores == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    assert found.boxes[0] == pytest.approx([22 - 4, 18 - 8, 22 + 12, 18 + 16], rel=1e-6)
    assert found.boxes[1] == pytest.approx([74, 34, 90, 50], rel=1e-6)
    assert len(decoded("centre", {"boxes": maps}, lowest=0.5)) == 1


def test_distances_of_a_centre_map_end_somewhere():
    maps = np.full((1, 5, 4, 4), 1e4, np.float32)
    assert np.isfinite(decoded("centre", {"boxes": maps}).boxes).all()


ROWS = np.array([[10, 20, 4, 8], [10, 20, 4, 7], [50, 30, 10, 10]], np.float32)
SCORES = np.array([[0.1, 0.9], [0.0, 0.6], [0.8, 0.0]], np.float32)
WANTED = [[8, 16, 12, 24], [45, 25, 55, 35]]


def test_yolo_heads_of_both_layouts_are_suppressed_alike():
    sure = np.full((3, 1), 0.5, np.float32)
    five = {"output0": np.concatenate([ROWS, sure, SCORES], axis=1)[None]}
    eight = {"output0": np.concatenate([ROWS, SCORES], axis=1).T[None]}
    for name, outputs, scale in (("yolov5", five, 0.5), ("yolov8", eight, 1.0)):
        found = decoded(name, outputs, lowest=0.2)
        assert found.boxes.tolist() == WANTED
        assert found.scores == pytest.approx([0.9 * scale, 0.8 * scale])
        assert found.classes.tolist() == [1, 0]


def test_boxes_that_are_final_stay_as_they_are():
    rows = np.array([[0, 0, 10, 10, 0.4, 1], [0, 0, 10, 10, 0.9, 1], [0, 0, 1, 1, 0, 0]])
    assert decoded("boxes", {"out": rows[None]}).scores.tolist() == [0.9, 0.4]


def test_ssd_with_and_without_anchors(tmp_path):
    corners = np.concatenate([ROWS[:, :2] - ROWS[:, 2:] / 2, ROWS[:, :2] + ROWS[:, 2:] / 2], 1)
    found = decoded("ssd", {"loc": corners[None], "conf": SCORES[None]}, lowest=0.2)
    assert found.boxes.tolist() == WANTED
    np.savez(tmp_path / "anchors.npz", anchors=ROWS + np.array([1, 0, 0, 0]))
    offsets = np.zeros((1, 3, 4), np.float32)
    offsets[..., 0] = -1 / ROWS[:, 2] / 0.1
    nothing = 1 - SCORES.sum(1, keepdims=True)
    logits = np.log(np.concatenate([nothing, SCORES], axis=1) + 1e-9)[None]
    anchors = read_anchors(tmp_path / "anchors.npz")
    assert unpacked_anchors(packed_anchors(anchors)).tolist() == anchors.tolist()
    settings = {"anchors": anchors, "scores": "softmax", "background": "first"}
    found = decoded("ssd", {"loc": offsets, "conf": logits}, lowest=0.2, **settings)
    assert found.boxes == pytest.approx(np.array(WANTED), abs=1e-5)
    assert found.scores == pytest.approx([0.9, 0.8])
    with pytest.raises(KDError) as caught:
        decoded("ssd", {"loc": offsets[:, :2], "conf": logits[:, :2]}, **settings)
    assert caught.value.code == "task-anchors"
    assert "[A, 4]" in str(caught.value.fix)


def test_detr_boxes_are_shares_and_nothing_is_the_last_class():
    boxes = ROWS[None] / np.array([96, 64, 96, 64], np.float32)
    logits = np.array([[0, 5, 0], [0, 0, 9], [5, 0, 0]], np.float32)[None]
    found = decoded("detr", {"logits": logits, "pred_boxes": boxes}, lowest=0.5)
    assert found.boxes == pytest.approx(np.array(WANTED))
    assert sorted(found.classes.tolist()) == [0, 1]


def test_scores_that_are_no_probabilities_are_refused():
    with pytest.raises(KDError) as caught:
        decoded("ssd", {"loc": ROWS[None], "conf": 3 * SCORES[None]})
    assert caught.value.code == "task-scores"
    assert "sigmoid" in str(caught.value.fix)
    assert len(decoded("ssd", {"loc": ROWS[None], "conf": 3 * SCORES[None]}, scores="sigmoid"))


@pytest.mark.parametrize(
    ("shapes", "name", "classes"),
    [
        ({"a": (1, 7, 16, 24)}, "centre", 3),
        ({"a": (1, 25200, 85)}, "yolov5", 80),
        ({"a": (1, 84, 8400)}, "yolov8", 80),
    ],
)
def test_heads_are_known_by_their_shapes(shapes, name, classes):
    assert find_decoder(None, shapes) == name
    assert DECODERS[name].classes(shapes, HEAD) == classes


@pytest.mark.parametrize(
    ("name", "shapes", "message", "fix"),
    [
        (None, {"a": (1, 10)}, "no decoder is known", "file.py:f"),
        (None, {"a": (1, 4, 8, 8)}, "no decoder is known", "file.py:f"),
        (None, {"a": (1, 8, 4), "b": (1, 8, 3), "c": (1, 2)}, "no decoder", "file.py:f"),
        (None, {"a": (1, 300, 6)}, "may be of yolov5 or boxes", "task.decode ="),
        (None, {"a": (1, 300, 4), "b": (1, 300, 9)}, "may be of ssd or detr", "task.decode ="),
        ("yolov9", {"a": (1, 84, 8400)}, "no decoder 'yolov9'", "use one of"),
        ("yolov5", {"a": (1, 84, 8400)}, "yolov5 takes one output [N, A, 5 + C]", "leave"),
        ("ssd", {"a": (1, 9, 4), "b": (1, 8, 4)}, "ssd takes boxes", "leave"),
    ],
)
def test_a_head_that_no_decoder_knows_is_refused_with_what_to_do(name, shapes, message, fix):
    with pytest.raises(KDError) as caught:
        find_decoder(name, shapes)
    assert caught.value.code == "task-decode"
    assert message in caught.value.message
    assert fix in str(caught.value.fix)


def test_two_outputs_are_told_apart_by_their_sizes_or_names():
    assert DECODERS["ssd"].classes({"s": (1, 9, 7), "b": (1, 9, 4)}, HEAD) == 7
    assert DECODERS["ssd"].classes({"boxes": (1, 9, 4), "scores": (1, 9, 4)}, HEAD) == 4
    assert DECODERS["detr"].classes({"a": (1, 9, 4), "b": (1, 9, 8)}, Head(background="last")) == 7


GOOD = ([[0, 0, 1, 1]], [0.5], [1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no boxes, scores and classes"),
        (GOOD[:2], "no boxes, scores and classes"),
        (([[0, 0, 1]], [0.5], [1]), "boxes of [1, 3]"),
        (([[0, 0, 1, 1]], [0.5, 0.5], [1]), "1 boxes, scores [2]"),
        (([[0, 0, np.nan, 1]], [0.5], [1]), "NaN"),
        (([[0, 0, 1, 1]], [7.0], [1]), "scores from 7"),
        (([[0, 0, 1, 1]], [0.5], [-1]), "a class of -1"),
        (([[0, 0, 1, 1]], [0.5], [0.5]), "a class of 0.5"),
        (([[0, 0, 1, 1]], [0.5], [2]), "a class of 2, where there are 2"),
    ],
)
def test_a_decode_of_the_users_that_gives_something_else_is_refused(given, message):
    with pytest.raises(KDError) as caught:
        checked(given, "own.py:decode", 2)
    assert caught.value.code == "task-decode"
    assert message in caught.value.message
    assert "boxes [D, 4]" in str(caught.value.fix)


def test_a_decode_of_the_users_may_find_nothing_or_something():
    assert len(checked(([], [], []), "own.py:decode", 2)) == 0
    assert checked(GOOD, "own.py:decode", 2).classes.tolist() == [1]
