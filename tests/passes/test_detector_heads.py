"""Detectors of several outputs, in the forms of `benchmarks/reference_*`, from plan to `run`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small_heads import CLASSES, SIDE, write_project

from kdcompile.cli import cli

SIZES = {"train": 4, "val": 2, "test": 8}
OF_COUNTING = re.compile(r"\b(counts?|counting|densit\w*|crowds?|people)\b", re.IGNORECASE)


def call(*args, codes=(0,)):
    found = CliRunner().invoke(cli, list(map(str, args)))
    assert found.exit_code in codes, (found.output, found.exception)
    return found.output


@pytest.fixture(scope="module", params=["ssd", pytest.param("retinanet", marks=pytest.mark.soak)])
def built(request, tmp_path_factory):
    """The project, its bundle for a board that is not here, and all that was said."""
    folder = tmp_path_factory.mktemp(request.param)
    write_project(folder, request.param, SIZES)
    said = call("plan", folder)
    # four steps from random weights: whether the student is accurate depends on the CPU
    said += call("build", folder, "-o", folder / "bundle", codes=(0, 3))
    return folder, folder / "bundle", said


def test_it_goes_from_the_plan_to_the_kit_without_a_word_of_counting(built):
    _, bundle, said = built
    assert not OF_COUNTING.findall(said), said
    report = json.loads((bundle / "report.json").read_text())
    told = (bundle / "report.md").read_text().replace("counted by", "")
    assert not OF_COUNTING.findall(told)
    found = {gate["name"]: gate["verdict"] for gate in report["gates"]}
    assert found["parity"] == "passed"
    assert found["parity@device"] == "pending"
    assert {file.name for file in (bundle / "kit").iterdir()} >= {"build_engine.py", "kit.json"}
    assert report["details"]["task"]["settings"]["decode"] == "ssd"
    assert [row["class"] for row in report["details"]["by_class"]] == list(CLASSES)


def test_run_and_the_sample_find_the_same_boxes_elsewhere(built, tmp_path):
    folder, bundle, _ = built
    photo = tmp_path / "photo.png"
    Image.open(folder / "data" / "images" / "test0.png").save(photo)
    (folder / "anchors.npz").rename(folder / "gone.npz")  # the bundle has its own
    try:
        row = json.loads(call("run", bundle, photo, "--json", "-o", tmp_path).splitlines()[-1])
    finally:
        (folder / "gone.npz").rename(folder / "anchors.npz")
    assert row["boxes"]
    assert max(box["box"][2] for box in row["boxes"]) <= SIDE
    said = subprocess.run(
        [sys.executable, bundle / "infer.py", photo], capture_output=True, text=True, check=True
    ).stdout
    own = json.loads(said.split("\t")[1])
    assert [box["class"] for box in own] == [box["class"] for box in row["boxes"]]
    for one, other in zip(own, row["boxes"], strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=0.2)
        assert np.isclose(one["score"], other["score"], atol=1e-3)
