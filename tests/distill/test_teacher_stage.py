"""A teacher must run, give a density, and beat a constant."""

import pytest
import torch
from safetensors.torch import save_file

from kdcompile.config.load import load_spec
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.passes.teacher import run
from kdcompile.targets import load

CODE = """
import numpy as np
from torch import nn
from kdcompile.data.photo import Photo
class Sum(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.a = nn.Conv2d(channels, 1, 1)
    def forward(self, x):
        return self.a(x)
def build():
    return Sum()
def build_three():
    return Sum(3)
class Vector(Sum):
    def forward(self, x):
        return self.a(x).flatten(1)
def vector():
    return Vector()
def photos(root, split):
    random = np.random.default_rng(len(split))
    made = []
    for n in range(1, 6):
        pixels = np.zeros((8, 8, 1), np.uint8)
        points = [(i % 8, i // 8) for i in range(n * 3)]
        for x, y in points:
            pixels[y, x] = 255
        pixels[7] = random.integers(0, 3, (8, 1))
        made.append(Photo(f"{split}{n}", np.float32(points) + 0.5, array=pixels))
    return made
"""
SPEC = """
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "model.py:photos"
root = "."
train = "t"
val = "vv"
test = "sss"
mean = [0.0]
std = [1.0]
[export]
shape = [1, 1, 8, 8]
"""


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "model.py").write_text(CODE)
    (tmp_path / "kdcompile.toml").write_text(SPEC)

    def call(*sets, weight=1.0, channels=1):
        state = {"a.weight": torch.full((1, channels, 1, 1), weight), "a.bias": torch.zeros(1)}
        save_file(state, tmp_path / "w.safetensors")
        spec = load_spec(tmp_path / "kdcompile.toml", sets)
        return run(Step("teacher", f"{hash((sets, weight)):x}", spec), Store(tmp_path), load("cpu"))

    return call


def test_a_good_teacher_is_measured(stage):
    found = stage().json("teacher.json")
    assert found["val_mae"] < 0.2
    assert found["constant_mae"] == pytest.approx((6 + 3 + 0 + 3 + 6) / 5)
    assert (found["n_train"], found["n_val"], found["n_test"]) == (5, 5, 5)


@pytest.mark.parametrize(
    ("sets", "options", "code"),
    [
        ((), {"weight": 0.0}, "teacher-useless"),
        ((), {"weight": 9.0}, "teacher-useless"),
        (("teacher.model=model.py:build_three",), {"channels": 3}, "teacher-forward"),
        (("teacher.model=model.py:vector",), {}, "teacher-output"),
    ],
)
def test_a_teacher_that_stops_the_build(stage, sets, options, code):
    with pytest.raises(KDError) as error:
        stage(*sets, **options)
    assert error.value.code == code
    assert error.value.fix


CLASSES = """
[task]
kind = "classification"
[teacher]
model = "classes.py:build"
weights = "w.safetensors"
[data]
format = "classes.py:photos"
root = "."
train = "t"
val = "vv"
test = "sss"
mean = [0.0]
std = [1.0]
[export]
shape = [1, 1, 4, 4]
"""
CLASS_CODE = """
import numpy as np
from torch import nn
from kdcompile.data.photo import Photo
class Light(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 3)
    def forward(self, x):
        return self.a(x.flatten(1))
def build():
    return Light()
def photos(root, split):
    grey = [10 * len(split) + 20 * label for label in (0, 1, 2, 2)]
    return [
        Photo(f"{split}{n}", array=np.full((4, 4, 1), g, np.uint8), label=float(max(0, n - 1)))
        for n, g in enumerate(sorted(grey))
    ]
def wrong(root, split):
    return [Photo(p.name, array=p.array, label=p.label + 1) for p in photos(root, split)]
def bare(root, split):
    return [Photo(p.name, array=p.array) for p in photos(root, split)]
"""


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.py").write_text(CLASS_CODE)
    (tmp_path / "kdcompile.toml").write_text(CLASSES)

    def call(*sets, bias=(0.0, 0.0, 0.0), slope=0.0):
        weight = torch.outer(torch.tensor([-slope, 0.0, slope]), torch.ones(16))
        save_file({"a.weight": weight, "a.bias": torch.tensor(bias)}, tmp_path / "w.safetensors")
        spec = load_spec(tmp_path / "kdcompile.toml", sets)
        return run(Step("teacher", f"{hash((sets, bias)):x}", spec), Store(tmp_path), load("cpu"))

    return call


def test_a_classifier_is_measured_by_top1(classes):
    # classes 0, 0, 1, 2 at greys 20, 40, 60, 60: the last one alone is told wrong
    found = classes(bias=(2.0, 0.5, -9.0), slope=0.5).json("teacher.json")
    assert found["metric"] == "top1"
    assert found["val_top1"] == 0.75
    assert found["constant_top1"] == 0.5
    assert found["output"] == [3]
    assert found["classes"] is None
    assert found["val_abs_error_std"] == pytest.approx((0.75 * 0.25) ** 0.5)


@pytest.mark.parametrize(
    ("sets", "code", "text"),
    [
        ((), "teacher-useless", "validation top1 50.00%, a constant predictor has 50.00%"),
        (("data.format=classes.py:wrong",), "labels-invalid", "a label of 3"),
        (("data.format=classes.py:bare",), "label-missing", "t0 has no label"),
        (("task.kind=regression",), "teacher-output", "one value"),
    ],
)
def test_a_classifier_that_stops_the_build(classes, sets, code, text):
    with pytest.raises(KDError, match=text) as error:
        classes(*sets)
    assert error.value.code == code
    assert error.value.fix
