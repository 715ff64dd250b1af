"""Embeddings of images for the recipes that compare them: one vector an image, or one a cell."""

import torch
from torch import Tensor

from kdcompile.distill.amp import promoted
from kdcompile.distill.recipe import LossInputs

TINY = 1e-24  # a squared length no larger than this counts as zero


def embedding(maps: Tensor) -> Tensor:
    """One vector an image [N, d], at least float32: the mean over the cells.

    Args:
        maps: [N, C, H, W], tokens [N, T, C], or vectors [N, C].
    """
    maps = promoted(maps)
    if maps.dim() == 3:
        return maps.mean(1)
    return maps if maps.dim() == 2 else maps.flatten(2).mean(2)


def tokens(maps: Tensor) -> Tensor:
    """The cells of an image as tokens [N, T, C], in the maps' type; a view where it can be.

    Args:
        maps: [N, C, H, W], tokens [N, T, C], or vectors [N, C], which are one token each.
    """
    if maps.dim() == 3:
        return maps
    return maps[:, None] if maps.dim() == 2 else maps.flatten(2).mT


def embeddings(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Of student [N, d_S] and teacher [N, d_T], from their last taps; widths may differ."""
    return embedding(inputs.student_features[-1]), embedding(inputs.teacher_features[-1])


def in_one_type(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in a type that holds either: a student's map is float32 after some norms."""
    kind = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(kind), teacher.to(kind)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] of length 1; one of no length stays zero, without a gradient."""
    square = vectors.square().sum(-1, keepdim=True)
    seen = square > TINY
    return vectors * square.masked_fill(~seen, 1).rsqrt().masked_fill(~seen, 0)
