"""A test pack is whole, streams its photos, and never replaces what is none."""

import json

import numpy as np
import pytest

from kdcompile.bundle.testpack import SHARD, write_test_pack
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Preprocess

ABOUT = {
    "task": {"kind": "counting", "output": "density"}, "seed": 7, "available": 90, "samples": "0",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """`write(folder, count)` -> the pack's JSON."""
    (tmp_path / "teacher.onnx").write_bytes(b"a teacher")
    (tmp_path / "preprocess.json").write_text("{}")

    def make(folder, count=SHARD + 3, rows=None):
        photos = ((np.full((4, 5, 3), i % 256, np.uint8), {}) for i in range(count))
        numbers = range(count if rows is None else rows)
        told = [{"name": f"{i}.jpg", "true": i, "teacher": i + 0.5} for i in numbers]
        return write_test_pack(
            folder, photos, told, {"fp32": tmp_path / "teacher.onnx"},
            preprocess=tmp_path / "preprocess.json", **ABOUT,
        )  # fmt: skip

    return make


def test_contents(write, tmp_path):
    about = write(tmp_path / "pack")
    assert json.loads((tmp_path / "pack/pack.json").read_text()) == about
    assert about["shards"] == ["photos_000.npz", "photos_001.npz"]
    assert set(about["files"]) == {*about["shards"], "teacher_fp32.onnx"}
    assert all(file_sha256(tmp_path / "pack" / n) == sha for n, sha in about["files"].items())
    assert about["preprocess"] == file_sha256(tmp_path / "preprocess.json")
    assert (about["seed"], about["available"], about["output"]) == (7, 90, "density")
    assert (about["names"][34], about["true"][34], about["teacher"][34]) == ("34.jpg", 34.0, 34.5)
    with np.load(tmp_path / "pack/photos_001.npz") as arrays:
        assert arrays.files == ["32", "33", "34"]
        assert (arrays["34"].dtype, arrays["34"].max()) == (np.uint8, 34)


def test_an_older_pack_is_replaced_whole(write, tmp_path):
    write(tmp_path / "pack")
    write(tmp_path / "pack", 2)
    assert {p.name for p in (tmp_path / "pack").iterdir()} == {
        "pack.json", "photos_000.npz", "teacher_fp32.onnx"
    }  # fmt: skip
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_of_something_else_is_left_alone(write, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years")
    for place in (tmp_path / "mine", tmp_path / "mine/thesis.tex"):
        with pytest.raises(KDError) as caught:
            write(place)
        assert caught.value.code == "output-exists"
        assert "new folder" in caught.value.fix
    assert (tmp_path / "mine/thesis.tex").read_text() == "years"


def test_photos_and_rows_must_agree(write, tmp_path):
    with pytest.raises(KDError) as caught:
        write(tmp_path / "pack", 3, rows=4)
    assert caught.value.code == "pack-photos"
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_photos_prepare_to_the_same_bits(channels):
    preprocess = Preprocess(
        channels, (0.4,) * channels, (0.3,) * channels, (32, 48), (64, 96)
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for shape in ((200, 310), (1000, 40), (64, 96), (10, 20)):
        pixels = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
        fitted = preprocess.scaled(pixels)
        assert fitted.dtype == np.uint8
        assert fitted.shape[0] <= 64
        assert fitted.shape[1] <= 96
        assert preprocess(fitted).tobytes() == preprocess(pixels).tobytes()
