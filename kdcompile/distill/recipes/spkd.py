"""Recipe `spkd`: Similarity-Preserving Knowledge Distillation (Tung & Mori, ICCV 2019)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.embedding import RelationRecipe, in_one_type
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels.batch_relation import batch_relation


class SimilarityTransfer(RelationRecipe):
    """Which images look alike to the last maps, cell by cell: Grams of the batch, row by row."""

    about = About(
        name="spkd",
        summary="which images of a batch are similar, by whole maps",
        formula="kd + spkd * mean_i |g_i(T) - g_i(S)|^2, g_i = row i of the Gram of flattened maps"
        " over its length; the paper's weight is of the sum over i and j by B^2",
        source="Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019,"
        " arXiv 1907.09682; weight 3000",
        cost="kd + a B x B Gram of the last maps",
        evidence="tests/distill/recipes/test_spkd.py: float64 and the paper's formula;"
        " docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"spkd": 25.0}, "paper": {"spkd": 3000.0}}
    needs = ("pairs",)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`spkd`: over the images of a step in this process."""
        student, teacher = in_one_type(inputs.student_features[-1], inputs.teacher_features[-1])
        loss = batch_relation(student, teacher, "spkd")
        return {"spkd": loss * len(student) if self.options.reduction == "mean" else loss}
