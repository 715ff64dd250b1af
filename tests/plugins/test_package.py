"""A package of another project brings a recipe, a task, a gate, a format, a target: one build."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from plugin_site import PACKAGE, install_package
from safetensors.torch import save_file
from tiny_training import network, photos

MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1),
    )
"""
SPEC = """
target = "acme-board"
task.kind = "heads"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "csv"
root = "."
mean = [0.5]
std = [0.5]
[student]
budget = { width = 0.5 }
[distill]
recipe = "near"
steps = 4
batch = 4
crop = 16
scale = [1.0, 1.0]
evaluations = 1
[export]
shape = [1, 1, 16, 16]
[quantize]
images = 4
calibrator = "most"
[gates]
accuracy = { max_increase = "900%", margin = "900%", required = false }
parity = { min_sqnr_db = 1 }
worst = { max = 1000 }
"""


def teacher():
    """Weights that count: a bright square of 3 x 3 pixels lights 4 pooled cells, a quarter each."""
    made = {name: 0.001 * value for name, value in network(8, 0).state_dict().items()}
    made["0.weight"][0, 0, 1, 1] = made["0.bias"][0] = 0.5  # black is -1 and white 1
    made["3.weight"][0, 0, 1, 1] = 1.0
    made["5.weight"][0, 0, 0, 0] = 0.25
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A spec that names nothing but what the package brings, its data and its teacher."""
    made = tmp_path_factory.mktemp("heads")
    (made / "kdcompile.toml").write_text(SPEC)
    (made / "model.py").write_text(MODEL)
    save_file(teacher(), made / "w.safetensors")
    lines = []
    for number, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 8))):
        for photo in photos(count, number):
            name = f"{split}{photo.name}.png"
            Image.fromarray(photo.array[..., 0]).save(made / name)
            lines += [f"{split},{name},{x},{y}" for x, y in photo.points]
    (made / "heads.csv").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages that holds the one of this test."""
    made = tmp_path_factory.mktemp("site")
    install_package(made)
    return made


def call(site, *words):
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcompile", *map(str, words), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def built(folder, site):
    torch.manual_seed(0)
    return call(site, "build", folder, "-o", folder / "out")


def test_one_build_uses_all_that_the_package_brings(built, folder):
    assert built["target"] == "acme-board"
    gates = {gate["name"]: gate for gate in built["gates"]}
    assert gates["worst"]["verdict"] == "passed"
    assert gates["worst"]["threshold"] == "at most 1000 on any image"
    assert gates["accuracy"]["threshold"].startswith("largest")
    details = built["details"]
    assert (details["task"]["name"], details["task"]["kind"]) == ("heads", "counting")
    assert details["distill"]["metric"] == "largest"
    assert details["calibration"]["calibrator"] == "most"
    metrics = (folder / "out" / "metrics.jsonl").read_text()
    assert '"near"' in metrics
    assert len(details["predictions"]) == 8
    predicted = np.array([row["student"] for row in details["predictions"]])
    true = np.array([row["true"] for row in details["predictions"]])
    assert gates["worst"]["observed"] == f"{np.abs(predicted - true).max():.4g}"


def test_the_command_names_what_the_package_brings(site):
    found = call(site, "plugins")["plugins"]
    own = {(one["kind"], one["name"]): one for one in found if one["distribution"] == "acme-kd"}
    assert set(own) == {
        ("recipes", "near"), ("tasks", "heads"), ("gates", "worst"), ("formats", "csv"),
        ("targets", "acme-board"), ("calibrators", "most"),
    }  # fmt: skip
    assert {one["version"] for one in own.values()} == {"1.0"}
    assert own["gates", "worst"]["source"] == "acme_kd.gate:worst"
    assert {one["problem"] for one in found} == {None}
    assert {one["distribution"] for one in found} == {"acme-kd", "kdcompile"}


def test_the_page_shows_the_package_as_it_is():
    page = (PACKAGE.parents[2] / "docs" / "plugins.md").read_text()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml")]
    shown = [path for path in files if path.name != "__init__.py"]
    assert len(shown) == 7
    assert [path.name for path in shown if path.read_text().rstrip() not in page] == []


def test_another_version_is_made_anew(built, folder, site, tmp_path):
    plan = call(site, "plan", folder)
    assert all(step["key"] for step in plan["steps"]), "nothing changed"
    newer = tmp_path / "site"
    install_package(newer, "1.1")
    steps = {step["stage"]: step["why"] for step in call(newer, "plan", folder)["steps"]}
    for stage, used in {
        "teacher": ("task heads", "format csv"), "distill": ("recipe near",),
        "calibrate": ("calibrator most",), "verify": ("gate worst",),
    }.items():  # fmt: skip
        assert any("acme-kd 1.0 -> acme-kd 1.1" in why for why in steps[stage]), steps
        assert any(name in why for why in steps[stage] for name in used), steps
    shutil.rmtree(newer)
