"""Points as the labels of crops, for losses that compare a map with positions, not with a map."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdcompile.data.targets import DensityTargets, Extra, density_maps
from kdcompile.kernels.crop_augment import Column


class Points(NamedTuple):
    """What `PointLabels` says of crops, lengths in cells of the map.

    places: x and y, float [B, P, 2]. shown: bool [B, P], False for padding and for points that the
    crop does not show. reach: the shorter side of each crop's photo, float [B]. sigma: of a
    point's Gaussian, float [B]. side: of the map, float [B].
    """

    places: Tensor
    shown: Tensor
    reach: Tensor
    sigma: Tensor
    side: Tensor


class PointLabels(DensityTargets):
    """The points of each crop and what their losses ask beside them, float32 [B, P, 6].

    One tensor, for what follows it (batches, checkpoints, replays) knows of one.
    """

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The points of the crops in `table` [B, P]; `read` says which is which."""
        points = self._points(table, side)
        zoom = table[:, Column.HEIGHT] / table[:, Column.WINDOW_H]
        shorter = table[:, Extra.PHOTO_H : Extra.PHOTO_W + 1].amin(1) * zoom / self._stride
        cells = torch.full_like(shorter, side // self._stride)
        crops = torch.stack([shorter, torch.full_like(shorter, self._sigma), cells], 1)
        own = crops.unsqueeze(1).expand(-1, points.shape[1], -1)
        return torch.cat([points[..., :2] / self._stride, points[..., 2:], own], 2)


def read(labels: Tensor) -> Points:
    """The parts of labels [B, P, 6]."""
    crops = labels[:, 0]
    return Points(labels[..., :2], labels[..., 2] > 0, crops[:, 3], crops[:, 4], crops[:, 5])


def as_maps(labels: Tensor) -> Tensor:
    """The density maps float32 [B, 1, h, w] that `DensityTargets` makes; waits for the device."""
    points = read(labels)
    side = int(points.side[0])
    return density_maps(points.places, points.shown, (side, side), 1, float(points.sigma[0]))
