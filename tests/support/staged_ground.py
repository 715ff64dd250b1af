"""A trained two-stage counting teacher on 16 x 16 images, for searches of staged students."""

import functools

import torch
from safetensors.torch import save_file
from torch import nn

from kdcompile.config.load import load_spec

MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1),
    )
"""
DATA = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    random = np.random.default_rng(len(split))
    made = []
    for i in range({"train": 96, "val": 12, "test": 4}[split]):
        points = random.uniform(2, 14, (random.integers(1, 5), 2)).astype(np.float32)
        pixels = random.integers(0, 60, (16, 16, 1)).astype(np.uint8)
        for x, y in points.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        made.append(Photo(f"{split}{i}", points, array=pixels))
    return made
"""
SPEC = """
seed = 1
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
batch = 4
crop = 16
scale = [1.0, 1.0]
flip = false
lr = 3e-3
evaluations = 2
[export]
shape = [1, 1, 16, 16]
"""


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1),
    )  # fmt: skip


@functools.cache
def _weights():
    """Of a teacher that sums up bright squares: 9 pixels of 255 over noise of 30 are a point."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            corner = torch.rand(16, 1, 14, 14) > 0.98
            squares = nn.functional.max_pool2d(nn.functional.pad(corner.float(), (2,) * 4), 3, 1)
            noise = torch.rand(16, 1, 16, 16) * 60 / 255
            image = (torch.maximum(squares, noise) - 0.3) / 0.3
            cells = nn.functional.pad(corner.float(), (1,) * 4)
            target = nn.functional.avg_pool2d(cells, 2) * 4
            loss = (model(image) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


def write_build(folder):
    """A spec's folder with the teacher; the loader of its spec."""
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    (folder / "kdcompile.toml").write_text(SPEC)
    save_file(_weights(), folder / "teacher.safetensors")
    return lambda *sets: load_spec(folder / "kdcompile.toml", sets)


def architecture(width=4, block="conv", depth=1, stride=1, scale=1.0):
    """A student of two stages; `stride` is the first one's."""
    settings = {"block": block, "depth": depth, "down": "pool", "dilation": 1}
    return {
        "family": "staged", "seed": 0, "input_scale": scale, "in_channels": 1, "out_channels": 1,
        "head": "dense", "output_stride": 2,
        "stages": [
            {**settings, "width": width, "stride": stride},
            {**settings, "width": width + 2, "stride": 2},
        ],
    }  # fmt: skip
