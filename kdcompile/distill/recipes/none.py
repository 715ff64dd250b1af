"""Recipe `none`: the labels alone, the baseline of every other."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from kdcompile.distill.counting import block_loss, density_loss
from kdcompile.distill.recipe import About, LossInputs, Recipe


class Labels(Recipe):
    """Squared error of the density and absolute error of block counts."""

    about = About(
        name="none",
        summary="train on the labels only; the baseline",
        formula="hard * |S - Y|^2 + count * |block counts of S - Y|",
        source="density regression as in CSRNet (Li et al., CVPR 2018)",
        cost="student forward and backward",
        evidence="the reference of benchmarks/digits.py",
    )
    default_weights: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "mean": {"hard": 1.0, "count": 1.0},
        "paper": {"hard": 1.0, "count": 0.0},
    }
    needs_teacher = False

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`hard` and `count`."""
        squared, block = self.scales
        return {
            "hard": density_loss(inputs.student, inputs.target, self.reduction, squared),
            "count": block_loss(inputs.student, inputs.target, block),
        }
