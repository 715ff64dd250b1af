"""docs/data.md says what is so: its factory and its specs are read as they are printed."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcompile.config.load import load_spec
from kdcompile.core import plugins
from kdcompile.data.masks import mask_of
from kdcompile.data.photo import Photo
from kdcompile.data.splits import SPLITS, load_splits

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
MASKS, FACTORY, GREY = re.findall(r"^```toml\n(.*?)^```", TEXT, re.S | re.M)
TEACHER = '[teacher]\nmodel = "model.py:build"\nweights = "w.safetensors"\n'


@pytest.fixture
def folder(tmp_path):
    """Four images a split, each with as many heads as its number."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data.py").write_text(CODE)
    for number, split in enumerate(SPLITS):
        rows = []
        for i in range(4):
            name = f"images/{split}{i}.jpg"
            Image.new("RGB", (32, 24), (40 * number, 50 * i, 9)).save(tmp_path / "data" / name)
            rows.append({"file": name, "heads": [[3, k] for k in range(i)]})
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_factory_is_a_data_set(folder):
    (folder / "kdcompile.toml").write_text(TEACHER + FACTORY)
    spec = load_spec(folder / "kdcompile.toml")
    found = load_splits(spec.data, spec.folder)
    for split in SPLITS:
        photos = getattr(found, split)
        assert [photo.count for photo in photos] == [0, 1, 2, 3]
        assert photos[0].pixels(3).shape == (24, 32, 3)


def test_every_format_and_every_field_of_a_photo_is_in_the_tables():
    named = set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.M))
    fields = {field.name for field in dataclasses.fields(Photo)}
    assert named - {"format"} == {*plugins.names("formats")} | fields


def test_grey_images_enter_the_network_as_they_are(folder):
    for split in SPLITS:
        for i, name in enumerate(sorted((folder / "data" / "images").glob(f"{split}*"))):
            place = folder / "data" / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            name.rename(place / name.name)
    (folder / "kdcompile.toml").write_text('task.kind = "classification"\n' + TEACHER + GREY)
    spec = load_spec(folder / "kdcompile.toml")
    channels = spec.export.profile[1][1]
    assert len(spec.data.mean) == len(spec.data.std) == channels == 1
    photo = load_splits(spec.data, spec.folder).train[1]
    pixels = photo.pixels(channels)
    assert pixels.shape == (24, 32, 1)
    entering = (pixels / 255 - spec.data.mean[0]) / spec.data.std[0]
    np.testing.assert_allclose(entering, pixels, rtol=1e-5)


def test_the_masks_are_read_as_printed(tmp_path):
    root = tmp_path / "camvid"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        Image.new("RGB", (32, 24), (40 * number, 5, 9)).save(root / "images" / f"{split}.jpg")
        Image.new("L", (32, 24), 11).save(root / "labels" / f"{split}.png")
        (root / f"{split}.txt").write_text(split)
    (tmp_path / "kdcompile.toml").write_text(TEACHER + '[task]\nkind = "segmentation"\n' + MASKS)
    spec = load_spec(tmp_path / "kdcompile.toml")
    splits = load_splits(spec.data, spec.folder)
    assert splits.classes == ("sky", "building")
    assert (mask_of(splits.val[0]) == 255).all()
