"""Photos of made-up kites with their four key points: the data set of this example.

A kite of any colour, size and direction flies over a noisy sky. Its wings differ by where the nose
points alone, so that they change sides in a mirror.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdcompile.data.photo import Photo

SIDE = 64
SHAPE = np.array([[0.0, -1.0], [-0.6, -0.25], [0.6, -0.25], [0.0, 1.0]])  # in the order of NAMES
NAMES = ("nose", "left wing", "right wing", "tail")
SEEDS = {"train": 1, "val": 2, "test": 3}


def photos(root: Path, split: str) -> list[Photo]:
    """The photos of a split; always the same for the same name.

    Args:
        root: not read, as nothing lies on disk.
        split: `NAME:COUNT`, such as `train:128`.
    """
    name, _, count = split.partition(":")
    random = np.random.default_rng(SEEDS[name])
    return [_kite(f"{name}-{number:04d}", random) for number in range(int(count))]


def _kite(name: str, random: np.random.Generator) -> Photo:
    turn, size = random.uniform(0, 2 * np.pi), random.uniform(11, 18)
    across = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = (SHAPE * size) @ across + random.uniform(20, SIDE - 20, 2)
    sky = Image.new("RGB", (SIDE, SIDE), _colour(random, 120, 200))
    draw = ImageDraw.Draw(sky)
    nose, left, right, tail = (tuple(point) for point in points)
    draw.polygon([nose, left, tail, right], fill=_colour(random, 0, 100))
    draw.line([nose, tail], fill="white")
    pixels: NDArray[np.float64] = np.asarray(sky) + random.normal(0, 10, (SIDE, SIDE, 3))
    array = pixels.clip(0, 255).astype(np.uint8)
    return Photo(name, points.clip(0, SIDE).astype(np.float32), array=array)


def _colour(random: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = random.integers(low, high, 3).tolist()
    return red, green, blue
