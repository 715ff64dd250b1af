"""Recipe `fsp`: the flow of the solution procedure (Yim et al., CVPR 2017)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import AdaptedRecipe
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.distill.taps import Tap
from kdcompile.kernels._runtime import full_precision


class Flow(AdaptedRecipe):
    """Labels, soft targets, and the products of each tap's channels with the next one's."""

    about = About(
        name="fsp",
        summary="labels, soft targets, and how one tap's channels go with the next one's",
        formula="kd + fsp * mean_t (|G_t(S) - G_t(T)|^2 / mean |G_t(T)|^2),"
        " G_t = F_t F_t+1' / pixels at the smaller of both sizes;"
        " paper: sum_t |G_t(S) - G_t(T)|^2",
        source="Yim et al., A Gift from Knowledge Distillation, CVPR 2017; there both networks"
        " have the same widths, here 1x1 convolutions bring the student's maps to the teacher's",
        cost="kd + the adapters, pooling, and C x C products at each pair of taps",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"fsp": 3.0}, "paper": {"fsp": 1.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """As `AdaptedRecipe`; a part for each pair of consecutive taps.

        Raises:
            KDError: `recipe-taps`, there is no second tap.
        """
        super().__init__(taps, options, objective)
        if len(taps) < 2:
            raise KDError(
                "recipe-taps",
                f"recipe fsp compares a tap with the next one, and there is {len(taps) or 'none'}",
                where="[distill] taps",
                fix='name two pairs or more: taps = [["teacher.module", "student.module"], ...],'
                " or use recipe fitnet",
            )
        self.scale = torch.ones(len(taps) - 1)

    def sizes(self, inputs: LossInputs) -> list[Tensor]:
        """The mean squared norm of each of the teacher's flows."""
        flows = [flow(*pair) for pair in pairwise(inputs.teacher_features)]
        return [each.square().sum((1, 2)).mean() for each in flows]

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`fsp`: squared Frobenius norms, averaged over the batch."""
        students, teachers = zip(*self.adapted(inputs), strict=True)
        flows = zip(pairwise(students), pairwise(teachers), strict=True)
        gaps = [flow(*own) - flow(*theirs) for own, theirs in flows]
        return {"fsp": self.scaled([gap.square().sum((1, 2)).mean() for gap in gaps])}


def flow(first: Tensor, second: Tensor) -> Tensor:
    """[N, C_1, C_2] of maps of one network, at least float32: channel products over the pixels."""
    size = [min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True)]
    with full_precision(first):
        a, b = (_pooled(promoted(maps), size).flatten(2) for maps in (first, second))
        product: Tensor = torch.matmul(a, b.mT) / a.shape[2]
        return product


def _pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    if list(maps.shape[2:]) == list(size):
        return maps
    pooled: Tensor = functional.adaptive_max_pool2d(maps, list(size))
    return pooled
