"""A teacher must run, give a density, and beat a constant."""

import pytest
import torch
from safetensors.torch import save_file

from kdcompile.artifact import Step, Store
from kdcompile.distill.teacher import run
from kdcompile.errors import KDError
from kdcompile.spec_file import load_spec
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
