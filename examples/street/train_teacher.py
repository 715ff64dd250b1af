"""Train the example's teacher and write `teacher.safetensors` (an hour on one core with AMX).

    python train_teacher.py --data FOLDER [--work FOLDER] [--output FILE] [--steps N]

FOLDER holds `images/NAME.jpg`, `labels/NAME.png` and the lists `train.txt`, `val.txt` and
`test.txt`, as `kdcompile.toml` describes them. The weights are chosen by the mean IoU on the
validation photos. Run it again after an interruption and it goes on.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.examples.bfloat_training import Loss, Training
from kdcompile.examples.street.network import CLASSES, build

HERE = Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 11  # index of what is not annotated
SIDE, BATCH, EVERY = 256, 8, 100
SMALLEST, LARGEST = 0.75, 1.5  # scale of a crop
GAIN = 0.2  # greatest change of brightness
MULTIPLE = 16  # that the network's sides are


class Street(NamedTuple):
    """A photo, uint8 [3, H, W], and its classes, uint8 [H, W]."""

    pixels: Tensor
    classes: Tensor


def read_split(root: Path, split: str) -> list[Street]:
    """The photos of a list."""
    found = []
    for name in (root / f"{split}.txt").read_text().split():
        stem = Path(name).stem
        with Image.open(root / "images" / f"{stem}.jpg") as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        with Image.open(root / "labels" / f"{stem}.png") as image:
            found.append(Street(pixels.contiguous(), torch.from_numpy(np.array(image))))
    return found


def normalised(pixels: Tensor) -> Tensor:
    """The network's input, float32 [N, 3, H, W], from values of 0 to 255."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def class_weights(photos: Sequence[Street]) -> Tensor:
    """Of the loss: the root of how rare a class is, 1 on average over the annotated pixels."""
    counts = sum(torch.bincount(p.classes.flatten().long(), minlength=VOID + 1) for p in photos)
    shares = counts[:CLASSES].float() / counts[:CLASSES].sum()  # type: ignore[index]
    weights = shares.clamp(min=1e-4).rsqrt()
    return weights / (shares * weights).sum()


def random_crop(photo: Street, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A scaled, mirrored and recoloured crop: float32 [3, side, side] of 0 to 255, and classes."""
    high, wide = photo.classes.shape
    part = min(int(SIDE / random.uniform(SMALLEST, LARGEST)), high, wide)
    top, left = random.integers(high - part + 1), random.integers(wide - part + 1)
    window = (slice(top, top + part), slice(left, left + part))
    pixels = functional.interpolate(
        photo.pixels[:, *window][None].float(), (SIDE, SIDE),
        mode="bilinear", align_corners=False, antialias=True,
    )[0]  # fmt: skip
    classes = functional.interpolate(
        photo.classes[window][None, None].float(), (SIDE, SIDE), mode="nearest-exact"
    )[0, 0].long()
    if random.random() < 0.5:
        pixels, classes = pixels.flip(2), classes.flip(1)
    gain = random.uniform(1 - GAIN, 1 + GAIN) * random.uniform(1 - GAIN / 4, 1 + GAIN / 4, 3)
    return (pixels * torch.from_numpy(gain).float().reshape(3, 1, 1)).clamp(0, 255), classes


def batch(photos: Sequence[Street], weights: Tensor, step: int) -> tuple[Tensor, Loss]:
    """The input of a step and its loss; the same ones for the same step."""
    random = np.random.default_rng((0, step))
    chosen = [photos[i] for i in random.integers(len(photos), size=BATCH)]
    pixels, classes = zip(*(random_crop(photo, random) for photo in chosen), strict=True)
    return normalised(torch.stack(pixels)), partial(
        loss_of, classes=torch.stack(classes), weights=weights
    )


def loss_of(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """The weighed cross-entropy of the logits at the photo's size; void asks nothing."""
    whole = enlarged(logits, classes.shape[-2:])
    return functional.cross_entropy(whole, classes, weights, ignore_index=VOID)


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The logits at another size."""
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def confusion(network: nn.Module, photos: Sequence[Street], quick: bool) -> NDArray[np.int64]:
    """Pixels by true class (rows) and found class; computed in bfloat16 where `quick`."""
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for photo in photos:
        high, wide = photo.classes.shape
        below, right = -high % MULTIPLE, -wide % MULTIPLE
        image = functional.pad(normalised(photo.pixels[None]), (0, right, 0, below), "reflect")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=quick):
            logits = network(image).float()
        found = enlarged(logits, image.shape[-2:])[0, :, :high, :wide].argmax(0)
        asked = photo.classes != VOID
        place = photo.classes[asked].long() * CLASSES + found[asked]
        total += torch.bincount(place, minlength=CLASSES**2).reshape(CLASSES, CLASSES).numpy()
    return total


def judge(photos: Sequence[Street], network: nn.Module, quick: bool = True) -> tuple[float, str]:
    """The mean over the classes of intersection over union, of all photos together."""
    counts = confusion(network, photos, quick)
    hit = counts.diagonal()
    each = hit / np.maximum(counts.sum(0) + counts.sum(1) - hit, 1)
    told = ", ".join(f"{value:.3f}" for value in each)
    pixels = hit.sum() / counts.sum()
    return float(each.mean()), f"mIoU {each.mean():.4f} ({told}), pixel accuracy {pixels:.4f}"


def main() -> None:
    """Train, write the best weights in half precision, and read the test photos once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=HERE / ".teacher")
    parser.add_argument("--output", type=Path, default=HERE / "teacher.safetensors")
    parser.add_argument("--steps", type=int, default=1600)
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    train, val, test = (read_split(asked.data, split) for split in ("train", "val", "test"))
    torch.manual_seed(0)
    training = Training(build(), asked.steps, rate=2e-3)
    one_step = partial(batch, train, class_weights(train))
    training.run(one_step, partial(judge, val), asked.work / "teacher.pt", EVERY)
    network = training.write(asked.output)
    for name, photos in (("validation", val), ("test", test)):
        print(f"{name}: {judge(photos, network, quick=False)[1]}")


if __name__ == "__main__":
    main()
