"""Images are looked at once each, before a build; points and lists are judged."""

import json

import numpy as np
import pytest
from bad_inputs import SPEC, project
from PIL import Image

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.data import check
from kdcompile.data.check import CACHE, check_data
from kdcompile.data.photo import Photo, check_within, checked_points


@pytest.fixture
def looked(monkeypatch):
    """The names of the photos that were decoded."""
    names, decode = [], Photo.pixels

    def pixels(self, channels):
        names.append(self.name)
        return decode(self, channels)

    monkeypatch.setattr(Photo, "pixels", pixels)
    return names


@pytest.fixture
def spec(tmp_path):
    project(tmp_path)
    return load_spec(tmp_path / "kdcompile.toml")


def test_each_content_is_looked_at_once(spec, looked):
    store = spec.folder / ".kdcompile"
    check_data(spec, store)
    assert len(looked) == len(set(looked)) == 10
    looked.clear()
    check_data(spec, store)
    assert looked == []
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(spec.data.root / "images" / "val1.png")
    check_data(spec, store)
    assert looked == ["val1.png"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"by": 1}', '{"by": "x", "images": {}}', '{"images": [1], "by": "x"}']
)
def test_a_spoilt_record_only_costs_time(spec, looked, text):
    store = spec.folder / ".kdcompile"
    (store / CACHE).write_text(text)
    check_data(spec, store)
    assert len(looked) == 10
    assert len(json.loads((store / CACHE).read_text())["images"]) == 10


def test_another_version_looks_again(spec, looked, monkeypatch):
    store = spec.folder / ".kdcompile"
    check_data(spec, store)
    looked.clear()
    monkeypatch.setattr(check, "__version__", "0.0")
    check_data(spec, store)
    assert len(looked) == 10


def test_the_first_bad_image_ends_it(spec, looked, monkeypatch):
    monkeypatch.setattr(check.os, "cpu_count", lambda: 1)
    (spec.data.root / "images" / "train0.png").write_bytes(b"no image")
    with pytest.raises(KDError) as error:
        check_data(spec, spec.folder / ".kdcompile")
    assert error.value.code == "image-unreadable"
    assert not (spec.folder / ".kdcompile" / CACHE).exists()


def test_other_selections_than_even_are_left_to_calibrate(tmp_path):
    chosen = SPEC.replace("images = 4", 'images = 1\nselect = "random"')
    project(tmp_path, spec=chosen)
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "images" / "train0.png")
    check_data(load_spec(tmp_path / "kdcompile.toml"), tmp_path / ".kdcompile")


def test_a_few_points_may_stand_twice():
    points = [[float(i), 2.0] for i in range(20)]
    assert checked_points([*points, *points[:4]], "a", None).shape == (24, 2)
    assert checked_points([[1, 1], [1, 1]], "a", None).shape == (2, 2)
    with pytest.raises(KDError) as error:
        checked_points([*points, *points[:8]], "a", None)
    assert error.value.code == "annotation-duplicate"


def test_points_on_the_far_borders_are_within():
    points = checked_points([[0, 0], [8, 4]], "a", None)
    check_within(points, (4, 8), "a", "here")
    with pytest.raises(KDError) as error:
        check_within(points, (8, 4), "a", "here")
    assert "the first at [8, 4]" in error.value.message
    assert checked_points([], "a", None).shape == (0, 2)


@pytest.mark.parametrize(
    "points",
    [[["1", "2"]], [[True, False]], [[3, True]], np.array([[True]] * 2).T, np.array([["1", "2"]])],
)
def test_a_coordinate_is_a_number(points):
    """Which NumPy makes of text and truth values too."""
    with pytest.raises(KDError, match="no number") as caught:
        checked_points(points, "a", None)
    assert caught.value.code == "annotation-invalid"
