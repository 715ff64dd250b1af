"""Whole frames of the engine that a kit chose: `build_engine.py --images`, judged at home."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcompile.bundle import python_sample
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.board_record import read_record
from kdcompile.remote import frame


@pytest.fixture
def kit(onnx_files, make_kit):
    made = make_kit(onnx_files(), sample=python_sample.text("counting"))
    constants = Preprocess(3, (0.5,) * 3, (0.2,) * 3, (16, 24), (16, 24)).to_json()
    (made / "preprocess.json").write_text(json.dumps(constants))
    about = json.loads((made / "kit.json").read_text())
    about["files"]["preprocess.json"] = file_sha256(made / "preprocess.json")
    (made / "kit.json").write_text(json.dumps(about))
    text = (made / "frame.py").read_text()
    assert text == Path(frame.__file__).read_text()
    (made / "frame.py").write_text(
        text.replace("BLOCK_MS, WARMUP_S", "_BLOCK_MS, _WARMUP_S", 1).replace(
            "BLOCKS, _BLOCK", "BLOCK_MS, WARMUP_S = 1.0, 0.01\nBLOCKS, _BLOCK"
        )
    )
    about["files"]["frame.py"] = file_sha256(made / "frame.py")
    (made / "kit.json").write_text(json.dumps(about))
    return made


@pytest.fixture
def photos(tmp_path):
    made = []
    for number, size in enumerate([(40, 60, 3), (12, 20, 3)]):
        made.append(tmp_path / f"{number}.jpg")
        Image.fromarray(np.full(size, 90, np.uint8)).save(made[-1])
    return made


def build(kit, *options):
    fixed = ["--backend", "onnxruntime", "--iterations", "1", "--precision", "fp32"]
    command = [sys.executable, kit / "build_engine.py", *fixed, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_frame_is_in_the_record_and_has_its_parts(kit, photos, tmp_path):
    out = tmp_path / "elsewhere"
    done = build(kit, "--images", *photos, f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"] == "fp32"
    record = json.loads((out / "device.json").read_text())
    told = record["frame"]
    assert (told["images"], told["precision"], len(told["blocks"])) == (2, "fp32", frame.BLOCKS)
    assert told["sizes"] == "20x12 JPEG to 60x40 JPEG"
    assert set(told["parts"]) == set(frame.PARTS)
    assert sum(told["parts"].values()) == pytest.approx(np.median(told["blocks"]), rel=0.6)
    assert "whole frame" in done.stderr
    assert read_record(record, "device.json").frame.blocks == told["blocks"]


def test_without_photos_nothing_is_timed(kit):
    assert build(kit).returncode == 0
    assert "frame" not in json.loads((kit / "out/device.json").read_text())


def test_it_is_told_and_the_other_options_hold(kit, photos, tmp_path):
    done = build(kit, "--images", photos[0], "--out", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert "whole frame" in done.stdout
    assert (tmp_path / "there/device.json").is_file()


def test_a_photo_that_cannot_be_read_is_told(kit, tmp_path):
    done = build(kit, "--images", tmp_path / "absent.jpg")
    assert done.returncode == 1
    assert "error: whole frames were not timed" in done.stderr
    assert "absent.jpg" in done.stderr


def test_an_absent_pillow_is_told(kit, photos):
    (kit / "PIL.py").write_text("raise ImportError('no Pillow here')")
    done = build(kit, "--images", photos[0])
    assert done.returncode == 4
    assert "no Pillow here" in done.stderr
