"""Scanned digits with their classes, in the splits that the recipes are tried on.

A split is `NAME` or `NAME:SEED`. Scans 0 to 999 train, 1000 to 1296 validate, the rest test; 16x16
grey pixels. `shifted` scans are turned, blurred and noisy: another site's camera.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate
from sklearn.datasets import load_digits

from kdcompile.data.photo import Photo

SIDE = 16
TRAIN, VAL, TEST = range(1000), range(1000, 1297), range(1297, 1797)
SCARCE, PLENTY = 6, 30  # scans a class
MOST, FALL = 60, 0.6  # a long tail: the first class's scans, and what each further one has of it
OLD = 7  # classes that are known before the new ones come


def photos(root: Path, split: str) -> list[Photo]:
    """The photos of a split; always the same for the same name."""
    name, _, seed = split.partition(":")
    random = np.random.default_rng(int(seed or 0))
    if name == "teach":  # both sites
        return photos(root, "train") + photos(root, "shifted-all")
    if name == "both":
        return photos(root, f"few:{seed}") + photos(root, f"shifted-train:{seed}")
    index = _chosen(name, random)
    shifted = name.startswith("shifted")
    return [_photo(f"{split}-{i:04d}", i, shifted) for i in index]


def _chosen(name: str, random: np.random.Generator) -> list[int]:
    labels = _scans()[1]
    part = {"val": VAL, "test": TEST}.get(name.rpartition("-")[2], TRAIN)
    if name == "scarce":
        return _by_class(random, [SCARCE] * 10)
    if name in ("few", "shifted-train"):
        return _by_class(random, [PLENTY] * 10)
    if name == "longtail":
        return _by_class(random, [max(round(MOST * FALL**k), 2) for k in range(10)])
    if name == "new":
        return _by_class(random, [0] * OLD + [PLENTY] * (10 - OLD))
    if name.startswith("old"):
        return [i for i in part if labels[i] < OLD]
    return list(part)


def _by_class(random: np.random.Generator, numbers: list[int]) -> list[int]:
    """So many scans of each class, drawn from those that train."""
    labels = _scans()[1]
    own = [[i for i in TRAIN if labels[i] == kind] for kind in range(10)]
    return sorted(
        int(i)
        for kind, number in zip(own, numbers, strict=True)
        for i in random.choice(kind, number, replace=False)
    )


def _photo(name: str, index: int, shifted: bool) -> Photo:
    scan, label = _scans()[0][index], int(_scans()[1][index])
    image = Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if shifted:
        random = np.random.default_rng([7, index])
        turned = rotate(pixels.astype(float), random.uniform(-25, 25), reshape=False, order=1)
        noisy = gaussian_filter(turned, 0.8) * 0.8 + random.normal(20, 25, pixels.shape)
        pixels = noisy.clip(0, 255).astype(np.uint8)
    return Photo(name, array=np.ascontiguousarray(pixels[..., None]), label=float(label))


@cache
def _scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target
