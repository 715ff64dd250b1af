"""Recipe `logit-std`: logit standardization (Sun et al., CVPR 2024, arXiv 2403.01427)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels.kd_kl import kd_kl


class LogitStandardization(Recipe):
    """Soft targets from logits of deviation 1, so that their scale is not to be learned.

    The factor T^2 cancels the temperature: for small logits / T the term is 1 - r, with r the
    correlation of the two rows of logits.
    """

    about = About(
        name="logit-std",
        summary="soft targets of standardized logits: their order and ratios, not their scale",
        formula="none + logitstd * T^2 KL(softmax(z(T)/temperature), softmax(z(S)/temperature)),"
        " z(row) = (row - mean) / unbiased deviation; a constant row is 0. Published with hard"
        " 0.1, logitstd 9 and temperature 2; the temperature here is the spec's",
        source="Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, 2403.01427",
        cost="as kd",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"logitstd": 9.0}, "paper": {"logitstd": 9.0}}
    replaces_soft = True
    tasks = ("classification",)
    why = "its loss standardizes the logits of classes"

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`logitstd`."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        temperature = self.options.temperature
        return {"logitstd": kd_kl(inputs.student, inputs.teacher, temperature, standardize=True)}
