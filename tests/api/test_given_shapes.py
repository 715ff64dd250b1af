"""Masks and boxes passed as objects: what is written of them is what was passed, or an error."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.data.given import written
from kdcompile.data.masks import mask_of
from kdcompile.data.pool import load_pool
from kdcompile.data.splits import load_splits

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 6, 3), np.uint8)
MASK = np.arange(48).reshape(8, 6) % 3
BOXES = [[0, 1, 3, 4.5, 1], [2, 2, 6, 8, 0]]


def given(label, **changes):
    def of(*numbers):
        return [(PIXELS[number], label) for number in numbers]

    return {"train": of(0, 1, 2), "val": of(3), "test": of(4), "unlabelled": [PIXELS[5]]} | changes


def read(data, kind, folder):
    section, shape = written(data, kind, folder)
    found = Data(**section)
    return found, shape, load_splits(found, folder)


@pytest.mark.parametrize(
    "form", [np.uint8, np.int64, torch.tensor, lambda m: torch.tensor(m)[None],
             lambda m: Image.fromarray(m.astype(np.uint8))]
)  # fmt: skip
def test_masks_in_any_form_are_index_pngs(tmp_path, form):
    names = ["a", "b", "c"]
    data, shape, splits = read(given(form(MASK), classes=names), "segmentation", tmp_path)
    assert (data.format, shape, splits.classes) == ("masks", [3, 8, 6], tuple(names))
    for photo, number in ((splits.train[2], 2), (splits.test[0], 4)):
        assert (mask_of(photo) == MASK).all()
        assert (photo.pixels(3) == PIXELS[number]).all()
    (pooled,) = load_pool(data, tmp_path, splits).photos
    assert (pooled.pixels(3) == PIXELS[5]).all()


def test_equal_masks_are_one_folder_and_others_another(tmp_path):
    first, again = (written(given(MASK), "segmentation", tmp_path)[0] for _ in range(2))
    assert first == again
    assert written(given(2 - MASK), "segmentation", tmp_path)[0]["root"] != first["root"]
    assert len(list(tmp_path.iterdir())) == 2
    data, _, _ = read(given(MASK, ignore_index=2), "segmentation", tmp_path)
    assert data.ignore_index == 2


@pytest.mark.parametrize(
    "label",
    [
        BOXES,
        np.array(BOXES),
        torch.tensor(BOXES),
        {"boxes": torch.tensor(BOXES)[:, :4], "labels": torch.tensor([1, 0])},
    ],
)
def test_boxes_in_any_form_come_back(tmp_path, label):
    data, _, splits = read(given(label, classes=["disc", "square"]), "detection", tmp_path)
    assert (data.format, splits.classes) == ("coco", ("disc", "square"))
    assert splits.val[0].boxes.tolist() == BOXES
    assert (splits.val[0].pixels(3) == PIXELS[3]).all()
    (pooled,) = load_pool(data, tmp_path, splits).photos
    assert (pooled.pixels(3) == PIXELS[5]).all()


def test_an_image_without_boxes_and_classes_without_names(tmp_path):
    data = given(BOXES)
    data["train"][1] = (PIXELS[1], [])
    _, _, splits = read(data, "detection", tmp_path)
    assert [len(photo.boxes) for photo in splits.train] == [2, 0, 2]
    assert splits.classes == ("0", "1")


@pytest.mark.parametrize(
    ("kind", "label", "message", "fix"),
    [
        ("segmentation", MASK / 2, "a mask is float64", "whole numbers [H, W]"),
        ("segmentation", MASK.ravel(), "of shape [48]", "whole numbers [H, W]"),
        ("segmentation", MASK - 1, "from -1 to 1", "255 to leave one out"),
        ("segmentation", MASK + 254, "from 254 to 256", "255 to leave one out"),
        ("detection", [[1, 2, 3, 4]], "boxes have the shape [1, 4]", "x0, y0, x1, y1, class"),
        ("detection", [[1, 2, 3, 4, 0.5]], "no whole class", "classes from 0"),
        ("detection", [[1, 2, 3, 4, -1]], "no whole class", "classes from 0"),
        ("detection", [[1, 2, 3, np.nan, 0]], "no number", "in pixels"),
        ("detection", {"boxes": [[1, 2, 3, 4]]}, "no 'labels'", '"labels": [B]'),
        ("detection", {"boxes": [[1, 2, 3, 4]], "labels": [0, 1]}, "1 boxes and 2", '"labels"'),
        ("counting", [[1, 2, 3]], "points have the shape", "[[x, y], ...]"),
    ],
)
def test_a_label_that_is_none_is_refused_with_its_place_and_fix(
    tmp_path, kind, label, message, fix
):
    with pytest.raises(KDError) as caught:
        written(given(label), kind, tmp_path)
    assert caught.value.code == "sample-invalid"
    assert message in caught.value.message
    assert fix in str(caught.value.fix)
    assert caught.value.where == "data['train'][0]"


@pytest.mark.parametrize(
    ("kind", "label", "code"),
    [("detection", [[0, 0, 9, 8, 0]], "annotation-outside"),
     ("detection", [[3, 0, 3, 8, 0]], "annotation-invalid")],
)  # fmt: skip
def test_boxes_that_lie_wrongly_are_refused_as_those_of_files(tmp_path, kind, label, code):
    with pytest.raises(KDError) as caught:
        read(given(label), kind, tmp_path)
    assert caught.value.code == code
