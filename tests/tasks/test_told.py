"""Numbers of an image's output that tell it from others: of classes of pixels, and of boxes."""

import numpy as np
import pytest

from kdcompile.data.coreset import GRID
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.task import find_task

SEGMENTATION, DETECTION = find_task("segmentation"), find_task("detection")


def test_pixels_are_the_share_of_each_class_and_where_the_network_is_unsure():
    output = np.zeros((1, 3, 16, 16), np.float32)
    output[0, 0, :, :8], output[0, 1, 8:, 8:] = 50, 50  # nothing is known of the last quarter
    shares, unsure = SEGMENTATION.told(output, Frame((64, 64), (64, 64), (64, 64)))
    assert shares[0] == pytest.approx([0.5 + 0.25 / 3, 0.25 + 0.25 / 3, 0.25 / 3])
    parts = unsure.reshape(GRID, GRID)
    assert parts[:4, 4:] == pytest.approx(np.ones((4, 4)))
    assert parts[4:] == pytest.approx(np.zeros((4, 8)), abs=1e-6)
    assert parts[:, :4] == pytest.approx(np.zeros((8, 4)), abs=1e-6)


def test_what_is_said_of_the_padding_is_nothing():
    frame = Frame((40, 32), (40, 32), (64, 64))
    output = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    other = output.copy()
    other[..., 10:, :], other[..., 8:] = 9, -9
    pairs = zip(SEGMENTATION.told(output, frame), SEGMENTATION.told(other, frame), strict=True)
    for one, same in pairs:
        np.testing.assert_allclose(one, same)
    assert SEGMENTATION.told(output, frame)[1].reshape(GRID, GRID)[5:].max() == 0


def maps(*peaks):
    found = np.full((1, 6, 16, 16), -9.0, np.float32)
    found[0, 2:] = 0
    for kind, y, x, score in peaks:
        found[0, kind, y, x] = np.log(score / (1 - score))
    return found


def test_boxes_are_their_scores_by_class_and_where_they_are_unsure():
    frame = Frame((128, 128), (64, 64), (64, 64))
    output = maps((0, 2, 2, 0.9), (0, 2, 12, 0.5), (1, 13, 3, 0.25))
    sums, unsure = DETECTION.told(output, frame)
    assert sums[0] == pytest.approx([1.4, 0.25])
    parts = unsure.reshape(GRID, GRID)
    assert parts[1, 1] == pytest.approx(0.2**2)
    assert parts[1, 6] == pytest.approx(1)
    assert parts[6, 1] == pytest.approx(0.5**2)
    assert parts.sum() == pytest.approx(1 + 0.2**2 + 0.5**2)
    narrow = DETECTION.told(output, Frame((64, 32), (64, 32), (64, 64)))
    assert narrow[0][0] == pytest.approx([0.9, 0.25])


def test_an_image_without_boxes_says_nothing():
    sums, unsure = DETECTION.told(maps(), Frame((64, 64), (64, 64), (64, 64)))
    assert (sums.tolist(), unsure.tolist()) == ([[0, 0]], [[0] * GRID**2])


@pytest.mark.parametrize("task", [SEGMENTATION, DETECTION])
def test_annotations_make_no_difference(task):
    output = np.random.default_rng(1).normal(size=(1, 6, 8, 8)).astype(np.float32)
    boxes, mask = np.array([[1, 1, 9, 9, 0]], np.float32), np.zeros((32, 32), np.uint8)
    sides = ((32, 32),) * 3
    plain = task.told(output, Frame(*sides))
    known = task.told(output, Frame(*sides, of=Photo("a", boxes=boxes, mask=mask)))
    for one, other in zip(plain, known, strict=True):
        np.testing.assert_array_equal(one, other)
