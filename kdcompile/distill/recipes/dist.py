"""Recipe `dist`: correlations of class probabilities (Huang et al., 2022, arXiv 2205.10536)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels._runtime import full_precision

FLAT = 1e-4  # a deviation that small, beside equal probabilities, is none


class StrongerTeacher(Recipe):
    """The correlation with the teacher's probabilities, within images and within classes.

    A row or column in which the teacher does not vary has nothing to give and loss 0, so that a
    batch of one image has no `intra_class`. One in which only the student is flat has loss 1 and a
    bounded gradient. Under several processes the columns are those of a process.
    """

    about = About(
        name="dist",
        summary="correlation with the teacher's probabilities over classes and over the batch",
        formula="none + inter_class mean_images (1 - r(p_S, p_T over classes))"
        " + intra_class mean_classes (1 - r(p_S, p_T over the batch)), r Pearson's correlation,"
        ' p at the temperature; reduction "paper" multiplies both by temperature^2. Published at'
        " temperature 4 with 1 CE + 2 inter + 2 intra, which is the ratio here",
        source="Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,"
        " 2205.10536",
        cost="as kd",
    )
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"inter_class": 1.0, "intra_class": 1.0},
        "paper": {"inter_class": 0.2, "intra_class": 0.2},
    }
    replaces_soft = True
    tasks = ("classification",)
    why = "its loss correlates the probabilities of classes"

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`inter_class` and `intra_class`."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        # correlations do not shrink with the temperature as the KL does: T^2 is a weight only
        factor = self.options.temperature**2 if self.options.reduction == "paper" else 1.0
        with full_precision(inputs.student):
            student, teacher = (
                (promoted(logits) / self.options.temperature).softmax(1)
                for logits in (inputs.student, inputs.teacher)
            )
            return {
                "inter_class": factor * _uncorrelated(student, teacher, 1),
                "intra_class": factor * _uncorrelated(student, teacher, 0),
            }


def _uncorrelated(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Mean of 1 - r over the other dimension of probabilities [B, K]."""
    floor = FLAT * math.sqrt(student.shape[dim]) / student.shape[1]
    s, t = (p - p.mean(dim, keepdim=True) for p in (student, teacher))
    squares = [p.square().sum(dim) for p in (s, t)]
    lengths = [square.clamp_min(floor**2).sqrt() for square in squares]
    apart = 1 - (s * t).sum(dim) / (lengths[0] * lengths[1])
    return torch.where(squares[1] > floor**2, apart, 0).mean()
