"""Matching and average precision of boxes, held against pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kdcompile.tasks.detection.average_precision import Table
from kdcompile.tasks.detection.boxes import Found, overlaps, suppressed
from kdcompile.tasks.detection.matching import SIZES, matched, packed
from kdcompile.tasks.records import weights_of

CLASSES = 3


def scene(random: np.random.Generator, crowds: bool) -> tuple[Found, np.ndarray]:
    """Boxes that are near annotated ones or not, some scores equal, in a photo of 300 x 300."""
    count, side = int(random.integers(0, 9)), 300
    low = random.integers(0, 4 * 200, (count, 2)) / 4
    size = 4 * 2.0 ** random.integers(0, 6, (count, 1)) * random.integers(3, 6, (count, 2)) / 4
    kinds = random.integers(0, CLASSES, count)
    truth = np.concatenate([low, low + size, kinds[:, None]], axis=1).astype(np.float32)
    near = np.repeat(truth, 3, axis=0).astype(float)
    near[:, :4] += random.integers(-8, 9, (len(near), 4)) * np.repeat(size.min(1), 3)[:, None] / 64
    far = random.integers(0, side, (6, 4)).astype(float)
    far[:, 2:] = far[:, :2] + random.integers(1, 90, (6, 2))
    boxes = np.concatenate([near[:, :4], far])
    classes = np.concatenate([near[:, 4], random.integers(0, CLASSES, 6)]).astype(np.int64)
    if crowds:
        hidden = random.random(count) < 0.2
        truth[hidden, 4] = -1 - truth[hidden, 4]
    return Found(boxes, random.integers(1, 40, len(boxes)) / 40, classes), truth


def by_pycocotools(scenes: Sequence[tuple[Found, np.ndarray]]) -> Any:
    """The evaluation of scenes, each an image of its own."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, found = [], []
    for image, (some, boxes) in enumerate(scenes, 1):
        for x0, y0, x1, y1, kind in boxes.astype(float):
            crowd = kind < 0
            truth.append({
                "id": len(truth) + 1, "image_id": image, "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": int(-1 - kind if crowd else kind) + 1, "iscrowd": int(crowd),
                "area": (x1 - x0) * (y1 - y0),
            })  # fmt: skip
        for (x0, y0, x1, y1), score, kind in zip(
            some.boxes, some.scores, some.classes, strict=True
        ):
            box = [x0, y0, x1 - x0, y1 - y0]
            found.append({
                "image_id": image, "bbox": box, "score": score, "category_id": int(kind) + 1
            })  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = {
            "images": [{"id": n, "width": 300, "height": 300} for n in range(1, len(scenes) + 1)],
            "annotations": truth,
            "categories": [{"id": n, "name": str(n)} for n in range(1, CLASSES + 1)],
        }
        gt.createIndex()
        run = cocoeval.COCOeval(gt, gt.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def rows(scenes: Sequence[tuple[Found, np.ndarray]], classes: int = CLASSES) -> np.ndarray:
    return np.stack([packed(matched(some, truth, classes)) for some, truth in scenes])


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    scenes = [scene(random, crowds=seed % 2 == 1) for _ in range(12)]
    stats = by_pycocotools(scenes).stats
    once = np.ones((1, len(scenes)))
    table = Table(rows(scenes))
    assert table.mean(once)[0] == pytest.approx(stats[0], abs=1e-9)
    assert table.mean(once, [0])[0] == pytest.approx(stats[1], abs=1e-9)
    assert 0.02 < stats[0] < 0.9
    for place, size in enumerate(SIZES, 2):
        own = Table(rows(scenes), size).mean(once)[0]
        wanted = stats[0] if size == "all" else stats[place]
        wanted = np.nan if wanted == -1 else wanted
        assert own == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_each_class_is_that_of_pycocotools(seed):
    random = np.random.default_rng(100 + seed)
    scenes = [scene(random, crowds=True) for _ in range(8)]
    precision = by_pycocotools(scenes).eval["precision"][:, :, :, 0, -1]  # overlap, recall, class
    found = Table(rows(scenes)).by_class(np.ones((1, len(scenes))))[0]
    for kind in range(CLASSES):
        wanted = precision[:, :, kind]
        expected = np.nan if (wanted == -1).all() else wanted.mean()
        assert found[kind] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_resample_weighs_images_as_if_they_were_there_so_often():
    random = np.random.default_rng(7)
    scenes = [scene(random, crowds=True) for _ in range(10)]
    for some, _ in scenes:  # no two scores are equal: pycocotools goes by the images' order there
        some.scores[:] = random.random(len(some))
    places = random.integers(0, 10, (4, 10))
    found = Table(rows(scenes)).mean(weights_of(places, 10))
    for row, own in zip(places, found, strict=True):
        assert own == pytest.approx(by_pycocotools([scenes[n] for n in row]).stats[0], abs=1e-9)


def test_nothing_annotated_has_no_precision_and_nothing_found_has_none():
    nothing = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    box = np.array([[10, 10, 30, 30, 0]], np.float32)
    assert np.isnan(Table(rows([(nothing, box[:0])], 1)).mean(np.ones((1, 1)))[0])
    assert Table(rows([(nothing, box)], 1)).mean(np.ones((1, 1)))[0] == 0.0
    right = Found(box[:, :4].astype(float), np.ones(1), np.zeros(1, np.int64))
    assert Table(rows([(right, box)], 1)).mean(np.ones((1, 1)))[0] == pytest.approx(1.0)


def test_misses_and_false_boxes_at_a_threshold():
    truth = np.array([[0, 0, 10, 10, 0], [20, 20, 40, 40, 1]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 40, 40]], float)
    found = Found(boxes, np.array([0.9, 0.5, 0.3]), np.array([0, 0, 1]))
    table = Table(rows([(found, truth)], 2))
    assert [part.tolist() for part in table.at_threshold(0.5)] == [[1, 0], [0, 1], [1, 0]]
    assert [part.tolist() for part in table.at_threshold(0.3)] == [[1, 1], [0, 0], [1, 0]]
    assert table.curve(0).tolist() == [1.0] * 101
    twice = Table(rows([(found, truth), (found.above(0.95), truth)], 2))
    assert twice.curve(0).tolist() == [1.0] * 51 + [0.0] * 50


def test_suppression_is_per_class_and_keeps_what_overlaps_less():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [0, 5, 10, 15]], float)
    found = Found(boxes, np.array([0.5, 0.9, 0.4, 0.3]), np.array([0, 0, 1, 0]))
    assert overlaps(boxes[:1], boxes[1:2])[0, 0] == pytest.approx(0.8)
    assert suppressed(found, 0.5).scores.tolist() == [0.9, 0.4, 0.3]
    assert suppressed(found, 0.81).scores.tolist() == [0.9, 0.5, 0.4, 0.3]
    assert suppressed(found, 0.5, most=2).scores.tolist() == [0.9, 0.4]
    shifted = found.scaled(2.0, 0.5, (6, 16))
    assert shifted.boxes.tolist()[:1] == [[0, 0, 16, 5]]
    assert len(found.scaled(1.0, 1.0, (5, 20))) == 3  # one lies outside, without area
