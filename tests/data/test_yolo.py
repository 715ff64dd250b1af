"""The YOLO layout: data.yaml, folders of images and labels, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.data.splits import load_splits
from kdcompile.data.yolo_file import read_yolo

NAMES = "names:\n  0: disc\n  1: square\n"
PLACES = "train: train/images\nval: ../valid/images  # exported\ntest: test/images\n"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data.yaml").write_text(PLACES + "nc: 2\n" + NAMES)
    for number, folder in enumerate(("train", "valid", "test")):
        for kind in ("images", "labels"):
            (tmp_path / folder / kind).mkdir(parents=True)
        image = Image.fromarray(np.full((6, 8, 3), 50 * number, np.uint8))
        image.save(tmp_path / folder / "images" / "a.png")
        (tmp_path / folder / "labels" / "a.txt").write_text("1 0.25 0.5 0.5 0.5\n0 .5 .5 1 1\n")
    return Data(format="yolo", root=tmp_path)


def test_boxes_are_shares_of_the_image(data):
    splits = load_splits(data, data.root)
    assert splits.classes == ("disc", "square")
    assert [photo.name for photo in splits.val] == ["valid/images/a.png"]
    assert splits.val[0].boxes.tolist() == [[0, 1.5, 4, 4.5, 1], [0, 0, 8, 6, 0]]


def test_an_image_without_labels_shows_nothing(data):
    image = Image.fromarray(np.full((6, 8, 3), 7, np.uint8))
    image.save(data.root / "train" / "images" / "b.png")
    assert load_splits(data, data.root).train[1].boxes.shape == (0, 5)


def test_an_image_that_lies_on_its_side_is_stood_up_first(data):
    path = data.root / "train" / "images" / "a.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.full((8, 6, 3), 9, np.uint8)).save(path, exif=turned)
    (path.parent / "a.png").unlink()
    (photo,) = load_splits(data, data.root).train
    assert photo.pixels(3).shape[:2] == (6, 8)
    assert photo.boxes[1].tolist() == [0, 0, 8, 6, 0]


def test_lists_of_images_and_a_path_work_too(data):
    root = data.root
    (root / "set").mkdir()
    for name in ("train", "valid", "test"):
        (root / name).rename(root / "set" / name)
    (root / "set" / "val.txt").write_text("set/valid/images/a.png\n")
    text = "path: set\ntrain: [train/images]\nval: val.txt\ntest:\n  - test/images\n"
    (root / "data.yaml").write_text(text + NAMES)
    splits = load_splits(data, root)
    assert [photo.name for photo in (*splits.train, *splits.val, *splits.test)] == [
        "set/train/images/a.png", "set/valid/images/a.png", "set/test/images/a.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "names: ['a', \"b, c\"]",
        "names: [ a,\n  'b, c' ]\nnc: 2",
        "names:\n- a\n- 'b, c'\n",
        "names: {0: a, 1: 'b, c'}",
        "# names: x\ndownload: |\n  names = [1]\n  print('x')\nnames:\n  0: a  # the first\n"
        "  1: 'b, c'\nroboflow:\n  version: 1\n",
    ],
)
def test_names_are_read_in_every_usual_style(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    assert read_yolo(tmp_path / "data.yaml").names == ("a", "b, c")


@pytest.mark.parametrize(
    "text",
    ["", "names:\n", "names: [a, a]", "names: [a", "names:\n  0: a\n  2: b\n", "nc: 3\nnames: [a]",
     "names:\n  first: a\n"],
)  # fmt: skip
def test_names_that_are_none_are_refused(data, text):
    (data.root / "data.yaml").write_text(PLACES + text)
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == "annotations-syntax"
    assert "0: disc" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("2 .5 .5 .5 .5", "category-unknown", "name the class"),
        ("-1 .5 .5 .5 .5", "annotations-syntax", "centre x, centre y"),
        ("0.5 .5 .5 .5 .5", "category-unknown", "name the class"),
        ("0 .5 .5 .5", "annotations-syntax", "centre x, centre y"),
        ("0 .1 .1 .2 .2 .3 .3 .4 .4", "annotations-syntax", "centre x, centre y"),
        ("0 .5 .5 .5 x", "annotations-syntax", "centre x, centre y"),
        ("0 .5 .5 nan .5", "annotation-invalid", "correct them"),
        ("0 .5 .5 -.5 .5", "annotation-invalid", "correct them"),
        ("0 .5 .5 0 .5", "annotation-invalid", "correct them"),
        ("0 .9 .5 .5 .5", "annotation-outside", "clipped to it"),
        ("0 320 240 20 20", "annotation-outside", "clipped to it"),
    ],
)
def test_a_wrong_line_is_refused_with_a_fix(data, text, code, fix):
    (data.root / "valid" / "labels" / "a.txt").write_text(text + "\n")
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == code
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("train: train/images\nval: valid/images\n", "split-missing", "write test:"),
        (PLACES.replace("test/", "tost/"), "split-missing", "correct the path"),
        (PLACES.replace("test/images", "../../elsewhere"), "split-missing", "correct the path"),
    ],
)
def test_a_split_that_is_absent_is_refused(data, text, code, fix):
    (data.root / "data.yaml").write_text(text + NAMES)
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == code
    assert fix in str(caught.value.fix)


def test_a_split_without_labels_is_refused(data):
    (data.root / "test" / "labels" / "a.txt").unlink()
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == "labels-missing"
    assert caught.value.where.endswith("labels/a.txt")


def test_an_image_that_is_none_is_refused(data):
    (data.root / "test" / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == "image-unreadable"


def test_without_a_file_the_fix_names_where_it_should_lie(data):
    (data.root / "data.yaml").unlink()
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == "annotations-missing"
    assert "data.annotations" in str(caught.value.fix)
