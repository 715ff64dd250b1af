"""The photos of a split with their boxes, and random crops of them to train on."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST, LARGEST = 0.8, 1.3  # scale of a crop
VISIBLE = 0.4  # share of a box that must lie in the crop for it to be looked for
GAIN = 0.2  # greatest change of brightness, and half of it of each colour

Boxes = NDArray[np.float32]  # [B, 5]: x0, y0, x1, y1 and class


@dataclass(frozen=True)
class Annotated:
    """A photo, uint8 [3, H, W], and its boxes in pixels."""

    pixels: Tensor
    boxes: Boxes


def read_split(root: Path, split: str) -> list[Annotated]:
    """The photos of `root/SPLIT.json` (COCO), classes by ascending id."""
    coco = json.loads((root / f"{split}.json").read_text())
    kinds = {c: i for i, c in enumerate(sorted(c["id"] for c in coco["categories"]))}
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in coco["images"]}
    for given in coco["annotations"]:
        x, y, wide, high = given["bbox"]
        kind = kinds[given["category_id"]]
        boxes[given["image_id"]].append([x, y, x + wide, y + high, kind])
    return [
        Annotated(
            _pixels(root / image["file_name"]),
            np.array(boxes[image["id"]], np.float32).reshape(-1, 5),
        )
        for image in coco["images"]
    ]


def _pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def normalised(pixels: Tensor) -> Tensor:
    """The network's input, float32 [N, 3, H, W], from values of 0 to 255."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def random_crop(photo: Annotated, side: int, random: np.random.Generator) -> tuple[Tensor, Boxes]:
    """A scaled, flipped, turned and recoloured crop: float32 [3, side, side], 0 to 255.

    With it the photo's boxes in its pixels, those outside too.
    """
    high, wide = photo.pixels.shape[1:]
    part = min(int(side / random.uniform(SMALLEST, LARGEST)), high, wide)
    top, left = random.integers(high - part + 1), random.integers(wide - part + 1)
    pixels = photo.pixels[:, top : top + part, left : left + part].float()
    pixels = functional.interpolate(
        pixels[None], (side, side), mode="bilinear", align_corners=False, antialias=True
    )[0]
    moved = photo.boxes.copy()
    moved[:, :4] = (moved[:, :4] - np.array([left, top, left, top])) * (side / part)
    if random.random() < 0.5:
        pixels = pixels.flip(2)
        moved[:, [0, 2]] = side - moved[:, [2, 0]]
    if random.random() < 0.5:
        pixels = pixels.flip(1)
        moved[:, [1, 3]] = side - moved[:, [3, 1]]
    if random.random() < 0.5:
        pixels = pixels.transpose(1, 2)
        moved = moved[:, [1, 0, 3, 2, 4]]
    gain = random.uniform(1 - GAIN, 1 + GAIN) * random.uniform(1 - GAIN / 2, 1 + GAIN / 2, 3)
    pixels = (pixels * torch.from_numpy(gain).float().reshape(3, 1, 1)).clamp(0, 255)
    return pixels, moved


def seen_boxes(boxes: Boxes, side: int) -> tuple[Boxes, Boxes]:
    """The boxes to find in a crop, clipped to it, and those of which too little is seen."""
    clipped = boxes.copy()
    clipped[:, :4] = clipped[:, :4].clip(0, side)
    share = _area(clipped) / np.maximum(_area(boxes), 1e-6)
    return clipped[share >= VISIBLE], clipped[(share > 0) & (share < VISIBLE)]


def seen_centres(boxes: Boxes, side: int, kind: int) -> NDArray[np.float32]:
    """The centres of the boxes of a class that lie in a crop, [P, 2]: x and y."""
    centres = (boxes[boxes[:, 4] == kind, :2] + boxes[boxes[:, 4] == kind, 2:4]) / 2
    return np.asarray(centres[((centres >= 0) & (centres < side)).all(1)], np.float32)


def _area(boxes: Boxes) -> NDArray[np.float32]:
    return np.asarray((boxes[:, 2:4] - boxes[:, :2]).clip(0).prod(1), np.float32)
