"""Training targets of crops (labels, density maps and masks), computed on the device."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kdcompile.data.masks import IGNORED, mask_of
from kdcompile.data.photo import Photo
from kdcompile.kernels.crop_augment import Column


class Extra(IntEnum):
    """Columns of a crop's row behind those of `kernels.crop_augment.Column`.

    PHOTO: its index. TOP, LEFT: of the window in the photo. PHOTO_H, PHOTO_W: the photo's size.
    """

    PHOTO = len(Column)
    TOP = PHOTO + 1
    LEFT = PHOTO + 2
    PHOTO_H = PHOTO + 3
    PHOTO_W = PHOTO + 4


class Targets(Protocol):
    """Labels of crops."""

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The labels of crops of side x side, from their table [B, P] on the device.

        Waits for nothing there: shapes depend on no value.
        """
        ...


def photos_of(table: Tensor) -> Tensor:
    """int64 [B], the index of the photo of each crop in a table [B, P]."""
    return table[:, Extra.PHOTO].long()


def flipped_of(table: Tensor) -> Tensor:
    """bool [B], which crops in a table [B, P] are mirrored from left to right."""
    return table[:, Column.FLIP] > 0


class LabelTargets:
    """The label of each crop's photo: int64 [B] of classes, or float32 [B, 1] of values."""

    def __init__(self, photos: Sequence[Photo], device: torch.device, integer: bool) -> None:
        labels = torch.tensor([photo.labelled() for photo in photos], dtype=torch.float64)
        own = labels.long() if integer else labels.float().unsqueeze(1)
        self._labels = own.to(device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The labels of the photos in `table` [B, P]."""
        return self._labels.index_select(0, photos_of(table))


class PointTargets:
    """The points of each crop in the order of their photo, float32 [B, P, 3].

    x and y in pixels of the crop, moved and mirrored with it, and 1 where it shows them, else 0; P
    is the most that a photo has.

    Args:
        photos: with their points.
        device: where these lie from now on.
    """

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        counts = np.array([len(photo.points) for photo in photos], np.int64)
        self._most = max(int(counts.max(initial=0)), 1)
        nothing = np.zeros((1, 2), np.float32)  # what index 0 shows where no photo has a point
        packed = np.concatenate([*(photo.points for photo in photos), nothing])
        self._points = torch.from_numpy(packed.astype(np.float32)).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The points of the crops in `table` [B, P]."""
        points, shown = self.within(table, side, self._most)
        return torch.cat([points, shown.unsqueeze(2).to(points.dtype)], 2)

    def most_of(self, table: Tensor) -> int:
        """The most points that a photo of the table has, where that needs no wait for a device."""
        if table.is_cuda:
            return self._most
        return max(int(self._counts[photos_of(table)].max()), 1)

    def within(self, table: Tensor, side: int, most: int) -> tuple[Tensor, Tensor]:
        """The first `most` points [B, P, 2] in pixels of the crop, and which of them it shows."""
        photo = photos_of(table)
        counts = self._counts[photo].unsqueeze(1)
        place = torch.arange(most, device=table.device).unsqueeze(0)
        index = self._starts[photo].unsqueeze(1) + place * (place < counts)
        x, y = self._points[index].unbind(2)
        x, seen_x = _moved(x, table, _X)
        y, seen_y = _moved(y, table, _Y)
        x = torch.where(flipped_of(table).unsqueeze(1), side - x, x)
        return torch.stack([x, y], 2), (place < counts) & seen_x & seen_y


class DensityTargets:
    """Density maps float32 [B, 1, s/stride, s/stride] of exactly the points within each crop.

    Args:
        photos: with their points.
        stride: pixels per cell.
        sigma: deviation of a point's Gaussian in cells.
        device: where the points lie from now on.
    """

    def __init__(
        self, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> None:
        self._stride, self._sigma = stride, sigma
        self._points = PointTargets(photos, device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The maps of the crops in `table` [B, P]."""
        points, inside = self._points.within(table, side, self._points.most_of(table))
        if not table.is_cuda:  # there nothing waits for a value: leave out the points outside
            most = max(int(inside.sum(1).max()), 1)
            order = inside.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
            points, inside = points.take_along_dim(order.unsqueeze(2), 1), inside.gather(1, order)
        cells = side // self._stride
        return density_maps(points, inside, (cells, cells), self._stride, self._sigma)

    def inside(self, table: Tensor, side: int) -> Tensor:
        """The share of each cell that shows the photo, float32 [B, 1, s/stride, s/stride].

        A crop that is larger than its photo is padded right and below, mirrored on the left.
        """
        places = torch.arange(side // self._stride, device=table.device)
        rows, columns = (
            (table[:, size : size + 1] / self._stride - places).clamp(0, 1)
            for size in (Column.HEIGHT, Column.WIDTH)
        )
        flipped = flipped_of(table).unsqueeze(1)
        columns = torch.where(flipped, columns.flip(1), columns)
        return (rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)


_X = (Extra.PHOTO_W, Extra.LEFT, Column.WINDOW_W, Column.WIDTH)
_Y = (Extra.PHOTO_H, Extra.TOP, Column.WINDOW_H, Column.HEIGHT)


def _moved(place: Tensor, table: Tensor, columns: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Coordinates [B, P] of a photo as those of the crop, and which of them it shows."""
    extent, start, window, size = (table[:, column].unsqueeze(1) for column in columns)
    # a point on the far border belongs to the last pixel
    held = torch.minimum(place.clamp_min(0), extent - 0.01)
    moved = (held - start) * (size / window)
    return moved, (moved >= 0) & (moved < size)


def density_maps(
    points: Tensor, mask: Tensor, size: tuple[int, int], stride: int, sigma: float
) -> Tensor:
    """One Gaussian per point, cut off at the border and scaled back to mass 1.

    A Gaussian on a rectangle is the product of two one-dimensional ones, so normalising each
    (a softmax over the cells) keeps the mass of every point at exactly 1, at the borders too.

    Args:
        points: float [B, P, 2], x and y in pixels.
        mask: bool [B, P], False for padding.
        size: height and width of the map in cells.
        stride: pixels per cell.
        sigma: deviation of the Gaussian in cells.

    Returns:
        float32 [B, 1, h, w]; the sum of map b is the number of True in `mask[b]`.
    """
    cells = points.float() / stride
    weights = []
    for axis, length in ((1, size[0]), (0, size[1])):
        centres = torch.arange(length, device=points.device) + 0.5
        away = (centres - cells[..., axis : axis + 1]) / sigma
        weights.append(torch.softmax(-0.5 * away.square(), dim=-1))
    rows = weights[0] * mask.unsqueeze(-1)
    with whole_float32(points.device):
        return torch.einsum("bph,bpw->bhw", rows, weights[1]).unsqueeze(1)


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Neither TF32 nor autocast: they would cost the points' mass its last digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class MaskTargets:
    """The class of each pixel of the crops, uint8 [B, s, s]; `IGNORED` where they are padded.

    The masks of all photos lie on the device as bytes. A crop takes the pixel of the mask that is
    nearest to the centre of its own.

    Args:
        photos: with their masks.
        device: where these lie from now on.

    Raises:
        KDError: those of `mask_of`.
    """

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            masks = list(pool.map(mask_of, photos))
        sizes = np.array([mask.size for mask in masks], np.int64)
        flat = np.concatenate([mask.ravel() for mask in masks])
        self._masks = torch.from_numpy(flat).to(device)
        self._starts = torch.from_numpy(np.cumsum(sizes) - sizes).to(device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The masks of the crops in `table` [B, P]."""
        cells = torch.arange(side, device=table.device).expand(len(table), side)
        flipped = flipped_of(table).unsqueeze(1)
        rows, seen_rows = _nearest(cells, table, _Y)
        columns, seen_columns = _nearest(torch.where(flipped, side - 1 - cells, cells), table, _X)
        width = table[:, Extra.PHOTO_W].long().view(-1, 1, 1)
        first = self._starts[photos_of(table)].view(-1, 1, 1)
        places = first + rows.unsqueeze(2) * width + columns.unsqueeze(1)
        seen = seen_rows.unsqueeze(2) & seen_columns.unsqueeze(1)
        return torch.where(seen, self._masks[places], IGNORED)


def _nearest(cells: Tensor, table: Tensor, columns: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which pixels int64 [B, s] of the photos stand for those of crops, and which of them do."""
    _, start, window, size = (table[:, column].unsqueeze(1) for column in columns)
    seen = cells < size
    within = ((cells + 0.5) * (window / size)).floor()
    return (start + torch.minimum(within, window - 1)).long(), seen
