"""Imitation of heads of boxes and scores, rows [N, A, 4 + C] of `models.joined`, without labels.

A row of the student is held against the same row of the teacher: an anchor, a place or a query.
What the teacher is sure of counts, and what the student wrongly is; rows that both take for
background do not, though they are nearly all.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kdcompile.config.detection import Head
from kdcompile.distill.centre_loss import imitation, weighed


def pair_imitation(student: Tensor, teacher: Tensor, head: Head, of_anchors: bool) -> Tensor:
    """Divergence of the scores, and the distance of boxes weighed by the teacher's squared score.

    Of logits under a sigmoid the quality focal loss; of a softmax KL(T || S) of each row, by the
    teacher's best score of an object plus the largest difference; of probabilities squared errors.

    Args:
        student: rows [N, A, 4 + C].
        teacher: the same.
        head: what the rows mean.
        of_anchors: boxes are offsets of anchors.
    """
    own, wanted = student[..., 4:], teacher[..., 4:]
    if head.scores == "softmax":
        p, q = own.softmax(-1), wanted.softmax(-1)
        sure = _objects(q, head).amax(-1)
        each = functional.kl_div(own.log_softmax(-1), q, reduction="none").sum(-1)
        off = (p - q).abs().amax(-1).detach()
        scores = (each * (sure + off)).sum() / sure.sum().clamp_min(1)
    elif head.scores == "sigmoid":
        own, wanted = _objects(own, head), _objects(wanted, head)
        sure = wanted.sigmoid().amax(-1)
        scores = imitation(own, wanted)
    else:
        own, wanted = _objects(own, head), _objects(wanted, head)
        sure = wanted.amax(-1)
        scores = (own - wanted).square().sum() / sure.sum().clamp_min(1)
    away = ((student[..., :4] - teacher[..., :4]) / _unit(teacher, head, of_anchors)).abs()
    return scores + weighed(away.mean(-1), sure.square())


def _objects(scores: Tensor, head: Head) -> Tensor:
    """Without the class that means nothing."""
    first = int(head.background == "first")
    return scores[..., first : scores.shape[-1] - int(head.background == "last")]


def _unit(teacher: Tensor, head: Head, of_anchors: bool) -> Tensor:
    """What a difference of boxes is measured in: the box's own size, and offsets' own unit."""
    boxes = teacher[..., :4]
    if of_anchors:
        centre, size = head.variances
        return boxes.new_tensor([1 / centre, 1 / centre, 1 / size, 1 / size])
    size_of = boxes[..., 2:] if head.boxes == "centre" else boxes[..., 2:] - boxes[..., :2]
    least = 1.0 if head.unit == "pixels" else 1e-3
    return torch.cat([size_of, size_of], -1).clamp_min(least)
