"""Bundles whose engine must be refused, each as a user meets it on the command line."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine, contents, refusal
from near_place import NearGpu
from PIL import Image
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.bundle.form import sealed
from kdcompile.core.files import file_sha256
from kdcompile.passes import compile
from kdcompile.passes.bundle import install
from kdcompile.remote.agent.system import platform_name

VERSION = "8.6.1"
has_tensorrt = importlib.util.find_spec("tensorrt") is not None


@pytest.fixture
def command(monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bundle, and a photo; each test takes a copy."""
    root, target = tmp_path_factory.mktemp("made"), targets.load("h100").with_backend(VERSION)
    place, build = NearGpu(VERSION, root / "there"), SmallBuild(root)
    with pytest.MonkeyPatch.context() as m, place.installed(m):
        m.setattr(compile, "compile_check", lambda *values: [])
        board = place.board(target)
        for name in ("calibrate", "compile", "verify", "bundle"):
            build.run(name, target, board)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    install(build.made["bundle"], root / "out" / "bundle")
    Image.fromarray(pixels).save(root / "out" / "photo.png")
    return root / "out"


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """The current folder, with `bundle` and `photo.png`."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def at_h100(tmp_path, monkeypatch):
    """Every place is a played H100, whose TensorRT built the bundle's engine."""
    place = NearGpu(VERSION, tmp_path / "there")
    with place.installed(monkeypatch):
        yield place


def seal(bundle):
    """Make the manifest say what the files are: as if the bundle had been written so."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["digest"]
    for name, record in manifest["files"].items():
        record["sha256"], record["bytes"] = (
            file_sha256(bundle / name), (bundle / name).stat().st_size,
        )  # fmt: skip
    (bundle / "manifest.json").write_text(json.dumps(sealed(manifest)))


def with_record(change):
    """Bundles whose engine's record says something else."""

    def harm(bundle):
        side = bundle / "model.engine.json"
        side.write_text(json.dumps({**json.loads(side.read_text()), **change}))
        seal(bundle)

    return harm


def with_engine(change, record=False, sealed=True):
    """Bundles whose engine is other bytes; `record`: and what is written beside it agrees."""

    def harm(bundle):
        path = bundle / "model.engine"
        path.write_bytes(change(path.read_bytes()))
        if record:
            with_record({"sha256": file_sha256(path), "bytes": path.stat().st_size})(bundle)
        if sealed:
            seal(bundle)

    return harm


def with_text(name, change):
    """Bundles in which a text file says something else."""

    def harm(bundle):
        (bundle / name).write_text(change((bundle / name).read_text()))
        seal(bundle)

    return harm


AGAIN = "kdcompile build --target h100 --via PLACE"
WHOLE = "kdcompile build --target h100, in the folder of the spec"
BUNDLES = {
    "another version": (
        with_record({"tensorrt": "8.6.2"}),
        "engine-mismatch", "built by tensorrt 8.6.2 for sm_90", AGAIN,
    ),
    "a plan of another version": (
        with_engine(lambda blob: blob[:24] + b"\12\3\0" + blob[27:], record=True),
        "engine-mismatch", "a plan of TensorRT 10.3.0; here 8.6.1", AGAIN,
    ),
    "another GPU": (
        with_record({"compute_capability": "8.7"}),
        "engine-mismatch", f"for sm_87 on {platform_name()}; here tensorrt 8.6.1", AGAIN,
    ),
    "another platform": (
        with_record({"platform": "linux riscv64"}),
        "engine-mismatch", "on linux riscv64; here", AGAIN,
    ),
    "truncated": (
        with_engine(lambda blob: blob[:100], sealed=False),
        "bundle-corrupt", "model.engine is not as the bundle was written", WHOLE,
    ),
    "truncated, and sealed so": (
        with_engine(lambda blob: blob[:100]),
        "engine-damaged", "truncated: 100 of ", AGAIN,
    ),
    "a flipped byte": (
        with_engine(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), sealed=False),
        "bundle-corrupt", "model.engine is not as the bundle was written", WHOLE,
    ),
    "a flipped byte, and sealed so": (
        with_engine(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])),
        "engine-damaged", "SHA-256", AGAIN,
    ),
    "not an engine": (
        with_engine(lambda blob: b"#!/bin/sh\n" * 9, record=True),
        "engine-damaged", "is no TensorRT plan", AGAIN,
    ),
    "empty": (
        with_engine(lambda blob: b"", record=True),
        "engine-damaged", "is no TensorRT plan", AGAIN,
    ),
    "a record that is no JSON": (
        with_text("model.engine.json", lambda text: text[:-20]),
        "engine-unknown", "does not say what built model.engine", "kdcompile build --via PLACE",
    ),
    "a record of nothing": (
        with_text("model.engine.json", lambda text: '{"precision": "int8", "tensorrt": "8.6.1"}'),
        "engine-unknown", "lacks one of", AGAIN,
    ),
    "a profile without the shape": (
        with_text("preprocess.json", lambda text: text.replace("16", "32")),
        "shape-refused", "(1, 3, 32, 32) is outside the engine's profile", "min and max",
    ),
}  # fmt: skip


def test_the_bundle_runs_before_it_is_harmed(folder, at_h100, command):
    assert command("run", "bundle", "photo.png")[0] == 0
    assert (folder / "overlays" / "photo_density.png").is_file()
    assert command("verify", "bundle", "--via", "python:there")[0] == 0


@pytest.mark.parametrize("case", BUNDLES)
@pytest.mark.parametrize("words", [("run", "photo.png"), ("verify",)], ids=["run", "verify"])
def test_a_bundle_is_refused(folder, at_h100, command, case, words):
    harm, code, message, fix = BUNDLES[case]
    harm(folder / "bundle")
    before = contents(folder)
    name, *photos = words
    found = command(name, "bundle", *photos, "--via", "python:there")
    block = refusal(found, code, message, fix)
    if code.startswith("engine-") and fix == AGAIN:
        assert "kdcompile run --onnx BUNDLE IMAGE" in block
        assert str(Path("bundle") / "model.engine") in block
    assert contents(folder) == before


def test_what_a_refusal_proposes_works(folder, at_h100, command):
    BUNDLES["another GPU"][0](folder / "bundle")
    assert command("run", "--onnx", "bundle", "photo.png")[0] == 0


def test_via_without_an_engine(folder, command):
    manifest = folder / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"engine": "model.engine"', '"engine": null'))
    seal(folder / "bundle")
    refusal(
        command("run", "bundle", "photo.png", "--via", "python:x"),
        "engine-missing", "--via needs an engine", "leave out --via",
    )  # fmt: skip


@pytest.mark.skipif(has_tensorrt, reason="TensorRT is installed here")
@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("run", "bundle", "photo.png"), "kdcompile run --onnx BUNDLE IMAGE"),
        (("run", "bundle", "photo.png", "--via", "HERE"), "kdcompile run --onnx BUNDLE IMAGE"),
        (("verify", "bundle", "--via", "HERE"), "python3-libnvinfer"),
    ],
)
def test_a_board_without_tensorrt_is_exit_4(folder, command, words, fix):
    """By a real worker in an interpreter of this machine."""
    before = contents(folder)
    given = [word.replace("HERE", f"python:{sys.executable}") for word in words]
    refusal(command(*given), "tensorrt-missing", "No module named", fix, exit_code=4)
    assert contents(folder) == before
