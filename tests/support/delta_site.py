"""A counting student of a few hundred weights on made photos, and updates of it."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kdcompile.models.factory import build_model

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1),
    )
"""
PHOTOS = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    name, number = split.split(":")
    random = np.random.default_rng([ord(c) for c in name])
    made = []
    for i in range(int(number)):
        points = random.uniform(0, 8, (random.integers(1, 9), 2)).astype(np.float32)
        pixels = random.integers(0, 60, (8, 8, 1)).astype(np.uint8)
        pixels[tuple(points.astype(int).T[::-1])] = 255
        made.append(Photo(f"{name}{i}", points, array=pixels))
    return made
"""
SPEC = """
target = "cpu"
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "photos.py:photos"
root = "."
train = "train:16"
val = "val:40"
test = "test:80"
mean = [0.2]
std = [0.3]
[export]
shape = [1, 1, 8, 8]
"""
ABOUT = {"architecture": json.dumps({"family": "model.py:build", "seed": 0})}


def write_site(folder: Path, change: float = 0.02) -> None:
    """A spec, and `base.safetensors` and `new.safetensors`, which differ by about `change`."""
    for name, text in (("model.py", MODEL), ("photos.py", PHOTOS), ("kdcompile.toml", SPEC)):
        (folder / name).write_text(text)
    base = build_model("model.py:build", folder).state_dict()
    new = updated(base, change)
    for name, state in (("teacher", base), ("base", base), ("new", new)):
        save_file(state, folder / f"{name}.safetensors", ABOUT)


def updated(state, change: float, seed: int = 0):
    """Weights with normal noise; the count of a batch norm's batches goes up."""
    random = np.random.default_rng(seed)
    found = {}
    for name, tensor in state.items():
        noise = torch.from_numpy(np.asarray(change * random.standard_normal(tensor.shape)))
        found[name] = tensor + (noise.to(tensor.dtype) if tensor.is_floating_point() else 7)
    return found
