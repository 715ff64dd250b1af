"""`kdcompile init --from` on annotations of boxes: COCO files and the YOLO layout."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.data.splits import load_splits

MODEL = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, {outputs}, 1){more},
    )
"""
SPLITS = ("train", "val", "test")
RANDOM = np.random.default_rng(0)


def network(folder, outputs=6, more=""):
    """A detector of two classes by centre maps."""
    folder.mkdir(exist_ok=True)
    code = MODEL.format(outputs=outputs, more=more)
    (folder / "model.py").write_text(code)
    names: dict = {}
    exec(code, names)
    torch.save(names["build"]().state_dict(), folder / "w.pt")


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def coco(path, images, count=4, categories=("disc", "square")):
    """A COCO file of images in a folder; category ids begin at 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    for n in range(count):
        name = f"{path.stem}{n}.png"
        image(images / name)
        rows.append({"id": n, "file_name": name, "width": 32, "height": 32})
        boxes.append({"id": n, "image_id": n, "category_id": 3 + n % 2, "bbox": [2, 4, 10, 20]})
    kinds = [{"id": 3 + n, "name": name} for n, name in enumerate(categories)]
    found = {"images": rows, "annotations": boxes, "categories": kinds}
    path.write_text(json.dumps(found))


def init(tmp_path):
    """The spec, its data and what it says of its guesses."""
    args = ["init", str(tmp_path / "spec"), "--from", "model.py:build"]
    found = CliRunner().invoke(cli, [*args, "--data", str(tmp_path / "data"), "--target", "cpu"])
    if isinstance(found.exception, KDError):
        raise found.exception
    assert found.exit_code == 0, found.output
    path = tmp_path / "spec" / "kdcompile.toml"
    spec = load_spec(path)
    return spec, load_splits(spec.data, spec.folder), path.read_text()


def refused(tmp_path):
    """The error, after which nothing was written."""
    with pytest.raises(KDError) as caught:
        init(tmp_path)
    assert not (tmp_path / "spec" / "kdcompile.toml").exists()
    return caught.value


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("{}.json", "images"),
        ("{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
        ("annotations/instances_{}2017.json", "{}2017"),
    ],
)
def test_coco_files_of_splits(tmp_path, file, images):
    for split in SPLITS:
        coco(tmp_path / "data" / file.format(split), tmp_path / "data" / images.format(split))
    network(tmp_path / "spec")
    spec, splits, text = init(tmp_path)
    assert (spec.task.kind, spec.task.decode, spec.data.format) == ("detection", "centre", "coco")
    assert splits.classes == ("disc", "square")
    assert [len(getattr(splits, split)) for split in SPLITS] == [4, 4, 4]
    assert splits.test[1].boxes.tolist() == [[2, 4, 12, 24, 1]]
    assert "the output may be of segmentation" in text
    assert "guessed by the output's shape" in text


def test_the_spec_of_boxes_is_planned(tmp_path):
    for split in SPLITS:
        coco(tmp_path / "data" / f"{split}.json", tmp_path / "data" / "images")
    network(tmp_path / "spec")
    init(tmp_path)
    found = CliRunner().invoke(cli, ["plan", str(tmp_path / "spec"), "--json"])
    assert found.exit_code == 0, (found.output, found.exception)


def test_one_coco_file_is_split_by_a_factory(tmp_path):
    coco(tmp_path / "data" / "all.json", tmp_path / "data" / "photos", 20)
    network(tmp_path / "spec")
    spec, splits, _ = init(tmp_path)
    assert spec.data.format == "photos.py:photos"
    assert splits.classes == ("disc", "square")
    assert [len(getattr(splits, split)) for split in SPLITS] == [16, 2, 2]
    assert splits.train[0].boxes.tolist() == [[2, 4, 12, 24, 0]]


def test_a_network_of_densities_counts_the_same_boxes(tmp_path):
    for split in SPLITS:
        coco(tmp_path / "data" / f"{split}.json", tmp_path / "data" / "images")
    network(tmp_path / "spec", outputs=1)
    spec, splits, _ = init(tmp_path)
    assert spec.task.kind == "counting"
    assert splits.val[0].points.tolist() == [[7, 14]]


def yolo(root, keys=SPLITS, names="[disc, square]"):
    """The layout of a common exporter."""
    for split in keys:
        image(root / split / "images" / "a.png")
        (root / split / "labels").mkdir()
        (root / split / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    lines = [f"{split}: ../{split}/images" for split in keys]
    (root / "data.yaml").write_text("\n".join([*lines, f"names: {names}"]))


@pytest.mark.parametrize("keys", [SPLITS, ("train", "valid", "test")])
def test_the_yolo_layout(tmp_path, keys):
    yolo(tmp_path / "data", keys)
    network(tmp_path / "spec", more=", nn.Flatten(2)")  # [N, 4 + C, A]
    spec, splits, text = init(tmp_path)
    assert (spec.task.decode, spec.data.format, spec.data.val) == ("yolov8", "yolo", keys[1])
    assert splits.classes == ("disc", "square")
    assert splits.train[0].boxes.tolist() == [[12, 8, 20, 24, 1]]
    assert "# 2 classes" in text


def test_a_split_that_is_not_there_is_told(tmp_path):
    network(tmp_path / "spec")
    coco(tmp_path / "data" / "train.json", tmp_path / "data" / "images")
    error = refused(tmp_path)
    assert (error.code, "no COCO file for the val split" in error.message) == ("init-data", True)
    assert "val.json" in str(error.fix)
    for split in SPLITS[1:]:  # the fix
        coco(tmp_path / "data" / f"{split}.json", tmp_path / "data" / "images")
    init(tmp_path)


def test_a_yolo_layout_without_a_test_split_is_told(tmp_path):
    network(tmp_path / "spec")
    yolo(tmp_path / "data", SPLITS[:2])
    error = refused(tmp_path)
    assert error.code == "split-missing"
    assert "write test:" in str(error.fix)


@pytest.mark.parametrize(
    ("outputs", "more", "message"),
    [
        (7, "", "the data has 2 classes, the network scores of 3"),
        (3, ", nn.AdaptiveAvgPool2d(1), nn.Flatten()", "is for classification, the data is for de"),
        (4, "", "is for segmentation, the data is for detection"),
    ],
)
def test_a_network_of_something_else_is_told(tmp_path, outputs, more, message):
    for split in SPLITS:
        coco(tmp_path / "data" / f"{split}.json", tmp_path / "data" / "images")
    network(tmp_path / "spec", outputs, more)
    error = refused(tmp_path)
    assert error.code == "init-unfit"
    assert message in error.message
    network(tmp_path / "spec")  # the fix
    init(tmp_path)


def test_outputs_that_no_task_knows_name_the_heads(tmp_path):
    for split in SPLITS:
        coco(tmp_path / "data" / f"{split}.json", tmp_path / "data" / "images")
    network(tmp_path / "spec", 3, ", nn.Flatten(2)")
    error = refused(tmp_path)
    assert error.code == "init-output"
    assert "a head of boxes that a decoder knows" in str(error.fix)
