"""Counting with a bundle: the runtime sample and `run_bundle` give the same numbers."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcompile.artifact import Store
from kdcompile.bundle.manifest import read_bundle
from kdcompile.bundle.run import covered, run_bundle
from kdcompile.bundle.stage import install, run
from kdcompile.data.photo import read_pixels
from kdcompile.data.task import find_task
from kdcompile.errors import KDError


@pytest.fixture(scope="module")
def artifact(make_step, preprocess, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return run(make_step(store, preprocess), store, None)


@pytest.fixture
def bundle(artifact, tmp_path):
    return read_bundle(install(artifact, tmp_path / "out"))


@pytest.fixture
def photos(tmp_path):
    """Smaller than the network's input, larger, and larger in one direction only."""
    rng = np.random.default_rng(1)
    paths = []
    for folder, size in (("a", (20, 22, 3)), ("b", (150, 260, 3)), ("c", (30, 200, 3))):
        path = tmp_path / folder / "photo.png"
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def count_with(bundle, preprocess, photos, out=None):
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.model, providers=["CPUExecutionProvider"])
    pixels = (read_pixels(photo, preprocess.channels) for photo in photos)
    return run_bundle(
        bundle,
        photos,
        pixels,
        preprocess,
        lambda x: session.run(None, {"image": x})[0],
        lambda output: find_task("counting").describe(output, None),
        out,
    )


def infer(bundle, *arguments):
    return subprocess.run(
        [sys.executable, str(bundle.folder / "infer.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_sample_counts_what_the_pipeline_counts(bundle, preprocess, photos):
    expected = [row["count"] for row in count_with(bundle, preprocess, photos)]
    done = infer(bundle, *photos)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert [Path(path) for path, _ in found] == photos
    assert [float(count) for _, count in found] == pytest.approx(expected, abs=6e-4)
    assert len({count for _, count in found}) == 3


def test_overlays_are_written_without_one_replacing_another(bundle, preprocess, photos, tmp_path):
    rows = count_with(bundle, preprocess, photos, tmp_path / "overlays")
    assert [Path(row["overlay"]).name for row in rows] == [
        "photo_density.png", "photo-2_density.png", "photo-3_density.png"
    ]  # fmt: skip
    for row in rows:
        with Image.open(row["overlay"]) as image:
            assert image.width > 100
    assert count_with(bundle, preprocess, photos)[0]["overlay"] is None


def test_sample_refuses_a_changed_model_and_an_unknown_provider(bundle, photos):
    done = infer(bundle, photos[0], "--provider", "AbacusExecutionProvider")
    assert done.returncode == 1
    assert "AbacusExecutionProvider" in done.stderr
    bundle.model.write_bytes(bundle.model.read_bytes() + b"\0")
    done = infer(bundle, photos[0])
    assert done.returncode == 1
    assert "not the file of the manifest" in done.stderr


def test_sample_names_the_photo_it_cannot_read(bundle, tmp_path):
    done = infer(bundle, tmp_path / "absent.jpg")
    assert done.returncode == 1
    assert "absent.jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_sample_is_python_38_and_imports_nothing_of_kdcompile():
    import kdcompile.bundle

    source = Path(kdcompile.bundle.__file__).with_name("templates") / "infer.py"
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    third_party = imported - {*sys.stdlib_module_names}
    assert third_party == {"numpy", "onnxruntime", "PIL"}


def test_covered_adds_the_padding_and_undoes_the_scaling():
    preprocess = {"min_hw": [32, 48], "max_hw": [32, 48]}
    assert covered(preprocess, 20, 30) == (32, 48)
    assert covered(preprocess, 64, 96) == (64, 96)
    assert covered(preprocess, 64, 48) == (64, 96)  # halved to 32 x 24, padded to 32 x 48


def test_folder_that_cannot_be_written_is_named(bundle, preprocess, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError) as caught:
        count_with(bundle, preprocess, photos[:1], tmp_path / "file")
    assert caught.value.code == "output-unwritable"
