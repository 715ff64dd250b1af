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
from played_kit import merged, run_kit
from small_masks import CLASSES, SIZE, save, scene, write

from kdcompile.core.files import file_sha256
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


def test_deepstream_has_its_folder(built):
    files = json.loads((built / "bundle" / "manifest.json").read_text())["files"]
    inside = {name for name in files if name.startswith("deepstream/")}
    assert inside == {
        "deepstream/config_infer_primary.txt", "deepstream/labels.txt", "deepstream/model.onnx"
    }  # fmt: skip
    labels = (built / "bundle" / "deepstream" / "labels.txt").read_text().split()
    assert labels == CLASSES
    assert "`deepstream/` is for" in (built / "bundle" / "MODEL_CARD.md").read_text()


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


@pytest.fixture(scope="module")
def on_board(built, tmp_path_factory):
    """A folder with a bundle for a board, its test pack, and what the kit wrote of both.

    Of its test photos one is smaller than the input, and one is larger.
    """
    folder = tmp_path_factory.mktemp("board") / "own"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("bundle"))
    random = np.random.default_rng(8)
    for name, size in (("test00", (30, 50)), ("test01", (90, 70))):
        save(folder / "data", name, *scene(random, size))
    run_kit(folder)
    return folder


def test_a_board_keeps_outputs_and_compares_pixels(on_board):
    record = json.loads((on_board / "out" / "device.json").read_text())
    first = record["candidates"][0]
    assert first["pixel_agreement"] == 1.0
    assert first["accuracy"]["verdict"] == "inconclusive"
    assert "--test-pack" in first["accuracy"]["reason"]
    assert record["exit_code"] == 5
    with np.load(on_board / "out" / first["outputs"]["file"]) as arrays:
        assert [arrays[name].shape for name in arrays.files] == [(1, 3, 24, 32)] * 10


def test_home_judges_the_outputs_by_the_masks_of_the_pack(on_board):
    gates = merged(on_board)
    assert gates["accuracy@device"]["verdict"] == "pending"
    assert "--test-pack PACK" in gates["accuracy@device"]["reason"]
    gates = merged(on_board, "--test-pack", "pack", "--engine", "out")
    assert gates["accuracy@device"]["verdict"] == "passed"
    assert gates["accuracy@device"]["observed"].startswith("miou ")
    numbers = {
        (m["evidence"], m["precision"]): m["value"]
        for m in gates["report"]["measurements"]
        if m["name"] == "student miou"
    }
    chosen = gates["report"]["environment"]["device"]["chosen"]
    assert numbers["device", chosen] == pytest.approx(numbers["host", "fp32"], abs=0.05)
    if chosen in ("fp32", "int8"):  # which ran on both by the same library
        assert numbers["device", chosen] == pytest.approx(numbers["host", chosen])
    assert Report.from_json(gates["report"]).exit_code == 0


def test_home_ships_another_precision_where_the_boards_choice_is_wrong(on_board, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(on_board, folder)
    path = folder / "out" / "device.json"
    record = json.loads(path.read_text())
    chosen = next(c for c in record["candidates"] if c["precision"] == record["chosen"])
    file = folder / "out" / chosen["outputs"]["file"]
    np.savez(file, **{str(i): np.zeros((1, 3, 24, 32), np.float32) for i in range(10)})
    said = kdcompile(folder, "bundle", "kit", "--merge", path, "--test-pack", "pack", code=1).stderr
    assert "error[device-outputs]" in said
    assert f"copy out/{file.name} from the board" in " ".join(said.split())
    chosen["outputs"]["sha256"] = file_sha256(file)
    path.write_text(json.dumps(record))
    gates = merged(folder, "--test-pack", "pack")
    about = gates["report"]["environment"]["device"]
    assert about["chosen"] not in (None, record["chosen"])
    assert f"{record['chosen']} " in about["why"]
    assert gates["accuracy@device"]["verdict"] == "passed"
    assert gates["parity@device"]["reason"].startswith(about["chosen"])
    wrong = folder / "pack" / "pack.json"
    wrong.write_text(wrong.read_text() + " ")
    said = kdcompile(folder, "bundle", "kit", "--merge", path, "--test-pack", "pack", code=1).stderr
    assert "error[merge-mismatch]" in said
    assert "the folder that was copied to the board" in " ".join(said.split())


def test_init_recognises_photos_and_masks(built, tmp_path):
    for name in ("model.py", "teacher.safetensors"):
        shutil.copy(built / name, tmp_path)
    kdcompile(tmp_path, "init", "--from", "model.py:build", "--data", str(built / "data"))
    text = (tmp_path / "kdcompile.toml").read_text()
    assert 'kind = "segmentation"' in text
    assert 'format = "masks"' in text
    assert "ignore_index = 11" in text
