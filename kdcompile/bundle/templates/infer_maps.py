"""Part of `infer.py` in bundles of counting and segmentation: what a map over an image says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from kdcompile.bundle.templates.infer import (
    INPUT,
    OF_TASK,
    checked,
    image_of,
    imported,
    kept,
    read,
    shown,
    sides,
)

# joined to infer.py from here on


def within(density: Any, seen: Any, plane: Any) -> Any:
    """A density over the plane without what lies in the padding; cells across count by area."""
    rows, columns = (
        np.clip(seen[axis] * cells / plane[axis] - np.arange(cells), 0.0, 1.0)
        for axis, cells in enumerate(density.shape[2:])
    )
    return density * np.outer(rows, columns).astype(np.float32)


def tiled(network: Callable[[Any], Any], path: str, manifest: Any, pre: Any, scratch: str) -> Any:
    """The density of a photo that is larger than the network's input, from tiles."""
    tiles = imported(manifest, "tiles.py", "tiles", scratch)
    about = json.loads(read(manifest, "tiles.json").decode())
    image = image_of(path, dict(pre, max_hw=[sys.maxsize, sys.maxsize]))
    try:
        output, plane, _ = tiles.run(
            lambda part: next(iter(network({INPUT: part}).values())), image, pre["max_hw"], about
        )
    except tiles.TilesError as error:
        sys.exit(f"error: {error}")
    checked(output, manifest)
    return answer_of_map(output, sides(image), plane, sides(image)[::-1], manifest)


def class_map(output: Any, seen: Any, plane: Any, size: Any) -> Any:
    """The class of each pixel of a photo of that size, (width, height): uint8 [H, W]."""
    height, width = output.shape[2:]
    box = (0.0, 0.0, width * (seen[1] / plane[1]), height * (seen[0] / plane[0]))
    bilinear = getattr(Image, "Resampling", Image).BILINEAR
    best = np.full(size[::-1], -np.inf, np.float32)
    found = np.zeros(size[::-1], np.uint8)
    for index, logits in enumerate(output[0]):
        plane_of = Image.fromarray(np.ascontiguousarray(logits, np.float32))
        values = np.asarray(plane_of.resize(size, bilinear, box=box))
        found[values > best] = index
        best = np.maximum(best, values)
    return found


def painted(path: str, classes: Any, taken: set[str]) -> str:
    """Write a class map as a PNG of indices with a palette; its file."""
    colours = np.zeros((256, 3), np.uint8)
    place = np.arange(1, 257)
    for bit in range(8):
        for channel in range(3):
            part = ((place >> (3 * bit + channel)) & 1) << (7 - bit)
            colours[:, channel] |= part.astype(np.uint8)
    image = Image.fromarray(classes)
    image.putpalette(colours.ravel().tolist())
    return kept(path, "_classes.png", taken, lambda file: image.save(file, "PNG"))


def meaning_of_map(found: Any, manifest: dict[str, Any]) -> str:
    """The count of a density, or the share of each class of a class map."""
    if manifest["task"] == "counting":
        return f"{float(found.sum(dtype=np.float64)):.3f}"
    shares = np.bincount(found.ravel()) / found.size
    names = manifest["classes"] or list(range(len(shares)))
    return ", ".join(f"{shown(names[k])} {shares[k]:.4f}" for k in np.argsort(-shares) if shares[k])


def answer_of_map(output: Any, seen: Any, plane: Any, size: Any, manifest: dict[str, Any]) -> Any:
    """The class of each pixel of a photo of that size, or the density without the padding's."""
    if manifest["task"] == "segmentation":
        return class_map(output, seen, plane, size)
    return within(output, seen, plane)


def is_larger(path: str, pre: Any) -> bool:
    """Whether a photo does not fit into the network's input."""
    try:
        with Image.open(path) as file:
            turned = file.getexif().get(274, 1) > 4  # EXIF's orientation: on its side
            height, width = file.size if turned else file.size[::-1]
    except (OSError, Image.DecompressionBombError):
        return False  # which `image_of` tells
    return bool(height > pre["max_hw"][0] or width > pre["max_hw"][1])


OF_TASK.update(
    answer=answer_of_map, meaning=meaning_of_map, painted=painted, tiled=tiled, is_larger=is_larger
)
