"""Base class of the losses of counting that take the points themselves."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Distill
from kdcompile.core.threads import one_thread
from kdcompile.data.photo import Photo
from kdcompile.data.point_labels import PointLabels, Points, as_maps, read
from kdcompile.data.targets import Targets
from kdcompile.distill.density_objective import DensityObjective
from kdcompile.distill.objective_base import ByReduction
from kdcompile.kernels._runtime import full_precision

PLACED = 3  # axes of `PointLabels`


class PointObjective(DensityObjective):
    """A label loss `hard` of densities [N, 1, h, w] and points, and the soft term of densities.

    Under "mean" the loss of a crop is divided by the mean count of a crop, under "paper" by
    nothing; either way it is the mean over crops.
    """

    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "soft": 4.0},
        "paper": {"hard": 1.0, "soft": 1.0},
    }

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Points."""
        return PointLabels(photos, stride, sigma, device)

    def __init__(self, options: Distill, targets: Tensor) -> None:
        """Scale by points, or by maps of them; the mean count of a crop is at least tiny."""
        maps = as_maps(targets) if targets.dim() == PLACED else targets
        super().__init__(options, maps)
        self.crowd = max(float(maps.sum()) / len(maps), 1e-6)

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard` and `soft`."""
        with full_precision(student):
            own = student.to(torch.promote_types(student.dtype, torch.float32))
            scale = self.crowd if self.options.reduction == "mean" else 1.0
            with one_thread(own.device):
                terms = {"hard": self.losses(own[:, 0], read(target)).mean() / scale}
        return terms if teacher is None else terms | {"soft": self.soft(student, teacher)}

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The squared error of the densities, as beside their maps."""
        return super().terms(student, teacher, None)["hard"]

    @abstractmethod
    def losses(self, density: Tensor, points: Points) -> Tensor:
        """The label loss of each crop.

        Args:
            density: count of each cell [N, h, w], at least float32, with a gradient.
            points: of the crops.

        Returns:
            [N], in counts.
        """
