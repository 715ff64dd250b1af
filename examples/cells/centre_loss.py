"""What a map of centres should be, and how far an output is from it.

A Gaussian around each box's centre, as wide as 0.54 of the box at 3 deviations, is the target of
the class (focal loss, Zhou et al. 2019) and weighs the boxes around it (GIoU, Rezatofighi et al.
2019), as in Liu et al., AAAI 2020 (TTFNet).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SPREAD = 0.54 / 6  # deviations of the Gaussian, of a box's sides
NEAR = 0.3  # of the Gaussian, from which a cell learns the box
BOX_WEIGHT = 5.0  # of the GIoU loss, beside 1 of the focal loss


@dataclass(frozen=True)
class Target:
    """Of N crops: heat [N, C, h, w], asked [N, 1, h, w], box [N, 4, h, w], weight [N, h, w].

    asked: 0 where a cell's class is not judged. box: distances left, top, right and bottom in
    pixels. weight: of a cell's box; the weights of one box add up to 1.
    """

    heat: Tensor
    asked: Tensor
    box: Tensor
    weight: Tensor
    count: int


def target_of(
    boxes: Sequence[NDArray[np.float32]],
    unasked: Sequence[NDArray[np.float32]],
    classes: int,
    side: int,
    stride: int,
) -> Target:
    """The target for square crops.

    Args:
        boxes: of each crop [B, 5]: corners in pixels and class.
        unasked: of each crop, boxes of which too little is seen.
        classes: channels of the heat map.
        side: of a crop, in pixels.
        stride: pixels a cell.
    """
    cells = side // stride
    centre = (np.arange(cells, dtype=np.float32) + 0.5) * stride
    heat = np.zeros((len(boxes), classes, cells, cells), np.float32)
    asked = np.ones((len(boxes), 1, cells, cells), np.float32)
    box = np.ones((len(boxes), 4, cells, cells), np.float32)
    weight = np.zeros((len(boxes), cells, cells), np.float32)
    for n, (some, hidden) in enumerate(zip(boxes, unasked, strict=True)):
        for x0, y0, x1, y1, _ in hidden:
            across, down = (centre >= x0) & (centre <= x1), (centre >= y0) & (centre <= y1)
            asked[n, 0][np.outer(down, across)] = 0
        nearest = np.full((cells, cells), NEAR, np.float32)
        owner = np.full((cells, cells), -1)
        for index, (x0, y0, x1, y1, kind) in enumerate(some):
            bell = np.outer(_bell(centre, y0, y1, stride), _bell(centre, x0, x1, stride))
            heat[n, int(kind)] = np.maximum(heat[n, int(kind)], bell)
            asked[n, 0][bell >= NEAR] = 1
            closer = bell >= nearest
            nearest, owner = np.where(closer, bell, nearest), np.where(closer, index, owner)
        for index, (x0, y0, x1, y1, _) in enumerate(some):
            rows, columns = np.nonzero(owner == index)
            x, y = centre[columns], centre[rows]
            box[n, :, rows, columns] = np.stack((x - x0, y - y0, x1 - x, y1 - y), 1)
            weight[n, rows, columns] = nearest[rows, columns] / nearest[rows, columns].sum()
    shown, judged, sides, shares = map(torch.from_numpy, (heat, asked, box, weight))
    return Target(shown, judged, sides, shares, count=sum(map(len, boxes)))


def _bell(centre: NDArray[np.float32], low: float, high: float, stride: int) -> NDArray[np.float32]:
    """A Gaussian along one side; 1 in the cell that holds the box's centre."""
    cell = min(int((low + high) / 2 / stride), len(centre) - 1)
    deviation = max(SPREAD * (high - low), 0.25 * stride)
    return np.asarray(np.exp(-((centre - centre[cell]) ** 2) / (2 * deviation**2)), np.float32)


def loss_of(output: Tensor, target: Target, stride: int) -> Tensor:
    """Focal and GIoU loss, both by the number of boxes.

    Args:
        output: float32 [N, C + 4, h, w].
        target: of the same crops.
        stride: pixels a cell.
    """
    count = max(target.count, 1)
    focal = _focal(output[:, :-4], target.heat) * target.asked
    distance = stride * output[:, -4:].clamp(max=6.0).exp()
    giou = (1 - _giou(distance, target.box)) * target.weight
    return (focal.sum() + BOX_WEIGHT * giou.sum()) / count


def _focal(logits: Tensor, heat: Tensor) -> Tensor:
    found = logits.sigmoid()
    hit = -functional.logsigmoid(logits) * (1 - found) ** 2
    miss = -functional.logsigmoid(-logits) * found**2 * (1 - heat) ** 4
    return torch.where(heat > 1 - 1e-4, hit, miss)


def _giou(one: Tensor, other: Tensor) -> Tensor:
    """Of boxes around one point, given by their distances [N, 4, h, w]; centres lie in both."""
    shared = torch.minimum(one, other)
    hull = torch.maximum(one, other)
    inner = (shared[:, 0] + shared[:, 2]).clamp(min=0) * (shared[:, 1] + shared[:, 3]).clamp(min=0)
    outer = (hull[:, 0] + hull[:, 2]) * (hull[:, 1] + hull[:, 3])
    areas = [(b[:, 0] + b[:, 2]).clamp(min=0) * (b[:, 1] + b[:, 3]).clamp(min=0)
             for b in (one, other)]  # fmt: skip
    union = areas[0] + areas[1] - inner
    return inner / union.clamp(min=1e-6) - (outer - union) / outer.clamp(min=1e-6)
