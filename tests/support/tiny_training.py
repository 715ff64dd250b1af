"""A counting task of a second: bright squares on 16x16 pixels, and networks of a few channels."""

import json

import numpy as np
import torch
from PIL import Image
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.distill.train import Trainer

SPEC = """
seed = 1
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "."
mean = [0.5]
std = [0.5]
[distill]
batch = 4
crop = 16
scale = [1.0, 1.0]
lr = 1e-2
evaluations = 2
taps = [["1", "1"], ["4", "4"]]
[export]
shape = [1, 1, 16, 16]
"""

MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1),
    )
"""


def network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1),
    )  # fmt: skip


def photos(number, seed):
    random = np.random.default_rng(seed)
    made = []
    for i in range(number):
        points = random.uniform(2, 14, (random.integers(1, 5), 2)).astype(np.float32)
        pixels = np.zeros((16, 16, 1), np.uint8)
        for x, y in points.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        made.append(Photo(str(i), points, array=pixels))
    return made


def write_photos(folder, splits):
    """Write the photos of each split, seeded by their order, with the lists and annotations."""
    lines = []
    for seed, (split, number) in enumerate(splits.items()):
        names = []
        for photo in photos(number, seed):
            names.append(f"{split}_{photo.name}.png")
            Image.fromarray(photo.array[..., 0]).save(folder / names[-1])
            lines.append(json.dumps({"image": names[-1], "points": photo.points.tolist()}))
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")


def trainer(spec, work, **options):
    work.mkdir(exist_ok=True)
    return Trainer(spec, network(8, 0), network(4, 1), photos(12, 0), photos(6, 1), work, **options)


class PowerCutError(Exception):
    """Stands for a power cut."""


def stopped_at(training, step):
    """The trainer, which is cut off before its `step`-th step over all stages."""
    enter = training._enter

    def entering(*args):
        run = enter(*args)
        original = run.step

        def cut(local):
            if run.before + local == step:
                raise PowerCutError
            original(local)

        run.step = cut
        return run

    training._enter = entering
    return training
