"""Embeddings of images, and the base of the recipes that compare images with each other.

An embedding is one vector an image, or one a cell, of the last taps.
"""

import torch
from torch import Tensor

from kdcompile.config.distill import Weights
from kdcompile.distill.objective import AnyObjective
from kdcompile.distill.recipe import LossInputs, Recipe

TINY = 1e-24  # a squared length no larger than this counts as zero
DENSE = 0.1  # of a weight where cells are predicted: benchmarks/recipes.py, counting


def promoted(x: Tensor) -> Tensor:
    """At least float32: float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


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


class RelationRecipe(Recipe):
    """A recipe whose own terms weigh a tenth where the task is dense.

    Two images of crowds are hardly a pair, and a count hangs on where things are, of which the
    relations of pooled maps know nothing. `extra_weights` are those of the other tasks.
    """

    needs_taps = True

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """Under "paper" as published, whatever the task."""
        found = super().defaults(objective, reduction)
        if objective.is_dense and reduction == "mean":
            own = cls.extra_weights["mean"]
            found |= {name: DENSE * w for name, w in own.items() if isinstance(w, int | float)}
        return found
