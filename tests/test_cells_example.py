"""The example on blood cells: its photos, networks and their training, and its teachers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdcompile.config.detection import Head
from kdcompile.config.load import load_spec
from kdcompile.data.splits import load_splits
from kdcompile.examples.cells import reduce_photos, train_teacher
from kdcompile.examples.cells.centre_loss import loss_of, target_of
from kdcompile.examples.cells.network import CLASSES, STRIDE
from kdcompile.examples.cells.training_photos import (
    Annotated,
    read_split,
    seen_boxes,
    seen_centres,
)
from kdcompile.models.factory import load_teacher
from kdcompile.tasks.detection.decoders import DECODERS, Setting

pytestmark = pytest.mark.usefixtures("drawn")

FOLDER = Path(train_teacher.__file__).parent


@pytest.fixture(scope="module")
def photos():
    """Four noisy photos of 272x256 with a dark square each."""
    random = np.random.default_rng(0)
    made = []
    for index in range(4):
        pixels = random.integers(180, 220, (3, 256, 272)).astype(np.uint8)
        x, y = 40 + 30 * index, 60
        pixels[:, y : y + 60, x : x + 60] = 40
        box = np.array([[x, y, x + 60, y + 60, 0]], np.float32)
        made.append(Annotated(torch.from_numpy(pixels), box))
    return made


def test_the_photos_are_small_and_of_their_size():
    files = sorted((FOLDER / "images").glob("*.jpg"))
    assert len(files) == 364
    notes = [p for p in FOLDER.iterdir() if p.suffix in (".json", ".jsonl", ".txt")]
    assert sum(path.stat().st_size for path in files + notes) < 4e6
    assert {tuple(p.pixels.shape) for p in read_split(FOLDER, "test")} == {(3, 384, 512)}
    assert "MIT" in (FOLDER / "NOTICE.md").read_text()


def test_no_photo_is_in_two_splits_and_red_cells_are_the_boxes():
    splits = load_splits(load_spec(FOLDER / "count.toml").data, FOLDER)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (205, 87, 72)
    names = [photo.name for photo in (*splits.train, *splits.val, *splits.test)]
    assert len(set(names)) == len(names)
    red = [int((p.boxes[:, 4] == train_teacher.RED).sum()) for p in read_split(FOLDER, "test")]
    assert [photo.count for photo in splits.test] == red


def test_annotations_are_scaled_with_their_photos():
    given = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 100, 50]}],
        "categories": [{"id": 1, "name": "RBC"}],
    }
    scaled = reduce_photos.scaled_to(given, 320)
    assert (scaled["images"][0]["width"], scaled["images"][0]["height"]) == (320, 240)
    assert scaled["annotations"][0]["bbox"] == [5.0, 10.0, 50.0, 25.0]
    line = {"image": "a.jpg", "points": [[30.0, 22.5]]}
    assert json.loads(json.dumps(reduce_photos.red_cells(scaled))) == [line]


@pytest.mark.parametrize("name", ["detect", "count"])
def test_the_teachers_suit_their_specs(name):
    spec = load_spec(FOLDER / f"{name}.toml")
    assert spec.teacher.weights.stat().st_size < 4e6
    halves = [t for t in load_file(spec.teacher.weights).values() if t.is_floating_point()]
    assert {t.dtype for t in halves} == {torch.float16}
    outputs = CLASSES + 4 if name == "detect" else 1
    assert load_teacher(spec)(torch.zeros(1, 3, 96, 128)).shape == (1, outputs, 12, 16)


def test_the_teachers_know_the_cells():
    some = read_split(FOLDER, "val")[::6]  # neighbours are annotated alike
    found, _ = train_teacher.judge_boxes(some, load_teacher(load_spec(FOLDER / "detect.toml")))
    assert found > 0.7
    error, _ = train_teacher.judge_counts(some, load_teacher(load_spec(FOLDER / "count.toml")))
    assert -error < 4


def test_a_perfect_map_has_no_loss_and_its_boxes_come_back():
    boxes = np.array([[20, 30, 100, 90, 0], [150, 140, 200, 220, 2]], np.float32)
    none = np.zeros((0, 5), np.float32)
    target = target_of([boxes], [none], CLASSES, 256, STRIDE)
    assert target.weight.sum() == pytest.approx(2)
    peaks = torch.where(target.heat == 1, 20.0, -20.0)
    output = torch.cat([peaks, (target.box / STRIDE).clamp(min=1e-3).log()], 1)
    assert loss_of(output, target, STRIDE) < 1e-3
    found = DECODERS["centre"].of({"maps": output.numpy()}, Setting(Head()), (256, 256))
    order = np.argsort(found.boxes[:, 0])
    assert found.boxes[order] == pytest.approx(boxes[:, :4], abs=1e-2)
    assert found.classes[order].tolist() == [0, 2]
    worse = output.clone()
    worse[:, CLASSES:] += 0.5
    assert loss_of(worse, target, STRIDE) > 1


def test_a_box_of_which_little_is_seen_is_not_asked():
    boxes = np.array([[-50, 10, 30, 60, 0], [-20, 100, 60, 160, 0]], np.float32)
    asked, hidden = seen_boxes(boxes, 256)  # 0.375 and 0.75 of them
    assert asked.tolist() == [[0, 100, 60, 160, 0]]
    assert hidden.tolist() == [[0, 10, 30, 60, 0]]
    target = target_of([asked], [hidden], CLASSES, 256, STRIDE)
    assert target.asked[0, 0, 4, 1] == 0
    assert target.asked[0, 0, 16, 3] == 1
    assert seen_centres(boxes, 256, 0).tolist() == [[20, 130]]


@pytest.mark.parametrize("kind", ["detector", "counter"])
def test_a_training_goes_on_where_it_stopped(kind, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "SIDE", 64)
    monkeypatch.setattr(train_teacher, "BATCH", 2)
    batch, judge = train_teacher.KINDS[kind]

    def trained(steps_first):
        found = None
        for stop in (steps_first, 2):
            training = train_teacher.begin(kind, FOLDER / "detector.safetensors", 2)
            training.run(
                lambda step: batch(photos, step), lambda n: (judge(photos[:1], n)[0], ""),
                tmp_path / f"{steps_first}.pt", 1, stop,
            )  # fmt: skip
            found = training.average.state_dict()
        return found

    once, twice = trained(2), trained(1)
    assert all(torch.equal(once[name], twice[name]) for name in once)
