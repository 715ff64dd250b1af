"""Losses of centre maps [N, C + 4, h, w]: class logits, and logarithms of distances in cells.

Targets as in CenterNet (Zhou et al., 2019) and TTFNet (Liu et al., 2020): around the centre of a
box a Gaussian as wide as the box, whose cells learn its sides by how near they are.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kdcompile.data.box_targets import ASIDE, OBJECT

REACH = 0.54  # share of a box that its Gaussian covers, whose deviation is a sixth of that
FARTHEST = 8.0  # of a distance's logarithm: as `tasks.detection.decoders`


def heat_maps(
    boxes: Tensor, classes: int, size: tuple[int, int], step: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the maps should say of some boxes.

    Args:
        boxes: float32 [B, P, 6] of `BoxTargets`.
        classes: channels of the class maps.
        size: height and width in cells.
        step: pixels of a cell, vertically and horizontally.

    Returns:
        heat: [B, C, h, w], 1 at a centre and less around it; sides: [B, 4, h, w], x0 y0 x1 y1 in
        pixels of the box that is nearest; weight: [B, h, w] of these; judged: [B, h, w], 0 where
        nothing is known.
    """
    x0, y0, x1, y1, kind, state = boxes.unbind(2)
    is_object = (state == OBJECT).to(boxes.dtype)
    rows = _gaussians((y0 + y1) / 2, y1 - y0, size[0], step[0])
    columns = _gaussians((x0 + x1) / 2, x1 - x0, size[1], step[1])
    rows = rows * is_object.unsqueeze(2)
    near = rows.unsqueeze(3) * columns.unsqueeze(2)
    index = kind.long().clamp(0, classes - 1)[:, :, None, None].expand_as(near)
    heat = near.new_zeros(len(boxes), classes, *size).scatter_reduce(1, index, near, "amax")
    # of two boxes that are equally near the smaller
    area = ((x1 - x0) * (y1 - y0)).clamp_min(1e-6)
    order = near * (1 + 1e-3 / (1 + area))[:, :, None, None]
    chosen = order.argmax(1)
    weight = near.gather(1, chosen.unsqueeze(1)).squeeze(1)
    places = chosen.flatten(1).unsqueeze(2).expand(-1, -1, 4)
    sides = boxes[:, :, :4].gather(1, places).transpose(1, 2).unflatten(2, size)
    aside = (state == ASIDE).to(boxes.dtype)
    covered = _covered(y0, y1, size[0], step[0]) * aside.unsqueeze(2)
    covered = torch.einsum("bph,bpw->bhw", covered, _covered(x0, x1, size[1], step[1]))
    judged = ((covered == 0) | (weight > 0)).to(boxes.dtype)
    return heat, sides, weight, judged


def _gaussians(centre: Tensor, extent: Tensor, cells: int, step: float) -> Tensor:
    """Along one side [B, P, cells]: 1 at the cell of the centre, 0 beyond `REACH` of the box."""
    place = (centre / step).floor().clamp(0, cells - 1).unsqueeze(2)
    radius = (extent / step / 2 * REACH).floor().clamp_min(0).unsqueeze(2)
    away = (torch.arange(cells, device=centre.device) - place).abs()
    deviation = (2 * radius + 1) / 6
    return torch.exp(-0.5 * (away / deviation).square()) * (away <= radius)


def _covered(low: Tensor, high: Tensor, cells: int, step: float) -> Tensor:
    """Which cells [B, P, cells] have their centre between two ends."""
    centres = (torch.arange(cells, device=low.device) + 0.5) * step
    inside = (centres >= low.unsqueeze(2)) & (centres <= high.unsqueeze(2))
    return inside.to(low.dtype)


def corners(raw: Tensor, step: tuple[float, float]) -> Tensor:
    """x0 y0 x1 y1 [N, 4, h, w] in pixels, of logarithms of distances."""
    left, top, right, bottom = raw.clamp(-FARTHEST, FARTHEST).exp().unbind(1)
    height, width = raw.shape[2:]
    y = ((torch.arange(height, device=raw.device) + 0.5) * step[0])[:, None]
    x = ((torch.arange(width, device=raw.device) + 0.5) * step[1])[None, :]
    return torch.stack(
        [x - left * step[1], y - top * step[0], x + right * step[1], y + bottom * step[0]], 1
    )


def unlikeness(first: Tensor, second: Tensor) -> Tensor:
    """1 - GIoU of boxes [N, 4, h, w], float [N, h, w] of 0 to 2 (Rezatofighi et al., 2019)."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp_min(0).prod(1)
    union = _areas(first) + _areas(second) - common
    outer = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    hull = outer.clamp_min(0).prod(1).clamp_min(1e-6)
    return 1 - common / union.clamp_min(1e-6) + (hull - union) / hull


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def focal(logits: Tensor, heat: Tensor, judged: Tensor) -> Tensor:
    """CenterNet's focal loss, summed and divided by the centres."""
    p = logits.sigmoid()
    is_centre = heat >= 1
    hit = (1 - p).square() * functional.logsigmoid(logits)
    miss = (1 - heat).pow(4) * p.square() * functional.logsigmoid(-logits)
    each = torch.where(is_centre, hit, miss) * judged.unsqueeze(1)
    return -each.sum() / is_centre.sum().clamp_min(1)


def imitation(student: Tensor, teacher: Tensor) -> Tensor:
    """Quality focal loss against the teacher's probabilities (Li et al., 2020).

    0 where both agree; summed, and divided by the teacher's probabilities.
    """
    p, q = student.sigmoid(), teacher.sigmoid()
    gap = functional.binary_cross_entropy_with_logits(student, q, reduction="none")
    return (gap * (p - q).square()).sum() / q.sum().clamp_min(1)


def weighed(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values [N, h, w] by weight; 0 where nothing weighs."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)
