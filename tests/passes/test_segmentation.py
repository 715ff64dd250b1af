"""Segmentation from masks to a bundle that runs, and bad masks with their fixes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import kdcompile
from cpp_sample import compile_
from PIL import Image
from small_masks import CLASSES, SIZE, write

from kdcompile.core.report import Report
from kdcompile.remote.frame import PARTS, Frames

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a spec and its bundle."""
    folder = tmp_path_factory.mktemp("masks")
    write(folder)
    kdcompile(folder, "build", "kdcompile.toml", "-o", "bundle")
    return folder


def test_the_set_is_judged_by_its_miou_and_each_class(built):
    report = json.loads((built / "bundle" / "report.json").read_text())
    gate = next(g for g in report["gates"] if g["name"] == "accuracy")
    assert gate["verdict"] == "passed"
    assert "miou" in gate["threshold"]
    rows = report["details"]["by_class"]
    assert [row["class"] for row in rows] == CLASSES
    assert all(row["teacher_miou"] > 0.8 for row in rows)
    judged = next(m for m in report["measurements"] if m["name"] == "student miou")
    assert judged["value"] == pytest.approx(np.mean([row["student_miou"] for row in rows]))
    assert all(0 <= row["student"] < 0.5 for row in report["details"]["predictions"])
    page = (built / "bundle" / "report.html").read_text()
    assert "difference of both" in page
    assert "Predicted against true" not in page
    assert Report.from_json(report).details["task"]["of_records"]


def test_training_logs_the_metric_of_the_set(built):
    lines = (built / "bundle" / "metrics.jsonl").read_text().splitlines()
    found = [row["val_miou"] for row in map(json.loads, lines) if "val_miou" in row]
    assert len(found) == 4
    assert 0.5 < max(found) <= 1


def test_run_and_the_python_sample_give_the_same_classes(built):
    photo = built / "data" / "images" / "test00.png"
    told = kdcompile(built, "run", "bundle", photo, "--json", "-o", "there").stdout
    row = json.loads(told)
    mask = np.asarray(Image.open(row["mask"] if Path(row["mask"]).is_absolute() else
                                 built / row["mask"]))  # fmt: skip
    assert mask.shape == SIZE
    truth = np.asarray(Image.open(built / "data" / "labels" / "test00.png"))
    assert (mask == truth)[1:].mean() > 0.95
    assert row["shares"]["ground"] == pytest.approx((mask == 0).mean(), abs=1e-5)
    assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert (built / row["overlay"]).is_file()
    line = kdcompile(built, "run", "bundle", photo, "-o", "there").stdout
    assert "ground" in line
    command = [sys.executable, str(built / "bundle" / "infer.py"), str(photo)]
    told = subprocess.run(command, cwd=built, capture_output=True, text=True, check=True).stdout
    assert "ground 0." in told
    assert (np.asarray(Image.open(built / "test00_classes.png")) == mask).all()


def test_a_whole_frame_of_the_sample_is_timed(built, tmp_path):
    photo = built / "data" / "images" / "test00.png"
    times = Frames(str(built / "bundle"), [str(photo)], str(tmp_path)).once()
    assert len(times) == len(PARTS)
    assert min(times) > 0


def test_the_cpp_sample_compiles(built):
    compile_(built / "bundle", "-fsyntax-only")


@pytest.mark.parametrize(
    ("spoil", "code", "fix"),
    [
        (lambda mask: mask[:-1], "mask-size", "at the size of the upright image"),
        (lambda mask: np.where(mask == 2, 7, mask), "mask-index", "data.ignore_index"),
        (lambda mask: np.stack([mask] * 3, 2), "mask-colours", "an index PNG"),
        (None, "mask-missing", "labels/"),
    ],
)
def test_a_bad_mask_stops_the_plan_with_its_fix(built, tmp_path, spoil, code, fix):
    for name in ("model.py", "teacher.safetensors", "kdcompile.toml"):
        shutil.copy(built / name, tmp_path)
    shutil.copytree(built / "data", tmp_path / "data")
    path = tmp_path / "data" / "labels" / "train03.png"
    mask = np.asarray(Image.open(path))
    path.unlink()
    if spoil is not None:
        Image.fromarray(spoil(mask).astype(np.uint8)).save(path)
    said = kdcompile(tmp_path, "build", "kdcompile.toml", code=1).stderr
    assert f"error[{code}]" in said
    assert fix in said


def test_fewer_names_than_outputs_and_indices_beyond_them(built, tmp_path):
    shutil.copytree(built, tmp_path / "own", ignore=shutil.ignore_patterns("bundle", ".kd*"))
    names = ["--set", 'data.classes=["ground", "red"]']
    said = kdcompile(tmp_path / "own", "build", "kdcompile.toml", *names, code=1).stderr
    assert "error[mask-index]" in said
    names = ["--set", 'data.classes=["a", "b", "c", "d"]']
    said = kdcompile(tmp_path / "own", "build", "kdcompile.toml", *names, code=1).stderr
    assert "data.classes has 4 names, the network 3 outputs" in said


def test_for_a_board_the_kit_compares_pixels_and_a_pack_is_refused(built, tmp_path):
    shutil.copytree(built, tmp_path / "own", ignore=shutil.ignore_patterns("bundle"))
    words = ["kdcompile.toml", "--target", "jetson"]
    said = kdcompile(tmp_path / "own", "build", *words, "-o", "kit").stdout
    assert "accuracy@device" in said
    assert "kdcompile build --via PLACE" in " ".join(said.split())
    said = kdcompile(tmp_path / "own", "bundle", *words, "--test-pack", "pack", code=1).stderr
    assert "error[pack-task]" in said
    assert "--via PLACE" in said
    kit, out = tmp_path / "own" / "kit" / "kit", tmp_path / "out"
    command = [sys.executable, "build_engine.py", "--backend", "onnxruntime", "--out", str(out)]
    subprocess.run(command, cwd=kit, capture_output=True, check=True)
    found = json.loads((out / "device.json").read_text())["candidates"][0]
    assert found["pixel_agreement"] == 1.0


def test_init_recognises_photos_and_masks(built, tmp_path):
    for name in ("model.py", "teacher.safetensors"):
        shutil.copy(built / name, tmp_path)
    kdcompile(tmp_path, "init", "--from", "model.py:build", "--data", str(built / "data"))
    text = (tmp_path / "kdcompile.toml").read_text()
    assert 'kind = "segmentation"' in text
    assert 'format = "masks"' in text
    assert "ignore_index = 11" in text
