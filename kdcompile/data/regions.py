"""Masks that are drawn from COCO's polygons and run lengths, pixel for pixel as pycocotools does.

Run lengths (RLE) count the pixels of an image column by column, outside and inside by turns, and
outside first; compressed they are a string in which each character holds five bits.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.data.boxes import REACH

IGNORED = 255  # of pixels that are neither trained on nor judged
MOST_PIXELS = 1 << 28  # of a mask: more takes all memory
FINE = 5  # steps a pixel on which corners lie
CORNERS = 3  # of a polygon at least
POLYGONS = 'write "segmentation": [[x0, y0, x1, y1, x2, y2, ...], ...] in pixels of the image'
RUNS = 'write "segmentation": {"size": [height, width], "counts": [...] or a string}'


@dataclass(frozen=True, eq=False)
class Region:
    """What one annotation covers.

    Args:
        index: of its class.
        is_crowd: it says that there are several somewhere in it.
        polygons: corners [K, 2], x and y in pixels.
        runs: lengths in place of polygons, the first one outside.
    """

    index: int
    is_crowd: bool
    polygons: tuple[NDArray[np.float64], ...]
    runs: NDArray[np.int64] | None

    def covers(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The pixels of an image of height and width `size` in it, bool [H, W]."""
        if self.runs is not None:
            inside = np.arange(len(self.runs)) % 2 == 1
            return np.repeat(inside, self.runs).reshape(size[::-1]).T
        found = np.zeros(size, np.bool_)
        for corners in self.polygons:
            found |= _filled(corners, size)
        return found


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of an image, of which its mask is drawn when it is needed.

    Args:
        size: height and width of the image.
        regions: in any order, which does not count.
        rest: the index of pixels that no region covers.
    """

    size: tuple[int, int]
    regions: Sequence[Region]
    rest: int

    def drawn(self) -> NDArray[np.uint8]:
        """The mask, uint8 [H, W].

        `IGNORED` is where regions of two classes overlap, and where there is but a crowd.
        """
        mask = np.full(self.size, self.rest, np.uint8)
        free = np.ones(self.size, np.bool_)
        for region in self.regions:
            if region.is_crowd:
                mask[region.covers(self.size)] = IGNORED
        for region in self.regions:
            if not region.is_crowd:
                inside = region.covers(self.size)
                mask[inside & (free | (mask == region.index))] = region.index
                mask[inside & (mask != region.index)] = IGNORED
                free &= ~inside
        return mask

    def sha256(self) -> str:
        """Hash of the size, the regions and the index of the rest."""
        found = hashlib.sha256(repr((self.size, self.rest)).encode())
        for region in self.regions:
            found.update(repr((region.index, region.is_crowd, len(region.polygons))).encode())
            for part in (*region.polygons, *([] if region.runs is None else [region.runs])):
                found.update(repr(part.shape).encode() + part.tobytes())
        return found.hexdigest()


def read_region(
    row: Mapping[str, Any], index: int, size: tuple[int, int], name: str, where: str
) -> Region:
    """The region of an annotation.

    Args:
        row: the annotation.
        index: of its class.
        size: height and width of the image.
        name: of the image.
        where: the file.

    Raises:
        KDError: `annotation-invalid`, `annotation-outside` or `mask-size`.
    """
    given, about = row.get("segmentation"), f"annotation {row['id']} of {name}"
    crowd = bool(row.get("iscrowd"))
    if isinstance(given, dict):
        return Region(index, crowd, (), _runs(given, size, about, where))
    if not isinstance(given, list) or not given:
        _refuse(f"{about} has a segmentation of {given!r:.60}", where, f"{POLYGONS}; or {RUNS}")
    return Region(index, crowd, tuple(_corners(one, size, about, where) for one in given), None)


def _corners(given: Any, size: tuple[int, int], about: str, where: str) -> NDArray[np.float64]:
    numbers = isinstance(given, list) and all(type(value) in (int, float) for value in given)
    if not numbers or not all(math.isfinite(value) for value in given):
        _refuse(f"{about} has a polygon of {given!r:.60}", where, f"{POLYGONS}, finite numbers")
    if len(given) % 2:
        what = f"{about} has a polygon of {len(given)} numbers, which are no pairs"
        _refuse(what, where, f"{POLYGONS}, an x and a y of each corner")
    if len(given) < 2 * CORNERS:
        what = f"{about} has a polygon of {len(given) // 2} corners"
        _refuse(what, where, f"give it {CORNERS} at least, or take it out")
    corners = np.array(given, np.float64).reshape(-1, 2)
    outside = ((corners < -REACH) | (corners > np.array(size[::-1]) + REACH)).any(axis=1)
    if outside.any():
        x, y = corners[outside.argmax()]
        raise KDError(
            "annotation-outside",
            f"{about} has {int(outside.sum())} corners out of the image's {size[1]} x {size[0]} "
            f"pixels, the first at [{x:g}, {y:g}]",
            where=where,
            fix="give them in pixels of the upright image, clipped to it, and the image its width "
            "and height",
        )
    return corners


def _runs(
    given: Mapping[str, Any], size: tuple[int, int], about: str, where: str
) -> NDArray[np.int64]:
    own, counts = given.get("size"), given.get("counts")
    if own != list(size):
        raise KDError(
            "mask-size",
            f"{about} has run lengths of size {own!r:.40}, its image is [{size[0]}, {size[1]}], "
            "height and width",
            where=where,
            fix="encode the mask at the size of the upright image: size = [height, width]",
        )
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(
        type(value) is int and 0 <= value <= MOST_PIXELS for value in counts
    ):
        what = f"{about} has run lengths that are none: {given.get('counts')!r:.60}"
        _refuse(what, where, f"{RUNS}, whole numbers from 0, or as pycocotools compresses them")
    if sum(counts) != math.prod(size):
        what = f"the run lengths of {about} sum to {sum(counts)}, not to {size[0]} x {size[1]}"
        _refuse(what, where, f"encode the whole mask again, column by column: {RUNS}")
    return np.array(counts, np.int64)


def _decompressed(text: str) -> list[int] | None:
    """The lengths of a string: five bits a character, and from the third on the change of two."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts


def _filled(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels in a polygon, bool [H, W], as `rleFrPoly` of COCO's API finds them.

    A pixel is inside where an odd number of the outline's crossings with the middle of its column
    lie above it; these are looked up on a grid of `FINE` points a pixel.
    """
    height, width = size
    points = np.trunc(FINE * corners + 0.5).astype(np.int64)
    ends = np.roll(points, -1, axis=0)
    line = np.concatenate([_line(*one) for one in zip(points, ends, strict=True)])
    (u, v), (last_u, last_v) = line[1:].T, line[:-1].T
    x = (np.where(u < last_u, u, u - 1) + 0.5) / FINE - 0.5
    crossed = (u != last_u) & (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    y = np.ceil(np.clip((np.minimum(v, last_v) + 0.5) / FINE - 0.5, 0, height))
    places = (x[crossed] * height + y[crossed]).astype(np.int64)
    counts = np.bincount(places, minlength=height * width + 1)[: height * width]
    inside: NDArray[np.bool_] = counts.cumsum() % 2 == 1
    return inside.reshape(width, height).T


def _line(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The points of the grid from a corner to the next, int64 [K, 2]."""
    along = int(abs(end[1] - start[1]) > abs(end[0] - start[0]))
    first, last = (end, start) if start[along] > end[along] else (start, end)
    steps = np.arange(last[along] - first[along] + 1)
    slope = (last[1 - along] - first[1 - along]) / max(len(steps) - 1, 1)
    found = np.empty((len(steps), 2), np.int64)
    found[:, along] = steps + first[along]
    found[:, 1 - along] = np.trunc(first[1 - along] + slope * steps + 0.5)
    return found[::-1] if first is end else found


def _refuse(problem: str, where: str, fix: str) -> NoReturn:
    raise KDError("annotation-invalid", problem, where, fix)
