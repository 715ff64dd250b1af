"""`kdcompile plan --label N` of segmentation and detection: photos unlike the labelled ones."""

import json

import numpy as np
import pytest
import small_boxes
import small_masks
from click.testing import CliRunner
from PIL import Image

from kdcompile.cli import cli

GREY = 110


def segmenter(folder):
    """Photos of red and green boxes; the pool has a plain one and one full of green."""
    small_masks.write(folder)
    random, root = np.random.default_rng(1), folder / "data" / "pool"
    root.mkdir()
    plain = small_masks.scene(random)[0]
    full = np.full_like(plain, (60, 190, 70))
    return root, {"plain": plain, "unlike": full}


def detector(folder):
    """Photos of one to three things; the pool has one like them and one full of discs."""
    photos = small_boxes.write_data(folder / "data", {"train": 16, "val": 2, "test": 2})
    small_boxes.train_teacher(folder, photos["train"], steps=30)
    (folder / "kdcompile.toml").write_text(small_boxes.SPEC)
    y, x = np.mgrid[:64, :64] + 0.5
    full = np.full((64, 64, 3), GREY, np.float64)
    for top in range(0, 64, 21):
        for left in range(0, 64, 21):
            inside = np.hypot(x - left - 10, y - top - 10) <= 8
            full[inside] += (90, -40, -60)
    root = folder / "data" / "pool"
    root.mkdir()
    plain = small_boxes.scene(np.random.default_rng(77))[0]
    return root, {"plain": plain, "unlike": full.clip(0, 255).astype(np.uint8)}


@pytest.mark.parametrize("make", [segmenter, detector])
def test_the_photo_that_is_unlike_the_labelled_ones_comes_first(tmp_path, make):
    root, pool = make(tmp_path)
    for name, pixels in pool.items():
        Image.fromarray(pixels).save(root / f"{name}.png")
    command = ["plan", str(tmp_path), "--set", "data.unlabelled=pool", "--label", "9", "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["images"]] == ["pool/unlike.png", "pool/plain.png"]
    assert found["networks"] == ["teacher"]
    far, near = (one["distance"] for one in found["images"])
    assert far > 2 * near > 0
