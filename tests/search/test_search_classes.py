"""The search where a class is predicted: a pooled head, and a metric that has a best value."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from searching import searched
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import student_from_architecture

MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 3),
    )
"""
DATA = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    random = np.random.default_rng(len(split))
    made = []
    for i in range({"train": 96, "val": 30, "test": 6}[split]):
        pixels = random.integers(0, 60, (16, 16, 1)).astype(np.uint8)
        x, y, side = *random.integers(0, 10, 2), 2 + 2 * (i % 3)
        pixels[y : y + side, x : x + side] = 255
        made.append(Photo(f"{split}{i}", array=pixels, label=float(i % 3)))
    return made
"""
SPEC = """
[task]
kind = "classification"
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "data.py:photos"
root = "."
files = ["*.toml"]
train = "train"
val = "val"
test = "test"
mean = [0.3]
std = [0.3]
[distill]
recipe = "kd"
batch = 8
crop = 16
scale = [1.0, 1.0]
lr = 3e-3
evaluations = 2
[export]
shape = [1, 1, 16, 16]
"""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The loader of a build whose teacher tells squares of 2, 4 and 6 pixels apart."""
    folder = tmp_path_factory.mktemp("classes")
    for name, text in (("model.py", MODEL), ("data.py", DATA), ("kdcompile.toml", SPEC)):
        (folder / name).write_text(text)
    space: dict = {}
    exec(MODEL + DATA, space)
    photos = space["photos"](None, "train")
    images = torch.tensor(np.stack([p.array for p in photos])).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([int(p.label) for p in photos])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = space["build"]()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model((images - 0.3) / 0.3), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.3
    save_file(model.state_dict(), folder / "teacher.safetensors")
    return lambda *sets: load_spec(folder / "kdcompile.toml", sets)


@pytest.mark.parametrize("space", ["staged", "layers"])
def test_a_classifier_is_searched_for(load, space):
    plan, artifact = searched(load, f"search.space={space}", "student.budget={macs=60000}")
    record = artifact.json("search.json")
    assert record["metric"] == "top1"
    qualities = [point["quality"] for point in record["points"]]
    assert min(qualities) >= 0
    assert max(qualities) <= 1
    chosen = record["points"][record["chosen"]]
    assert chosen["macs"] <= 60000
    assert chosen["evidence"] == "distilled"
    assert chosen["quality"] > 0.4  # one class for all gives a third
    architecture = artifact.json("architecture.json")
    student = student_from_architecture(load_teacher(plan.spec), architecture, plan.spec.folder)
    assert student(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    assert plan.make("distill").json("result.json")["steps"] == 4
