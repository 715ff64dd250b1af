"""Small photos of coloured discs and squares with their boxes, and a detector trained on them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.core.user_code import load_factory
from kdcompile.data.augment import CropSampler
from kdcompile.data.box_targets import BoxTargets
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill.box_objective import BoxObjective

SIDE = 64
CLASSES = ("disc", "square")
SIZES = {"train": 40, "val": 12, "test": 20}
MODEL = '''
"""A detector of centre maps at a quarter of the photo's side."""

import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self, classes=2, width=16):
        super().__init__()
        layers, into = [], 3
        for out, stride in ((width, 2), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1)):
            layers += [nn.Conv2d(into, out, 3, stride, padding=1, bias=False),
                       nn.BatchNorm2d(out), nn.ReLU()]
            into = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(into, classes + 4, 1)
        with torch.no_grad():
            self.head.bias[:classes] = -2.5

    def forward(self, x):
        return self.head(self.body(x))


def build():
    return Detector()
'''


def scene(random: np.random.Generator) -> tuple[np.ndarray, list[list[int]]]:
    """A noisy photo of one to three things that do not touch, and their boxes with classes."""
    image = random.normal(100, 8, (SIDE, SIDE, 3))
    rows, y, x = [], *np.mgrid[:SIDE, :SIDE] + 0.5
    places = random.permutation(4)[: random.integers(1, 4)]
    for place in places.tolist():
        side = int(random.integers(10, 24))
        left = 32 * (place % 2) + int(random.integers(0, 32 - side))
        top = 32 * (place // 2) + int(random.integers(0, 32 - side))
        kind = int(random.integers(0, 2))
        within = (abs(x - left - side / 2) <= side / 2) & (abs(y - top - side / 2) <= side / 2)
        if kind == 0:
            within &= np.hypot(x - left - side / 2, y - top - side / 2) <= side / 2
        image[within] += (90, -40, -60) if kind == 0 else (-60, -40, 90)
        rows.append([left, top, left + side, top + side, kind])
    return image.clip(0, 255).astype(np.uint8), rows


def write_data(root: Path, sizes: dict[str, int] = SIZES) -> dict[str, list[Photo]]:
    """A COCO file and PNGs for each split."""
    random, made = np.random.default_rng(0), {}
    (root / "images").mkdir(parents=True)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    for split, count in sizes.items():
        images, annotations, made[split] = [], [], []
        for number in range(count):
            pixels, rows = scene(random)
            name = f"{split}{number}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            for x0, y0, x1, y1, kind in rows:
                annotations.append({
                    "id": len(annotations), "image_id": number, "category_id": kind + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                })  # fmt: skip
            boxes = np.array(rows, np.float32)
            made[split].append(Photo(name, path=root / "images" / name, boxes=boxes))
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (root / f"{split}.json").write_text(text)
    return made


def train_teacher(folder: Path, photos: list[Photo], steps: int = 120) -> nn.Module:
    """Write model.py and the weights of a detector that finds most of them."""
    (folder / "model.py").write_text(MODEL)
    torch.manual_seed(0)
    network: nn.Module = load_factory("model.py:build", folder)()
    options = Distill(crop=SIDE, batch=8, scale=(1.0, 1.0), colour=0.0)
    preprocess = Preprocess(3, (0.4,) * 3, (0.2,) * 3, (SIDE, SIDE), (SIDE, SIDE))
    targets = BoxTargets(photos, torch.device("cpu"))
    sampler = CropSampler(photos, preprocess, options, targets, 0, torch.device("cpu"))
    objective = BoxObjective(options, torch.zeros(1, 1, 6))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / steps)
        batch = sampler.batch(step)
        optimizer.zero_grad()
        objective.hard(network(batch.images), batch.target).backward()
        optimizer.step()
    save_file(network.state_dict(), folder / "teacher.safetensors")
    return network.eval()


SPEC = """
target = "cpu"
[task]
kind = "detection"
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "coco"
root = "data"
mean = [0.4, 0.4, 0.4]
std = [0.2, 0.2, 0.2]
[student]
budget = { width = 0.5 }
[distill]
recipe = "kd"
steps = 60
batch = 8
crop = 64
lr = 0.003
scale = [1.0, 1.0]
evaluations = 3
[export]
shape = [1, 3, 64, 64]
[quantize]
images = 8
[gates]
accuracy = { max_increase = "60%", margin = "90%" }
parity = { min_sqnr_db = 10 }
"""


def write_project(folder: Path) -> dict[str, list[Photo]]:
    """A whole project: data, model, teacher and spec."""
    photos = write_data(folder / "data")
    train_teacher(folder, photos["train"])
    (folder / "kdcompile.toml").write_text(SPEC)
    return photos
