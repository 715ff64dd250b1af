"""COCO files: boxes, classes, and what is wrong with them."""

import json

import numpy as np
import pytest
from coco_files import rewritten
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data.splits import load_splits, splits_digest

CATEGORIES = [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}]


def coco(number: int) -> dict:
    """One image with a box of each class, and one of a crowd."""
    boxes = [([1, 2, 4, 3], 7, 0), ([0, 0, 2.5, 6], 3, 0), ([5, 1, 3, 3], 3, 1)]
    return {
        "images": [{"id": 9, "file_name": f"{number}.png", "width": 8, "height": 6}],
        "annotations": [
            {"id": n, "image_id": 9, "category_id": kind, "bbox": box, "iscrowd": crowd}
            for n, (box, kind, crowd) in enumerate(boxes)
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        (tmp_path / f"{split}.json").write_text(json.dumps(coco(number)))
        image = Image.fromarray(np.full((6, 8, 3), 50 * number, np.uint8))
        image.save(tmp_path / "images" / f"{number}.png")
    return Data(format="coco", root=tmp_path)


def test_boxes_are_corners_and_classes_are_numbered_by_ascending_id(data):
    splits = load_splits(data, data.root)
    assert splits.classes == ("disc", "square")
    (photo,) = splits.train
    assert photo.name == "0.png"
    assert photo.boxes.dtype == np.float32
    assert photo.boxes.tolist() == [[1, 2, 5, 5, 1], [0, 0, 2.5, 6, 0], [5, 1, 8, 4, -1]]
    assert photo.pixels(3).shape == (6, 8, 3)


def test_a_box_that_was_rounded_over_the_border_is_clipped(data):
    rewritten(data, lambda c: c["annotations"][0].update(bbox=[-0.5, 2, 9.5, 5]))
    assert load_splits(data, data.root).val[0].boxes[0].tolist() == [0, 2, 8, 6, 1]


def test_an_image_without_boxes_stays(data):
    def add(content):
        content["images"].append({"id": 1, "file_name": "more.png", "width": 8, "height": 6})

    Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).save(data.root / "more.png")
    rewritten(data, add, "train")
    assert load_splits(data, data.root).train[1].boxes.shape == (0, 5)


def test_images_lie_beside_the_file_or_where_the_spec_says(data):
    folder = data.root / "valid" / "photos"
    folder.mkdir(parents=True)
    (data.root / "images" / "1.png").rename(folder / "1.png")
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == "image-missing"
    assert 'data.val = "val.json:FOLDER"' in str(caught.value.fix)
    named = data.model_copy(update={"val": "val.json:valid/photos"})
    assert load_splits(named, data.root).val[0].path == folder / "1.png"
    (data.root / "val.json").rename(folder / "instances.json")
    beside = data.model_copy(update={"val": "valid/photos/instances.json"})
    assert load_splits(beside, data.root).val[0].path == folder / "1.png"


def test_a_moved_box_is_another_split(data):
    before = splits_digest(data, data.root, Hasher(data.root / "hashes.json"))
    rewritten(data, lambda c: c["annotations"][0].update(bbox=[1, 2, 4, 4]))
    after = splits_digest(data, data.root, Hasher(data.root / "hashes.json"))
    assert {split for split in before if before[split] != after[split]} == {"val"}


def box(*values):
    return lambda content: content["annotations"][0].update(bbox=list(values))


def field(part: str, **values):
    return lambda content: content[part][0].update(values)


@pytest.mark.parametrize(
    ("change", "code", "fix"),
    [
        (box(5, 2, 4.5, 3), "annotation-outside", "clipped to it"),
        (box(-1.5, 2, 4, 3), "annotation-outside", "clipped to it"),
        (box(1, 2, 4, 5.5), "annotation-outside", "clipped to it"),
        (box(8.5, 2, 0.5, 3), "annotation-outside", "clipped to it"),
        (box(1, 2, -4, 3), "annotation-invalid", "width, height, both over 0"),
        (box(1, 2, 4, 0), "annotation-invalid", "width, height, both over 0"),
        (box(float("nan"), 2, 4, 3), "annotation-invalid", "correct them"),
        (box(1, 2, 4), "annotation-invalid", '"bbox": [x, y, width, height]'),
        (box("1", 2, 4, 3), "annotation-invalid", '"bbox": [x, y, width, height]'),
        (field("annotations", category_id=5), "category-unknown", "use one of 3, 7"),
        (field("annotations", category_id=True), "category-unknown", "use one of 3, 7"),
        (field("annotations", image_id=5), "annotation-missing", "add the image"),
        (field("annotations", id=1), "annotation-twice", "keep one"),
        (field("annotations", id=None), "annotations-syntax", "docs/data.md"),
        (field("images", file_name=""), "annotations-syntax", "docs/data.md"),
        (field("images", width=0), "annotations-syntax", "docs/data.md"),
        (field("images", width=1 << 20, height=257), "annotations-syntax", "docs/data.md"),
        (field("categories", id=3), "annotation-twice", "keep one"),
        (field("categories", name="disc"), "annotation-twice", "keep one"),
        (field("categories", name="cube"), "classes-differ", "the same categories"),
        (lambda c: c["images"].append(dict(c["images"][0])), "annotation-twice", "keep one"),
        (lambda c: c["images"].append({**c["images"][0], "id": 8}), "annotation-twice", "keep"),
        (lambda c: c.update(images=[]), "coco-images", "list them"),
        (lambda c: c.update(annotations=[]), "coco-empty", "name the file that has them"),
        (lambda c: c.update(categories=[]), "annotations-syntax", "docs/data.md"),
        (lambda c: c.pop("categories"), "annotations-syntax", "docs/data.md"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_a_fix(data, change, code, fix):
    rewritten(data, change)
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == code
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "code"), [(None, "annotations-missing"), ("{", "annotations-syntax"),
                       ("[]", "annotations-syntax")]
)  # fmt: skip
def test_a_file_that_is_none_is_refused(data, text, code):
    path = data.root / "test.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == code
