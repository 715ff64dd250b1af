"""`bench` of a bundle times the whole frame of its sample on photos."""

import numpy as np
import pytest
from PIL import Image

from kdcompile import api
from kdcompile.bundle.manifest import read_bundle
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.latency import frame
from kdcompile.latency.frame_sample import shipped_in
from kdcompile.latency.settings import Effort
from kdcompile.passes.bundle import install, run


@pytest.fixture(scope="module")
def folder(make_step, preprocess, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    made = run(make_step(store, preprocess), store, None)
    return install(made, tmp_path_factory.mktemp("there") / "out")


def test_the_frame_of_a_bundle(folder, preprocess, tmp_path, monkeypatch):
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.setattr(frame, "EFFORT", Effort(processes=1, blocks=4, seconds=0.5))
    shape = (1, preprocess.channels, *preprocess.min_hw)
    found = api.bench(folder, images=[tmp_path], shape=shape, seconds=0.5, processes=1)
    assert found.frame.mode == "infer.py by onnxruntime on 1 image files, 80x60 PNG"
    assert found.frame.ms > found.frame.parts["decode"] > 0
    assert found.document().frame == found.frame


def test_what_is_timed_is_what_the_bundle_ships(folder):
    bundle = read_bundle(folder)
    shipped = shipped_in(bundle)
    assert (shipped.task, shipped.precision, shipped.backend) == (
        bundle.manifest["task"], bundle.manifest["precision"], "onnxruntime",
    )  # fmt: skip
    assert shipped.files == {
        "preprocess.json": folder / "preprocess.json", "model.onnx": folder / "model.onnx",
    }  # fmt: skip


def test_a_photo_that_is_not_there_ends_it_before_anything_is_timed(folder, tmp_path):
    with pytest.raises(KDError) as error:
        api.bench(folder, images=[tmp_path / "absent.jpg"])
    assert error.value.code == "frame-images"
