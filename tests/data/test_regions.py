"""Masks from COCO's polygons and run lengths: as pycocotools draws them, and what is refused."""

import json

import numpy as np
import pytest
from coco_files import rewritten
from PIL import Image

from kdcompile.config.spec import Data, Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.data.masks import mask_of
from kdcompile.data.regions import IGNORED, Region, Regions, read_region
from kdcompile.data.splits import load_splits, photos_digest, splits_digest

SIZE = (6, 8)
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]


def coco(number: int) -> dict:
    """One image: a square of class 7, a disc's box of class 3 over its corner, and a crowd."""
    regions = [
        (SQUARE, 7, 0),
        ([[3, 3, 7, 3, 7, 6, 3, 6]], 3, 0),
        ({"size": [6, 8], "counts": [0, 18, 30]}, 3, 1),
    ]
    return {
        "images": [{"id": 9, "file_name": f"{number}.png", "width": 8, "height": 6}],
        "annotations": [
            {"id": n, "image_id": 9, "category_id": kind, "segmentation": one, "iscrowd": crowd}
            for n, (one, kind, crowd) in enumerate(regions)
        ],
        "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}],
    }


@pytest.fixture
def data(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        (tmp_path / f"{split}.json").write_text(json.dumps(coco(number)))
        image = Image.fromarray(np.full((6, 8, 3), 50 * number, np.uint8))
        image.save(tmp_path / f"{number}.png")
    return Data(format="coco", root=tmp_path, labels="masks")


def test_masks_have_the_categories_the_rest_overlaps_and_crowds(data):
    splits = load_splits(data, data.root)
    assert splits.classes == ("background", "disc", "square")
    rows = ["XXX00000", "X2220000", "X2220000", "X22X1110", "XXX11110", "XXX11110"]
    wanted = [[IGNORED if one == "X" else int(one) for one in row] for row in rows]
    assert mask_of(splits.train[0]).tolist() == wanted


def test_the_order_of_annotations_does_not_count(data):
    before = mask_of(load_splits(data, data.root).val[0])
    rewritten(data, lambda c: c["annotations"].reverse())
    assert (mask_of(load_splits(data, data.root).val[0]) == before).all()


def test_two_regions_of_one_class_may_overlap():
    square = tuple(np.array(one, np.float64).reshape(-1, 2) for one in SQUARE)
    twice = Regions(SIZE, [Region(1, False, square, None)] * 2, 0)
    assert np.unique(twice.drawn()).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "square", "rest"),
    [(["square", "disc"], 0, IGNORED), (["disc", "background", "square"], 2, 1)],
)
def test_the_spec_may_order_the_classes_and_leave_the_rest_out(data, classes, square, rest):
    named = data.model_copy(update={"classes": classes})
    splits = load_splits(named, data.root)
    mask = mask_of(splits.train[0])
    assert splits.classes == tuple(classes)
    assert (mask[2, 2], mask[0, 7]) == (square, rest)


def test_an_ignored_class_is_not_judged(data):
    without = data.model_copy(update={"ignore_index": 0})
    assert 0 not in mask_of(load_splits(without, data.root).train[0])


def test_a_category_may_be_the_background(data):
    for split in ("train", "val", "test"):
        rewritten(data, lambda c: c["categories"][1].update(name="background"), split)
    splits = load_splits(data, data.root)
    assert splits.classes == ("background", "square")
    assert mask_of(splits.train[0])[0, 7] == 0


def test_a_moved_corner_is_another_split(data):
    files, photos = (
        splits_digest(data, data.root, Hasher(data.root / "a.json")),
        photos_digest(load_splits(data, data.root).val),
    )
    rewritten(data, lambda c: c["annotations"][0]["segmentation"][0].__setitem__(0, 0))
    after = splits_digest(data, data.root, Hasher(data.root / "b.json"))
    assert {split for split in files if files[split] != after[split]} == {"val"}
    assert photos_digest(load_splits(data, data.root).val) != photos


def given(segmentation, **more):
    return lambda content: content["annotations"][0].update(segmentation=segmentation, **more)


@pytest.mark.parametrize(
    ("change", "code", "fix"),
    [
        (given([[1, 1, 4, 1, 4]]), "annotation-invalid", "an x and a y of each corner"),
        (given([[1, 1, 4, 1]]), "annotation-invalid", "give it 3 at least"),
        (given([[1, 1, 4, 1, 4, "4"]]), "annotation-invalid", "finite numbers"),
        (given([[1, 1, 4, 1, 4, float("inf")]]), "annotation-invalid", "finite numbers"),
        (given([[1, 1, 4, 1, 9.5, 4]]), "annotation-outside", "clipped to it"),
        (given([[1, 1, 4, 1, 4, -1.5]]), "annotation-outside", "clipped to it"),
        (given([]), "annotation-invalid", "[height, width]"),
        (given(None), "annotation-invalid", "[height, width]"),
        (given({"size": [6, 8], "counts": [4, 4]}), "annotation-invalid", "the whole mask again"),
        (given({"size": [6, 8], "counts": [40, 9]}), "annotation-invalid", "whole mask again"),
        (given({"size": [6, 8], "counts": [50, -2]}), "annotation-invalid", "from 0"),
        (given({"size": [6, 8], "counts": "~"}), "annotation-invalid", "pycocotools"),
        (given({"size": [6, 8], "counts": "P"}), "annotation-invalid", "pycocotools"),
        (given({"size": [8, 6], "counts": [48]}), "mask-size", "[height, width]"),
    ],
)
def test_what_is_wrong_is_refused_with_a_fix(data, change, code, fix):
    rewritten(data, change)
    with pytest.raises(KDError) as caught:
        load_splits(data, data.root)
    assert caught.value.code == code
    assert fix in str(caught.value.fix)


def test_a_corner_that_was_rounded_over_the_border_is_clipped(data):
    rewritten(data, given([[-1, -1, 9, -1, 9, 7, -1, 7]]))
    assert mask_of(load_splits(data, data.root).val[0])[1, 1] == 2


@pytest.mark.parametrize("classes", [["square"], ["square", "disc", "cube"], ["square"] * 2])
def test_classes_that_are_not_the_categories_are_refused(data, classes):
    with pytest.raises(KDError, match="classes-differ") as caught:
        load_splits(data.model_copy(update={"classes": classes}), data.root)
    assert "name each category once" in str(caught.value.fix)


def test_more_categories_than_a_mask_has_indices_are_refused(data):
    def add(content, count):
        content["categories"] += [{"id": 10 + n, "name": str(n)} for n in range(count)]

    for count, refused in ((252, False), (1, True)):
        for split in ("train", "val", "test"):
            rewritten(data, lambda c, n=count: add(c, n) if n > 1 else add_one(c), split)
        if not refused:
            assert len(load_splits(data, data.root).classes) == 255
    with pytest.raises(KDError, match="categories-many") as caught:
        load_splits(data, data.root)
    assert "254 categories at most" in str(caught.value.fix)


def add_one(content):
    content["categories"].append({"id": 999, "name": "one more"})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_regions_equal_those_of_pycocotools():
    coco_mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in random.integers(2, 40, 2))
        far = [width + 1, height + 1]
        polygons = [
            (random.uniform(-0.5, 1.1, (int(k), 2)) * [width, height])
            .clip(-1, far)
            .ravel()
            .tolist()
            for k in random.integers(3, 9, 2)
        ]
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        wanted = coco_mask.decode(code).astype(bool)
        runs = np.diff(np.flatnonzero(np.diff(wanted.T.ravel().astype(int), prepend=2, append=2)))
        runs = [0] * int(wanted[0, 0]) + [int(run) for run in runs]
        size = [height, width]
        packed = {"size": size, "counts": code["counts"].decode()}
        for given in (polygons, packed, {"size": size, "counts": runs}):
            region = read_region({"id": 1, "segmentation": given}, 1, (height, width), "a", "b")
            assert (region.covers((height, width)) == wanted).all()


@pytest.mark.parametrize(
    ("kind", "more", "labels"),
    [("segmentation", {}, "masks"), ("detection", {}, "boxes"), ("counting", {}, "boxes"),
     ("counting", {"labels": "masks"}, "masks"), ("segmentation", {"labels": "boxes"}, "boxes")],
)  # fmt: skip
def test_the_task_chooses_what_is_read_unless_the_spec_does(kind, more, labels):
    spec = Spec(
        target="cpu",
        task={"kind": kind},
        teacher={"model": "a.py:b", "weights": "c"},
        data={"format": "coco", "root": "d", **more},
        student={"budget": {"width": 0.5}},
    )
    assert spec.data.labels == labels
