"""A map of an image that is larger than its network's input, from tiles that overlap.

Each tile is an input of the network. Of its map only the cells count whose reach lies within it, or
beyond the image's own border, as the network of the whole image would see it there: so the map is
that of the whole image, up to the rounding of its sums. Python 3.8 with numpy: it is a file of
bundles too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class TilesError(ValueError):
    """This network has no tiles of this size; the text says why."""


def up(value: int, step: int) -> int:
    """The next whole multiple of a step."""
    return -(-value // step) * step


def starts(whole: int, tile: int, margin: int) -> list[int]:
    """Where the tiles along an axis begin, so that two neighbours share both their margins.

    Args:
        whole: pixels of the axis.
        tile: pixels of a tile, at most as many.
        margin: pixels at a cut edge that do not count.
    """
    step = tile - 2 * margin
    return [*range(0, max(whole - tile, 0), step), whole - tile]


def checked(about: dict[str, Any], tile: Any) -> tuple[int, int, int]:
    """Cell, margin and period of a network, for tiles of [height, width].

    Raises:
        TilesError: it has none, or none that are so small.
    """
    if "refused" in about:
        raise TilesError("the network cannot be run in tiles: {}".format(about["refused"]))
    cell, period = int(about["cell"]), int(about["period"])
    margin = up(int(about["margin"]), period)
    if min(tile) <= 2 * margin or any(side % period for side in tile):
        raise TilesError(
            f"tiles of {tile[0]}x{tile[1]} are too small: {margin} pixels of each edge do not "
            f"count, and a side must be a multiple of {period}"
        )
    return cell, margin, period


def run(network: Callable[[Any], Any], image: Any, tile: Any, about: dict[str, Any]) -> Any:
    """The network's map of an image, of whatever size.

    Args:
        network: of a tile of h x w pixels to its map [1, K, h / cell, w / cell].
        image: neither scaled nor padded: normalised, float32 [1, C, H, W], or where the network
            normalises, uint8 [1, H, W, C]; its tiles are alike.
        tile: height and width of a tile.
        about: what `onnx_graph.receptive.tiling` says of the network.

    Returns:
        The map, what it is of, [height, width], which is the image padded right and below with
        its mirror image; and how many tiles it took.

    Raises:
        TilesError: those of `checked`; the network's maps are of other sizes.
    """
    cell, margin, period = checked(about, tile)
    is_pixels = image.dtype == np.uint8
    if is_pixels:
        image = image.transpose(0, 3, 1, 2)
    height, width = (max(up(image.shape[2 + axis], period), tile[axis]) for axis in (0, 1))
    pad = [(0, 0), (0, 0), (0, height - image.shape[2]), (0, width - image.shape[3])]
    image = np.pad(image, pad, mode="symmetric")
    found, count = None, 0
    for top in starts(height, tile[0], margin):
        for left in starts(width, tile[1], margin):
            part = image[:, :, top : top + tile[0], left : left + tile[1]]
            part = part.transpose(0, 2, 3, 1) if is_pixels else part
            made = network(np.ascontiguousarray(part))
            if [side * cell for side in made.shape[2:]] != list(tile):
                raise TilesError(
                    f"the map of a tile has {made.shape[2:]} cells, each of {cell} pixels"
                )
            if found is None:
                sizes = height // cell, width // cell
                found = np.zeros((*made.shape[:2], *sizes), made.dtype)
            skip_y, skip_x = (margin if at else 0 for at in (top, left))
            y, x = (top + skip_y) // cell, (left + skip_x) // cell
            kept = made[:, :, skip_y // cell :, skip_x // cell :]
            found[:, :, y : y + kept.shape[2], x : x + kept.shape[3]] = kept
            count += 1
    return found, (height, width), count
