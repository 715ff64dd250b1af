"""The manifest names every file, and a bundle that is not its manifest is refused."""

import errno
import json
import os

import pytest

from kdcompile.bundle import manifest
from kdcompile.bundle.manifest import created, read_bundle, write_manifest
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.report import GateResult, Report
from kdcompile.core.store import digest

CHOICE = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    gates = (
        GateResult("accuracy", "passed", "host", True, "", "", "", ()),
        GateResult("speedup", "pending", "device", True, "", "", "", ()),
    )
    report = Report("crowd", "jetson", "passed on host", 0, gates, (), {})
    folder = tmp_path / "bundle"
    (folder / "kit").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "kit/build.py").write_text("pass\n")
    write_json(folder / "preprocess.json", PREPROCESS)
    write_json(folder / "report.json", report.to_json())
    write_manifest(folder, report, "counting", CHOICE)
    return folder


PREPROCESS = {
    "channels": 1, "mean": [0.0], "std": [1.0], "min_hw": [4, 4], "max_hw": [8, 8]
}  # fmt: skip


def edit(bundle, change):
    """Change the manifest as somebody does who makes its digest fit."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["digest"]
    change(manifest)
    manifest["digest"] = digest(manifest)
    write_json(bundle / "manifest.json", manifest)


def refused(bundle, code="bundle-corrupt"):
    with pytest.raises(KDError) as caught:
        read_bundle(bundle)
    assert caught.value.code == code
    assert caught.value.fix
    return str(caught.value)


def test_round_trip(bundle):
    read = read_bundle(bundle)
    assert (read.name, read.target, read.model) == ("crowd", "jetson", bundle / "model.onnx")
    assert read.preprocess == PREPROCESS
    assert read.report().verdict == "passed on host"
    assert read.manifest["created"] == "1970-01-01T00:00:00Z"
    assert read.manifest["backend"] == {"name": "onnxruntime", "version": "1.20"}
    assert read.manifest["evidence"] == {"accuracy": "host", "speedup": "pending"}
    files = read.manifest["files"]
    assert set(files) == {"model.onnx", "kit/build.py", "preprocess.json", "report.json"}
    assert files["model.onnx"]["bytes"] == 5


def test_flipped_byte_is_refused(bundle):
    (bundle / "model.onnx").write_bytes(b"modem")
    assert "model.onnx" in refused(bundle)


def test_missing_file_is_refused(bundle):
    (bundle / "kit/build.py").unlink()
    assert "build.py" in refused(bundle)


def test_extra_file_is_refused(bundle):
    (bundle / "kit/extra.so").write_bytes(b"")
    message = refused(bundle)
    assert "extra.so" in message
    assert "move it out" in message


def test_compiled_file_that_python_would_run_for_a_listed_one_is_extra(bundle):
    (bundle / "kit/__pycache__").mkdir()
    (bundle / "kit/__pycache__/build.cpython-311.pyc").write_bytes(b"")
    assert "build.cpython-311.pyc" in refused(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "kit", "manifest.json"])
def test_symbolic_link_is_refused_even_to_the_same_bytes(bundle, tmp_path, name):
    moved = tmp_path / "moved"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved, target_is_directory=moved.is_dir())
    assert "symbolic link" in refused(bundle)


@pytest.mark.parametrize(
    "name", ["../outside", "kit/../../outside", "/etc/hostname", "./model.onnx", "a\\b", "C:x", ""]
)
def test_name_outside_the_bundle_is_refused(bundle, name):
    (bundle.parent / "outside").write_bytes(b"model")
    edit(bundle, lambda m: m["files"].update({name: m["files"]["model.onnx"]}))
    assert "not in the bundle" in refused(bundle)


def test_model_must_be_a_listed_file(bundle):
    edit(bundle, lambda m: m.update(model="../model.onnx"))
    assert "not listed" in refused(bundle)


def test_unlisted_file_is_an_error_of_the_reader_too(bundle):
    with pytest.raises(KDError, match="lists no such file"):
        read_bundle(bundle).file("../store")


def test_device_file_is_refused(bundle):
    os.mkfifo(bundle / "pipe")
    assert "regular file" in refused(bundle)


def test_unknown_schema_names_the_version_that_wrote_it(bundle):
    edit(bundle, lambda m: m.update(schema=2, kdcompile_version="9.9"))
    assert "9.9" in refused(bundle, "bundle-version")


@pytest.mark.parametrize("text", ["{", "", '{"schema": 1}', "[" * 100_000, '{"schema": 1e999}'])
def test_manifest_that_is_no_manifest(bundle, text):
    (bundle / "manifest.json").write_text(text)
    refused(bundle)


@pytest.mark.parametrize("text", ["[]", '"x"', "null", "{}", '{"schema": true}'])
def test_json_of_another_tool_is_no_bundle(bundle, text):
    (bundle / "manifest.json").write_text(text)
    assert "no number of a schema" in refused(bundle, "bundle-missing")


def test_record_without_a_hash_is_refused(bundle):
    edit(bundle, lambda m: m["files"].update({"model.onnx": None}))
    assert "model.onnx" in refused(bundle)


def test_missing_bundle(bundle, tmp_path):
    assert "no such folder" in refused(tmp_path / "absent", "bundle-missing")
    (bundle / "manifest.json").unlink()
    assert "manifest.json" in refused(bundle, "bundle-missing")


def test_bad_epoch_is_named(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(KDError, match="yesterday"):
        created()


def test_what_cannot_be_read_is_named(bundle, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(manifest, "file_sha256", denied)
    message = refused(bundle, "bundle-unreadable")
    assert "Permission denied" in message
    assert "chmod -R u+rX" in message
