"""Classification and regression from data to bundle, on networks and photos of seconds."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from kdcompile.bundle.manifest import read_bundle
from kdcompile.cli import cli
from kdcompile.core.user_code import load_factory

pytestmark = pytest.mark.usefixtures("drawn")

SIDE = 16
CLASSES = ("blue", "green", "red")
MODEL = """
from torch import nn

def network(outputs):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs),
    )

def classifier():
    return network(3)

def regressor():
    return network(1)
"""
SPEC = """
target = "jetson"
[task]
kind = "{kind}"
[teacher]
model = "model.py:{model}"
weights = "teacher.safetensors"
[data]
format = "{format}"
root = "data"
{splits}
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[student]
budget = {{ width = 0.5 }}
[distill]
recipe = "kd"
steps = 30
batch = 8
crop = 16
scale = [1.0, 1.0]
evaluations = 3
[export]
shape = [1, 3, 16, 16]
[quantize]
images = 8
[gates]
accuracy = {{ max_increase = "60%", margin = "90%" }}
parity = {{ min_sqnr_db = 10 }}
"""
NPZ = 'train = "d.npz:a@0[:48]"\nval = "d.npz:a@0[48:]"\ntest = "d.npz:b"'
RNG = np.random.default_rng(0)


def make_pixels(label):
    """A noisy photo in whose channel `label` there is more light."""
    image = RNG.normal(90, 25, (SIDE, SIDE, 3))
    image[..., 2 - label] += 50
    return image.clip(0, 255).astype(np.uint8)


def fill_classes(root):
    pixels, labels = [], []
    for split, each in (("train", 20), ("val", 6), ("test", 8)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                image = make_pixels(label)
                Image.fromarray(image).save(root / split / name / f"{number}.png")
                pixels.append(image)
                labels.append(label)
    return np.stack(pixels), np.array(labels)


def fill_values(root):
    """What is to be predicted: the mean of the red channel, between 0 and 1."""
    root.mkdir()
    pixels = RNG.normal(0, 20, (88, SIDE, SIDE, 3)) + RNG.uniform(30, 220, (88, 1, 1, 3))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    values = pixels[..., 0].mean((1, 2)) / 255
    np.savez(root / "d.npz", x_a=pixels[:64], y_a=values[:64], x_b=pixels[64:], y_b=values[64:])
    return pixels, values


def train_teacher(folder, model, pixels, labels, loss):
    torch.manual_seed(0)
    network: nn.Module = load_factory(f"model.py:{model}", folder)()
    images = torch.from_numpy(((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).float()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    save_file(network.state_dict(), folder / "teacher.safetensors")


def call(*args, code=0):
    found = CliRunner().invoke(cli, list(map(str, args)), standalone_mode=True)
    assert found.exit_code == code, (found.output, found.exception)
    return found


def start(folder, kind):
    (folder / "model.py").write_text(MODEL)
    if kind == "classification":
        pixels, labels = fill_classes(folder / "data")
        train_teacher(folder, "classifier", pixels, torch.from_numpy(labels), cross_entropy)
        values = {"model": "classifier", "format": "imagefolder", "splits": ""}
    else:
        pixels, labels = fill_values(folder / "data")
        targets = torch.from_numpy(labels[:, None]).float()
        train_teacher(folder, "regressor", pixels, targets, mse_loss)
        values = {"model": "regressor", "format": "npz", "splits": NPZ}
    (folder / "kdcompile.toml").write_text(SPEC.format(kind=kind, **values))


@pytest.fixture(scope="module", params=["classification", "regression"])
def built(request, tmp_path_factory):
    """The task and a folder with its spec and its bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    start(folder, request.param)
    sets = ["--set", "gates.accuracy.required=false"]  # thirty steps prove nothing
    call("build", folder, *sets, "-o", folder / "out")
    return request.param, folder


def test_the_report_speaks_of_the_task(built):
    kind, folder = built
    report = json.loads((folder / "out" / "report.json").read_text())
    metric = {"classification": "top1", "regression": "mae"}[kind]
    details = report["details"]
    assert details["task"]["kind"] == kind
    assert details["teacher"]["metric"] == details["distill"]["metric"] == metric
    assert f"val_{metric}" in details["distill"]["initial"]
    accuracy = report["gates"][0]
    assert accuracy["threshold"].startswith(metric)
    rows = details[{"classification": "by_class", "regression": "by_value"}[kind]]
    assert sum(row["n"] for row in rows) == 24
    assert set(rows[0]) >= {f"teacher_{metric}", f"student_{metric}"}
    page = (folder / "out" / "report.html").read_text()
    text = (folder / "out" / "report.md").read_text()
    word = {"classification": "class", "regression": "value"}[kind]
    assert f"Predicted against true {word}" in page
    assert "density" not in page.lower()
    assert "crowd" not in page + text
    assert "before the first step" in page
    assert "data:image/svg+xml" in page


def test_the_bundle_and_its_kit_know_the_task(built):
    kind, folder = built
    bundle = read_bundle(folder / "out")
    classes = {"classification": list(CLASSES), "regression": None}[kind]
    assert (bundle.manifest["task"], bundle.manifest["classes"]) == (kind, classes)
    output = {"classification": "logits", "regression": "value"}[kind]
    assert [o.name for o in onnx.load(bundle.model).graph.output] == [output]
    kit = json.loads((bundle.folder / "kit" / "kit.json").read_text())
    assert (kit["task"], kit["output"]) == (kind, output)


def test_run_and_infer_agree(built, tmp_path):
    kind, folder = built
    photo = tmp_path / "photo.png"
    Image.fromarray(make_pixels(2)).save(photo)
    row = json.loads(call("run", folder / "out", photo, "--json").stdout)
    shown = call("run", folder / "out", photo).stdout
    command = [sys.executable, str(folder / "out" / "infer.py"), str(photo)]
    sample = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert row["overlay"] is None
    if kind == "classification":
        assert row["class"] == sample[1] == shown.split()[0] == "red"
        assert float(sample[2]) == pytest.approx(row["probability"], abs=1e-4)
    else:
        assert float(sample[1]) == pytest.approx(row["value"], rel=1e-4)
        assert float(shown.split()[0]) == pytest.approx(row["value"], rel=1e-3)


def test_the_kit_compares_predictions(built):
    kind, folder = built
    kit = folder / "out" / "kit"
    command = [sys.executable, kit / "build_engine.py", "--backend", "onnxruntime"]
    options = ["--iterations", "2", "--out", folder / "engines", "--precision", "fp16"]
    subprocess.run([*command, *options], capture_output=True, check=True)
    (found,) = json.loads((folder / "engines" / "device.json").read_text())["candidates"]
    if kind == "classification":
        assert found["top1_agreement"] == 1
    else:
        assert 0 < found["value_difference"] < 0.1


def test_the_plan_names_the_smallest_margin(built):
    kind, folder = built
    sets = ["--set", "gates.accuracy.required=false"]
    plan = json.loads(call("plan", folder, *sets, "--json").stdout)
    assert plan["margin"]["images"] == 24
    assert plan["margin"]["smallest"] > 0.01
    unit = {"classification": "percentage points", "regression": "% of the teacher's mae"}[kind]
    *_, gate, line, luck = call("plan", folder, *sets).stdout.splitlines()
    assert gate == "accuracy   24 test images can decide it"
    assert line.startswith("24 test images are expected to decide a margin of ")
    assert line.endswith(f"{unit} or more (80 % power, error correlation 0.8); the spec asks 90")
    assert "is over max_increase = 60% by chance in 0 of 100 draws" in luck
    assert all(step["key"] for step in plan["steps"])


def test_the_plan_says_what_the_photos_cannot_decide(built):
    kind, folder = built
    sets = ["--set", "gates.flips.max=5%", "--set", "gates.accuracy.margin=5%",
            "--set", "gates.strata.margin=90%", "--set", "data.max_test=20"]  # fmt: skip
    lines = call("plan", folder, *sets).stdout.splitlines()
    found = {line.split()[0]: line for line in lines if " test images can" in line}
    assert "20 test images cannot decide it" in found["flips"]
    assert "20 images leave up to 13.9 % possible, over 5 %" in found["flips"]
    assert found["flips"].endswith("; 59 would do")
    if kind == "classification":
        assert found["accuracy"].endswith("; 52 would do")
    else:
        assert found["accuracy"] == "accuracy   20 test images can decide it"
        assert found["strata"].endswith("; 8 in each part would do")


@pytest.mark.parametrize(
    ("sets", "code"),
    [
        (["task.kind=counting"], "teacher-output"),
        (["task.kind=regression"], "teacher-output"),
        (["teacher.model=model.py:regressor", "task.kind=regression"], "weights-mismatch"),
        (["data.train=val"], "split-overlap"),
        (["gates.accuracy.metric=mae"], "spec-invalid"),
    ],
)
def test_a_task_that_does_not_suit_is_refused(tmp_path, sets, code):
    start(tmp_path, "classification")
    words = [word for value in sets for word in ("--set", value)]
    found = CliRunner().invoke(cli, ["build", str(tmp_path), *words])
    assert getattr(found.exception, "code", None) == code or code in found.output


def test_labels_that_the_network_has_no_output_for(tmp_path):
    start(tmp_path, "classification")
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split / "yellow").mkdir()
        image = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "data" / split / "yellow" / "a.png")
    found = CliRunner().invoke(cli, ["build", str(tmp_path)])
    assert "4 classes, the network 3 outputs" in str(found.exception) + found.output
