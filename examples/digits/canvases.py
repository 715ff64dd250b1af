"""Canvases of real scanned digits among distractors: the data set of this example.

Each canvas is a square of grey pixels. One of 64x64 has 0 to 10 digits and 0 to 6 distractors
(digits whose pixels were shuffled: the same ink, no digit); a larger one as many in each part of
that size. To be counted: the digits, at their centres. The splits share no scan: digits 0 to 999
train, 1000 to 1296 validate, the rest test.

A split is named `part:canvases[@side][:seed]`, for example `train:256` or `test:100@256`; the side
is in pixels, 64 where it is left out.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.data.photo import Photo

SIDE, DIGIT, GAP = 64, 12, 9
DIGITS, DISTRACTORS = 10, 6  # at most, in each part of SIDE x SIDE
PARTS = {"train": (0, 1000), "val": (1000, 1297), "test": (1297, 1797)}


def photos(root: Path, split: str) -> list[Photo]:
    """The canvases of a split; always the same for the same name.

    Args:
        root: the folder of `digits.npz`.
        split: `part:canvases[@side][:seed]`.
    """
    part, size, *seed = split.split(":")
    number, _, side = size.partition("@")
    first, last = PARTS[part]
    scans = _scans(root / "digits.npz")[first:last]
    random = np.random.default_rng([first, *map(int, seed)])
    return [
        _canvas(f"{part}-{i:04d}", int(side or SIDE), scans, random) for i in range(int(number))
    ]


@cache
def _scans(path: Path) -> NDArray[np.uint8]:
    with np.load(path) as archive:
        return np.asarray(archive["images"])


def _canvas(name: str, side: int, scans: NDArray[np.uint8], random: np.random.Generator) -> Photo:
    parts = (side / SIDE) ** 2
    most = (round(DIGITS * parts), round(DISTRACTORS * parts))
    digits, distractors = (int(random.integers(0, number + 1)) for number in most)
    centres = _places(digits + distractors, side, random)
    canvas = np.zeros((side, side), np.float32)
    for number, (x, y) in enumerate(centres):
        scan = scans[random.integers(len(scans))]
        if number >= digits:
            scan = random.permutation(scan.reshape(-1)).reshape(scan.shape)
        ink = np.asarray(Image.fromarray(scan).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR))
        top, left = int(y) - DIGIT // 2, int(x) - DIGIT // 2
        patch = canvas[top : top + DIGIT, left : left + DIGIT]
        np.maximum(patch, ink * np.float32(random.uniform(0.5, 1.0)), out=patch)
    canvas += random.normal(0, 20, canvas.shape).astype(np.float32)
    pixels = canvas.clip(0, 255).astype(np.uint8)[..., None]
    points = np.asarray(centres[:digits], np.float32).reshape(-1, 2)
    return Photo(name, points, array=pixels)


def _places(number: int, side: int, random: np.random.Generator) -> list[tuple[float, float]]:
    """Centres at least GAP pixels apart, as many as find room."""
    found, room = np.empty((number, 2)), 0
    for centre in random.uniform(DIGIT / 2, side - DIGIT / 2, (20 * number, 2)):
        if room == number:
            break
        across, down = (found[:room] - centre).T
        if (across * across + down * down >= GAP * GAP).all():
            found[room], room = centre, room + 1
    return [(float(x), float(y)) for x, y in found[:room]]
