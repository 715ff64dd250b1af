"""Small photos of coloured boxes with masks, a network that tells them apart, and its spec."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from kdcompile.models.factory import write_weights

CLASSES = ["ground", "red", "green"]
VOID = 11
SIZE = (48, 64)
MODEL = '''"""A network of three classes at half the photo's size."""

from torch import nn


def build():
    """Logits [N, 3, h / 2, w / 2]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    )
'''
SPEC = """target = "cpu"

[task]
kind = "segmentation"

[teacher]
model = "model.py:build"
weights = "teacher.safetensors"

[data]
format = "masks"
root = "data"
classes = ["ground", "red", "green"]
ignore_index = 11
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[student]
budget = { width = 0.5 }

[distill]
recipe = "kd"
steps = 60
batch = 4
crop = 32
lr = 0.01
evaluations = 3

[export]
shape = [1, 3, 48, 64]

[quantize]
images = 8

[gates.accuracy]
max_increase = "10%"
margin = "25%"
"""


def scene(random: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, ...]:
    """A photo and its mask: up to three boxes on a grey ground, a border that is void."""
    height, width = size
    pixels = np.full((height, width, 3), 110, np.float64)
    mask = np.zeros(size, np.uint8)
    for _ in range(3):
        index = int(random.integers(1, 3))
        top, left = random.integers(0, height - 16), random.integers(0, width - 16)
        high, wide = random.integers(10, 24, 2)
        part = np.s_[top : top + high, left : left + wide]
        pixels[part] = (200, 60, 60) if index == 1 else (60, 190, 70)
        mask[part] = index
    mask[0] = VOID
    pixels += random.normal(0, 14, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


def save(root: Path, name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
    """A photo and its mask, an index PNG with a palette."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    image = Image.fromarray(mask)
    image.putpalette([value for k in range(256) for value in (k, 7 * k % 256, 31 * k % 256)])
    image.save(root / "labels" / f"{name}.png")


def write_data(root: Path, counts: tuple[int, int, int] = (20, 8, 10)) -> None:
    """Photos with their masks, and the lists of the three splits."""
    random = np.random.default_rng(3)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        names = [f"{split}{n:02d}" for n in range(count)]
        for name in names:
            save(root, name, *scene(random))
        (root / f"{split}.txt").write_text("\n".join(names))


def teacher() -> nn.Module:
    """The network, its weights set by hand: red less green in half of the channels, and back."""
    torch.manual_seed(0)
    space: dict = {}
    exec(MODEL, space)
    network: nn.Module = space["build"]()
    first, second, last = network[0], network[2], network[4]
    with torch.no_grad():
        for layer in (first, second, last):
            layer.weight.mul_(0.02)
            layer.bias.zero_()
        for channel in range(16):
            sign, size = (1 if channel < 8 else -1), 0.8 + 0.05 * (channel % 8)
            first.weight[channel, 0] += sign * size / 9
            first.weight[channel, 1] -= sign * size / 9
            second.weight[channel, channel, 1, 1] += 1
            last.weight[1 if channel < 8 else 2, channel] += 0.5
        last.bias[0] = 4.0
    return network


def write(folder: Path) -> None:
    """The data, the network with its weights, and the spec."""
    write_data(folder / "data")
    (folder / "model.py").write_text(MODEL)
    write_weights(folder / "teacher.safetensors", teacher().state_dict())
    (folder / "kdcompile.toml").write_text(SPEC)
