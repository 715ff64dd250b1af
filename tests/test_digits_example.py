"""The example's data: scikit-learn's scans, the same canvases every time, no scan in two splits."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kdcompile.factory import load_factory

FOLDER = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def photos():
    return load_factory("canvases.py:photos", FOLDER)


def test_the_scans_are_scikit_learns():
    expected = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    with np.load(FOLDER / "digits.npz") as archive:
        assert np.array_equal(archive["images"], expected)


def test_a_name_always_means_the_same_canvases(photos):
    first, again = photos(FOLDER, "train:8"), photos(FOLDER, "train:8")
    assert all(np.array_equal(a.array, b.array) for a, b in zip(first, again, strict=True))
    other = photos(FOLDER, "train:8:1")
    assert not any(np.array_equal(a.array, b.array) for a, b in zip(first, other, strict=True))


def test_points_lie_on_ink(photos):
    for photo in photos(FOLDER, "test:30"):
        assert photo.array.shape == (64, 64, 1)
        assert photo.count <= 10
        for x, y in photo.points.astype(int):
            patch = photo.array[y - 5 : y + 6, x - 5 : x + 6]
            assert patch.mean() > photo.array.mean()


def test_an_empty_canvas_occurs(photos):
    counts = [photo.count for photo in photos(FOLDER, "val:100")]
    assert 0 in counts
    assert max(counts) == 10
