"""The stage gathers the bundle, and `install` never destroys what no build made."""

import json

import pytest

from kdcompile.bundle.manifest import read_bundle
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.core.user_code import factory_sources
from kdcompile.passes.bundle import install, run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def artifact(store, make_step):
    return run(make_step(store), store, None)


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_bundle_holds_what_ships_and_checks_out(artifact, tmp_path):
    bundle = read_bundle(install(artifact, tmp_path / "dist/crowd-jetson"))
    assert set(bundle.manifest["files"]) == {
        "model.onnx", "preprocess.json", "calibration.json", "audit.json", "report.json",
        "report.md", "report.html", "metrics.jsonl", "infer.py", "kit/nested/build.py",
        "tiles.py", "tiles.json",
        "cpp/CMakeLists.txt", "cpp/infer.cpp", "cpp/image.hpp", "cpp/sha256.hpp",
        "cpp/engine.hpp", "cpp/gpu.hpp", "cpp/npy.hpp",
        "cpp/preprocess.hpp", "triton/crowd/config.pbtxt", "triton/crowd/1/model.onnx",
        "MODEL_CARD.md", "LICENCES.md",
        "sbom.cdx.json",
    }  # fmt: skip
    assert bundle.manifest["precision"] == "int8"
    assert bundle.manifest["task"] == "counting"
    assert artifact.meta["verdict"] == "passed on host, 1 gate pending on the board"
    assert not (bundle.folder / "artifact.json").exists()


def test_installed_files_are_the_users_to_change(artifact, tmp_path):
    folder = install(artifact, tmp_path / "out")
    assert (folder / "infer.py").stat().st_mode & 0o200
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_second_install_touches_nothing(artifact, tmp_path):
    before = snapshot(install(artifact, tmp_path / "out"))
    install(artifact, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before


def test_signature_outlives_the_same_install_and_not_a_new_one(artifact, tmp_path):
    folder = install(artifact, tmp_path / "out")
    (folder / "manifest.sig").write_text("{}")
    install(artifact, folder)
    assert (folder / "manifest.sig").is_file()
    (folder / "model.onnx").write_bytes(b"broken")
    install(artifact, folder)
    assert not (folder / "manifest.sig").exists()


def test_damaged_bundle_is_mended(artifact, tmp_path):
    folder = install(artifact, tmp_path / "out")
    (folder / "model.onnx").write_bytes(b"broken")
    install(artifact, folder)
    assert read_bundle(folder).name == "crowd"


def test_older_bundle_is_replaced(artifact, store, make_step, a_report, tmp_path):
    folder = install(artifact, tmp_path / "out")
    (folder / "kit/__pycache__").mkdir()
    newer = store.make("verify", "2" * 24, lambda f: _write_report(f, a_report("failed")))
    step = make_step(store, key="3" * 24)
    step.inputs["verify"] = newer
    install(run(step, store, None), folder)
    assert read_bundle(folder).manifest["exit_code"] == 3
    assert not (folder / "kit/__pycache__").exists()


def _write_report(folder, report):
    (folder / "report.json").write_text(json.dumps(report.to_json()))
    return {}


def test_folder_with_other_things_is_never_replaced(artifact, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    with pytest.raises(KDError) as caught:
        install(artifact, tmp_path / "out")
    assert caught.value.code == "output-not-bundle"
    assert (tmp_path / "out/thesis.tex").read_text() == "years"


def test_manifest_of_another_tool_does_not_make_a_bundle(artifact, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(KDError, match="not a bundle"):
        install(artifact, tmp_path / "out")


def test_users_file_in_an_older_bundle_stops_the_replacement(artifact, tmp_path):
    folder = install(artifact, tmp_path / "out")
    (folder / "overlays").mkdir()
    (folder / "overlays/photo.png").write_bytes(b"mine")
    with pytest.raises(KDError, match=r"overlays/photo\.png"):
        install(artifact, folder)
    assert (folder / "overlays/photo.png").read_bytes() == b"mine"


def test_empty_folder_is_filled_and_a_file_is_refused(artifact, tmp_path):
    (tmp_path / "empty").mkdir()
    assert read_bundle(install(artifact, tmp_path / "empty")).name == "crowd"
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError, match="is a file"):
        install(artifact, tmp_path / "file")


def test_place_that_cannot_be_written_is_named(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError) as caught:
        install(artifact, tmp_path / "file/below/out")
    assert caught.value.code == "output-unwritable"


def test_bundle_beside_a_spec_is_no_code_of_it(artifact, tmp_path):
    (tmp_path / "model.py").write_text("pass\n")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/blocks.py").write_text("pass\n")
    (tmp_path / "layers/manifest.json").write_text("{}")
    before = factory_sources("model.py:build", tmp_path)
    install(artifact, tmp_path / "out")
    assert factory_sources("model.py:build", tmp_path) == before
    assert [path.name for path in before] == ["blocks.py", "model.py"]


def test_what_killed_processes_left_beside_a_bundle_and_in_it_goes(artifact, tmp_path):
    folder = install(artifact, tmp_path / "out")
    old, other = tmp_path / ".out.kdcompile-0", tmp_path / ".outer.kdcompile-0"
    for left in (old, other):
        (left / "new").mkdir(parents=True)
    half = folder / ".manifest.sig.0123456789abcdef.tmp"
    half.write_text("{")
    install(artifact, folder)
    assert (old.exists(), half.exists(), other.exists()) == (False, False, True)
    assert read_bundle(folder).name == "crowd"
