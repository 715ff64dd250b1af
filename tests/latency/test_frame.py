"""Whole frames of a sample: what is packed, what a worker times, and what it comes to."""

import json
import sys
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import onnx
import onnx_graphs
import pytest
from benching import Scene, subject
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess, RowPreprocess
from kdcompile.latency import frame_sample
from kdcompile.latency.frame import measure_frame, reduced_samples
from kdcompile.latency.frame_sample import (
    MOST,
    Shipped,
    described,
    packed,
    pictures_at,
    pictures_of,
)
from kdcompile.latency.frame_times import reduced
from kdcompile.latency.sampler import measure
from kdcompile.latency.settings import Effort, Mode
from kdcompile.remote.archive import agent_zip
from kdcompile.remote.frame import PARTS
from kdcompile.remote.open import open_place

FEW = Effort(processes=1, blocks=4, seconds=0.5)


def pixels(height=40, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def shipped(tmp_path):
    """A counting network of 16 x 16 pixels."""
    onnx.save(onnx_graphs.chain(2), tmp_path / "model.onnx")
    constants = Preprocess(3, (0.5,) * 3, (0.2,) * 3, (16, 16), (16, 16), "mirror").to_json()
    (tmp_path / "preprocess.json").write_text(json.dumps(constants))
    files = {name: tmp_path / name for name in ("model.onnx", "preprocess.json")}
    return Shipped("counting", None, files, "fp32")


def test_a_frame_and_its_parts_by_the_worker(shipped, tmp_path):
    pictures = pictures_of([Photo("a", array=pixels()), Photo("b", array=pixels(8, 9))])
    found = measure_frame(shipped, pictures, None, FEW)
    assert tuple(found.parts) == PARTS
    assert all(ms > 0 for ms in found.parts.values())
    assert sum(found.parts.values()) == pytest.approx(found.ms, rel=0.8)
    assert 0 < found.low <= found.ms <= found.high
    assert found.mode == "infer.py by onnxruntime on 2 image files, 9x8 JPEG to 30x40 JPEG"


def test_an_engine_is_run_by_the_samples_own_agent_and_at_a_place(shipped, tmp_path):
    """In the worker, where the agent of the same name is loaded already."""
    with open_place(None, "onnxruntime") as place:
        there, profile = place.path("frame-test.engine"), [[1, 3, 16, 16]] * 3
        onnx_file = place.put(tmp_path / "model.onnx")
        place.call("build", onnx=onnx_file, engine=there, precision="fp32", profile=profile)
        for name in ("", ".json"):
            place.get(there + name, tmp_path / f"model.engine{name}")
            place.call("remove", path=there + name)
    files = {name: tmp_path / name for name in ("model.engine", "model.engine.json")}
    files |= {"preprocess.json": tmp_path / "preprocess.json", "agent.pyz": agent_zip()}
    engine = replace(shipped, files=files)
    found = measure_frame(
        engine, pictures_of([Photo("a", array=pixels())]), f"python:{sys.executable}", FEW
    )
    assert min(found.ms, found.parts["inference"]) > 0
    assert found.mode.endswith(frame_sample.BY_FILES)


def test_no_image_stays_at_the_place(shipped, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "work"))
    measure_frame(shipped, pictures_of([Photo("a", array=pixels())]), None, FEW)
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_a_sample_that_cannot_run_is_an_error_of_its_own(shipped):
    with pytest.raises(KDError) as caught:
        measure_frame(shipped, [("a.jpg", b"no image")], None, FEW)
    assert caught.value.code in ("sample-failed", "frame-images")
    assert caught.value.fix


def test_what_is_packed(shipped, tmp_path):
    path = packed(tmp_path / "made", shipped, [("x.jpg", b"1"), ("y.png", b"2")])
    with ZipFile(path) as archive:
        assert archive.namelist() == [
            "infer.py", "manifest.json", "model.onnx", "photos/000.jpg", "photos/001.png",
            "preprocess.json",
        ]  # fmt: skip
        about = json.loads(archive.read("manifest.json"))
    assert set(about["files"]) == {"model.onnx", "preprocess.json"}
    assert (about["task"], about["engine"], about["model"]) == ("counting", None, "model.onnx")


def test_named_tensors_have_no_frame(shipped, tmp_path):
    rows = RowPreprocess.of(Ports((Port("signal", (1, 4), "float32"),)))
    (tmp_path / "preprocess.json").write_text(json.dumps(rows.to_json()))
    with pytest.raises(KDError, match="no image") as caught:
        packed(tmp_path / "made", shipped, [("x.jpg", b"1")])
    assert caught.value.code == "frame-images"


def test_photos_are_spread_over_the_split_and_kept_as_they_are_encoded(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels()).save(path)
    many = [Photo(f"{i}", encoded=b"%d" % i) for i in range(10 * MOST)]
    found = pictures_of(many)
    assert [content for _, content in found] == [b"%d" % (10 * i) for i in range(MOST)]
    assert pictures_of([Photo("a", path=path)]) == [("a.png", path.read_bytes())]
    ((name, content),) = pictures_of([Photo("grey", array=pixels(channels=1))])
    assert name == "grey.jpg"
    assert content[:2] == b"\xff\xd8"


def test_files_folders_and_test_packs(tmp_path):
    inside = tmp_path / "folder/deep"
    inside.mkdir(parents=True)
    Image.fromarray(pixels()).save(inside / "b.PNG")
    (inside / "note.txt").write_text("no image")
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "pack.json").write_text("{}")
    np.savez(pack / "photos_000.npz", **{"0": pixels(), "1": pixels(), "answer_0": np.zeros(3)})
    found = pictures_at([tmp_path / "folder", pack])
    assert [name for name, _ in found] == ["b.PNG", "0.jpg", "1.jpg"]
    for wrong in (tmp_path / "absent.jpg", inside / "nothing"):
        with pytest.raises(KDError) as caught:
            pictures_at([wrong])
        assert caught.value.code == "frame-images"
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(KDError, match=r"text\.png is no image that can be read"):
        pictures_at([tmp_path / "text.png"])


def test_the_sample_by_its_engines_files_says_so(monkeypatch):
    monkeypatch.setattr(frame_sample, "MOST", 1)
    pictures = pictures_of([Photo("a", array=pixels())])
    by_agent = Shipped("counting", None, {"agent.pyz": b""}, "fp16", "tensorrt")
    by_opener = Shipped("counting", None, {"opener.py": b""}, "fp16", "openvino")
    assert ".npz files" in described(by_agent, pictures)
    assert described(by_opener, pictures) == "infer.py by openvino on 1 image files, 30x40 JPEG"


# ---- what the sampler's blocks come to


def samples(disturbed=()):
    scene = Scene(disturb=lambda number: "other work" if number in disturbed else None)
    effort = Effort(processes=1, blocks=6, seconds=1000)
    (found,) = measure([subject("a")], None, effort, Mode(), tools=scene.tools())
    return found


def test_disturbed_blocks_are_left_out_unless_all_are():
    clean = reduced_samples(samples(), "how", 0)
    assert (clean.ms, clean.mode, clean.disturbed) == (1.0, "how", None)
    every = reduced_samples(samples(range(1000)), "how", 0)
    assert every.disturbed == "other work"
    assert every.n >= clean.n  # some more were tried


def test_the_interval_is_that_of_the_blocks_medians():
    found = reduced([1.0, 2.0, 3.0, 4.0, 50.0], {"decode": 0.5}, "how", 0)
    assert (found.ms, found.n, found.parts) == (3.0, 5, {"decode": 0.5})
    assert 1.0 <= found.low < 3.0 < found.high <= 50.0
    assert found.line().startswith("whole frame 3 ms (")
    assert found.line().endswith("): decode 0.5")
