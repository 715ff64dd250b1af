"""Boxes from a map of centres, and the mean average precision at an IoU of 0.5.

The scoring is COCO's: matches in the order of the scores over all photos, each with the free true
box of its class that it overlaps most, precision made monotone and read at 101 recalls.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

LOWEST = 0.05  # score of a box that is kept
OVERLAP = 0.55  # IoU with a better box of its class above which a box goes
MOST = 100  # boxes of a photo
MATCHED = 0.5  # IoU from which a box is right
RECALLS = np.linspace(0.0, 1.0, 101)

Boxes = NDArray[np.float32]


def decode(output: Tensor, stride: int) -> Boxes:
    """The boxes of one photo, float32 [B, 6]: x0, y0, x1, y1, class and score, best first.

    Args:
        output: [C + 4, h, w], class logits and raw distances left, top, right and bottom.
        stride: pixels a cell.
    """
    scores, raw = output[:-4].sigmoid(), output[-4:]
    highest = functional.max_pool2d(scores[None], 3, stride=1, padding=1)[0]
    kind, row, column = torch.nonzero((scores == highest) & (scores > LOWEST)).unbind(1)
    score = scores[kind, row, column]
    distance = stride * raw[:, row, column].exp()
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    high, wide = scores.shape[1] * stride, scores.shape[2] * stride
    corners = (
        (x - distance[0]).clamp(0, wide), (y - distance[1]).clamp(0, high),
        (x + distance[2]).clamp(0, wide), (y + distance[3]).clamp(0, high),
    )  # fmt: skip
    found = torch.stack((*corners, kind.to(score.dtype), score), 1)
    order = score.argsort(descending=True, stable=True)[:MOST]
    return _suppressed(found[order].float().cpu().numpy())


def _suppressed(boxes: Boxes) -> Boxes:
    """Greedy non-maximum suppression in each class."""
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for index in range(len(boxes)):
        same = [k for k in kept if boxes[k, 4] == boxes[index, 4]]
        if not same or overlap[index, same].max() <= OVERLAP:
            kept.append(index)
    return boxes[kept]


def iou(one: Boxes, other: Boxes) -> NDArray[np.float32]:
    """Intersection over union of each pair, [len(one), len(other)]; columns 0 to 3 are corners."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:4], other[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float32)


def average_precisions(
    found: Sequence[Boxes], truth: Sequence[Boxes], classes: int, matched: float = MATCHED
) -> list[float]:
    """The average precision of each class; nan where no photo has a box of it.

    Args:
        found: of each photo [B, 6], as `decode` gives them.
        truth: of each photo [T, 5]: corners and class.
        classes: how many there are.
        matched: IoU from which a box is right.
    """
    return [_average_precision(found, truth, kind, matched) for kind in range(classes)]


def _average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], kind: int, matched: float
) -> float:
    scores: list[float] = []
    right: list[bool] = []
    total = 0
    for boxes, true in zip(found, truth, strict=True):
        boxes, true = boxes[boxes[:, 4] == kind], true[true[:, 4] == kind]
        boxes = boxes[np.argsort(-boxes[:, 5], kind="stable")]
        overlap, free = iou(boxes, true), np.ones(len(true), bool)
        total += len(true)
        for index in range(len(boxes)):
            rated = np.where(free, overlap[index], -1.0)
            best = int(rated.argmax()) if len(true) else -1
            hit = best >= 0 and rated[best] >= matched
            if hit:
                free[best] = False
            scores.append(float(boxes[index, 5]))
            right.append(bool(hit))
    if total == 0:
        return float("nan")
    hits = np.cumsum(np.array(right, float)[np.argsort(-np.array(scores), kind="stable")])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())
