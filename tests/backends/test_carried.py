"""What a bundle without a kit carries for its parity ladder, and what its engine was built from."""

import json
import shutil

import numpy as np
import pytest

from kdcompile.backends import parity_inputs as carried_module
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.backends.parity_inputs import (
    BYTES,
    IMAGES,
    read_carried,
    source_of,
    write_carried,
    write_outputs,
)
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.remote.kit import MAX_REFERENCES

GATES = {"accuracy": {"metric": "mae"}, "parity": {"min_sqnr_db": 20}, "speedup": {"min": 6.5}}


@pytest.fixture
def carried(tmp_path):
    """`carried(count, side, model)` -> the folder, its files as a manifest lists them, photos."""

    def write(count=3, side=8, model=b"int8"):
        rng = np.random.default_rng(0)
        prepare = Preprocess(1, (0.4,), (0.3,), (8, 8), (2000, 2000))
        arrays = rng.integers(0, 256, (count, side, side, 1), np.uint8)
        photos = [Photo(str(i), array=array) for i, array in enumerate(arrays)]
        fp32 = tmp_path / "student.onnx"
        fp32.write_bytes(b"fp32")
        folder = tmp_path / "bundle"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model)
        (folder / "preprocess.json").write_text(json.dumps(prepare.to_json()))
        write_carried(folder, fp32, photos, prepare, GATES)
        files = {
            p.relative_to(folder).as_posix(): {"sha256": file_sha256(p)}
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        return folder, files, [prepare(photo.array) for photo in photos]

    return write


def test_what_is_written_is_read(carried):
    folder, files, expected = carried()
    found = read_carried(folder, files, folder / "preprocess.json")
    assert found.fp32 == folder / "parity/student_fp32.onnx"
    assert found.files == {}
    assert found.gates == {name: GATES[name] for name in ("accuracy", "parity")}
    assert len(found.inputs) == len(expected) == 3
    for mine, theirs in zip(found.inputs, expected, strict=True):
        assert mine.tobytes() == theirs.tobytes()


def test_the_fp32_network_is_there_once(carried):
    folder, files, _ = carried(model=b"fp32")
    assert "parity/student_fp32.onnx" not in files
    assert read_carried(folder, files, folder / "preprocess.json").fp32 == folder / "model.onnx"


@pytest.mark.parametrize(
    ("count", "side", "kept"), [(40, 8, IMAGES), (5, 1448, 2), (2, 2000, 1), (2, 1449, 1)]
)
def test_few_photos_of_few_bytes_are_kept_and_always_one(carried, count, side, kept):
    folder, files, _ = carried(count, side)
    found = read_carried(folder, files, folder / "preprocess.json")
    assert len(found.inputs) == kept
    assert kept == 1 or kept * side**2 <= BYTES


@pytest.mark.parametrize(
    ("name", "says"),
    [("parity/photos.npz", "reference inputs"), ("parity/gates.json", "gates")],
)
def test_what_is_lacking_is_named(carried, name, says):
    folder, files, _ = carried()
    del files[name]
    with pytest.raises(KDError) as caught:
        read_carried(folder, files, folder / "preprocess.json")
    assert caught.value.code == "parity-incomplete"
    assert f"no {says} ({name})" in caught.value.message


@pytest.fixture
def networks(carried, onnx_files):
    """A carried folder with real networks: its fp32 file, and `model.onnx` in int8."""
    files = onnx_files()
    folder, _, _ = carried()
    shutil.copyfile(files["int8"], folder / "model.onnx")
    return folder, files["fp32"], Preprocess(3, (0.4,) * 3, (0.3,) * 3, (16, 24), (16, 24))


def test_the_outputs_are_those_of_the_networks(networks):
    folder, fp32, prepare = networks
    pixels = np.random.default_rng(1).integers(0, 256, (6, 16, 24, 3), np.uint8)
    np.savez(folder / "parity/photos.npz", **{str(i): one for i, one in enumerate(pixels)})
    write_outputs(folder, fp32, "int8", prepare)
    with np.load(folder / "parity/outputs.npz") as arrays:
        assert len(arrays.files) == 2 * MAX_REFERENCES
        for precision, path in (("fp32", fp32), ("int8", folder / "model.onnx")):
            expected = open_session(path)(prepare(pixels[3]))
            assert np.array_equal(arrays[f"output_{precision}_3"], expected)


def test_large_outputs_are_few_and_one_is_always_there(networks, monkeypatch):
    monkeypatch.setattr(carried_module, "BYTES", 1)
    folder, fp32, prepare = networks
    pixels = np.zeros((16, 24, 3), np.uint8)
    np.savez(folder / "parity/photos.npz", **{"0": pixels, "1": pixels})
    write_outputs(folder, fp32, "fp32", prepare)
    with np.load(folder / "parity/outputs.npz") as arrays:
        assert arrays.files == ["output_fp32_0"]


def test_of_a_precision_that_does_not_run_here_there_are_no_outputs(networks):
    folder, fp32, prepare = networks
    write_outputs(folder, fp32, "bf16", prepare)
    assert not (folder / "parity/outputs.npz").exists()


def engine_of(folder, **record):
    (folder / "model.engine").write_bytes(b"engine")
    (folder / "model.engine.json").write_text(json.dumps({"precision": "fp16", **record}))
    return folder / "model.engine"


def test_an_engines_source_is_found_by_its_hash(carried):
    folder, files, _ = carried()
    for name in ("model.onnx", "parity/student_fp32.onnx"):
        engine = engine_of(folder, onnx_sha256=files[name]["sha256"])
        assert source_of(engine, folder, files) == ("fp16", folder / name)


@pytest.mark.parametrize("record", [{}, {"onnx_sha256": "0" * 64}])
def test_an_engine_of_another_network_is_refused(carried, record):
    folder, files, _ = carried()
    with pytest.raises(KDError) as caught:
        source_of(engine_of(folder, **record), folder, files)
    assert caught.value.code == "engine-unknown"
