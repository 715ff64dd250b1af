"""Counting by density maps: the losses against a label's map and against the teacher's."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Distill
from kdcompile.data.photo import Photo
from kdcompile.data.targets import DensityTargets, Targets
from kdcompile.distill.objective_base import ByReduction, Objective
from kdcompile.kernels.density_loss import density_loss

BLOCK = 8  # cells a side of a block whose count is compared


class DensityObjective(Objective):
    """Squared error of densities [N, 1, h, w] and absolute error of block counts.

    Under "mean" the squared errors are divided by the labels' mean square, which makes them
    dimensionless; counts always by the labels' mean count of a block.
    """

    kind, is_dense = "counting", True
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "count": 1.0, "soft": 4.0},
        "paper": {"hard": 1.0, "count": 0.0, "soft": 1.0},
    }
    formula = "hard |S - Y|^2 + count |block counts of S - Y| + soft |S - T|^2"

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Density maps."""
        return DensityTargets(photos, stride, sigma, device)

    def __init__(self, options: Distill, targets: Tensor) -> None:
        """Mean square and mean block count of some label maps, at least tiny."""
        super().__init__(options, targets)
        self.squared = max(float(targets.square().mean()), 1e-8)
        self.block = max(float(targets.mean()) * BLOCK**2, 1e-6)

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard`, `count` and `soft` in one pass over the maps."""
        reduction = self.options.reduction
        scale = self.squared if reduction == "mean" else 1.0
        hard, soft, count = density_loss(student, target, teacher, reduction=reduction)
        terms = {"hard": hard / scale, "count": count / self.block}
        return terms if teacher is None else terms | {"soft": soft / scale}

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The label loss with the teacher's map for the label's."""
        return self.terms(student, teacher, None)["hard"]
