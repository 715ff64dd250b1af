"""Recipe `none`: the labels alone, the baseline of every other."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels.density_loss import density_loss


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
        """`hard` and `count`; and `soft` where the recipe has the teacher run.

        Under "mean" the squared errors are divided by the labels' mean square, which makes them
        dimensionless; counts always by the labels' mean count.
        """
        squared, block = self.scales
        scale = squared if self.reduction == "mean" else 1.0
        maps = (inputs.student, inputs.target, inputs.teacher)
        hard, soft, count = density_loss(*maps, reduction=self.reduction)
        terms = {"hard": hard / scale, "count": count / block}
        return terms | {"soft": soft / scale} if self.needs_teacher else terms
