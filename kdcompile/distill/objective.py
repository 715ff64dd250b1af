"""Objectives: the label terms of a task and its soft term, which every recipe starts from.

An objective knows the losses of one task; recipes weigh its terms and add their own.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.config.spec import Scores
from kdcompile.data.masks import IGNORED
from kdcompile.data.photo import Photo
from kdcompile.data.rows import AnswerTargets
from kdcompile.data.targets import DensityTargets, LabelTargets, MaskTargets, Targets
from kdcompile.distill.box_objective import BoxObjective
from kdcompile.distill.objective_base import AnyObjective, ByReduction, Objective
from kdcompile.distill.softened import softened_kl
from kdcompile.kernels.density_loss import density_loss
from kdcompile.kernels.kd_kl import kd_kl
from kdcompile.tasks.task import Task

__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "ByReduction",
    "Objective",
    "make_objective",
    "objective_of",
]
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


class ClassObjective(Objective):
    """Cross-entropy of logits [N, K] with class indices, and Hinton's softened KL with its T^2."""

    kind, of_classes = "classification", True
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 0.1, "soft": 0.9},
        "paper": {"hard": 0.1, "soft": 0.9},
    }
    formula = "hard CE(S, Y) + soft T^2 KL(softmax(T/temperature), softmax(S/temperature))"

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Class indices."""
        return LabelTargets(photos, device, integer=True)

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard` and `soft`."""
        terms = {"hard": functional.cross_entropy(student.float(), target)}
        if teacher is not None:
            terms["soft"] = self.soft(student, teacher)
        return terms

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Softened KL."""
        return kd_kl(student, teacher, self.options.temperature)


class ValueObjective(Objective):
    """L1 or L2 error of values [N, 1], in units of the labels' deviation."""

    kind = "regression"
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "soft": 1.0},
        "paper": {"hard": 1.0, "soft": 1.0},
    }
    formula = "hard |S - Y|^p + soft |S - T|^p, p of distill.hard, in deviations of the labels"

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Values."""
        return LabelTargets(photos, device, integer=False)

    def __init__(self, options: Distill, targets: Tensor) -> None:
        """The deviation of some labels; 1 where they do not vary."""
        super().__init__(options, targets)
        spread = float(targets.float().std(correction=0))
        self.scale = spread if spread > 0 else 1.0

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard` and `soft`."""
        terms = {"hard": self._error(student, target)}
        return terms if teacher is None else terms | {"soft": self._error(student, teacher)}

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The label loss with the teacher's values for the labels."""
        return self._error(student, teacher)

    def _error(self, student: Tensor, other: Tensor) -> Tensor:
        gap = (student.float() - other.float()) / self.scale
        return gap.abs().mean() if self.options.hard == "l1" else gap.square().mean()


class MaskObjective(Objective):
    """Cross-entropy of each pixel, and softened KL of each cell of the map [N, K, h, w].

    The student's logits are scaled to the mask bilinearly, as they are where it is judged. Pixels
    that the mask says nothing of take no part, nor cells whose centre lies in one.
    """

    kind, is_dense = "segmentation", True
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "soft": 1.0},
        "paper": {"hard": 1.0, "soft": 1.0},
    }
    formula = (
        "hard: mean over pixels of CE(S, Y), S scaled to the mask + soft: mean over cells of"
        " T^2 KL(softmax(T/temperature), softmax(S/temperature))"
    )

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Indices of classes, uint8."""
        return MaskTargets(photos, device)

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard` and `soft`; 0 where no pixel takes part."""
        size = target.shape[1:]
        logits = student.float()
        if logits.shape[2:] != size:
            logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        known = (target != IGNORED).sum().clamp_min(1)
        losses = functional.cross_entropy(
            logits, target.long(), ignore_index=IGNORED, reduction="sum"
        )
        terms = {"hard": losses / known}
        if teacher is not None:
            steps = [whole // part for whole, part in zip(size, student.shape[2:], strict=True)]
            cells = target[:, steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]] != IGNORED
            share = cells.float().mean().clamp_min(1e-6)
            weight = cells.float().flatten() / share
            terms["soft"] = kd_kl(student, teacher, self.options.temperature, weight=weight)
        return terms

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Softened KL of every cell: without a mask nothing says which ones to leave out."""
        return kd_kl(student, teacher, self.options.temperature)


class AnswerObjective(Objective):
    """Each output of rows [N, width]: its squared error in units of its own scale, or softened KL.

    KL where the task names the axis of an output along which its values are scores of classes. The
    labels are the teacher's outputs, recorded once: there is nothing else to be soft about.
    """

    kind = "generic"
    weights: ClassVar[ByReduction] = {"mean": {"hard": 1.0}, "paper": {"hard": 1.0}}
    formula = (
        "hard: mean over the outputs of |S - T|^2 / mean |T|^2, T as the teacher gave it; where"
        " [task.outputs] names an axis temperature^2 KL(T, S) along it, both softened"
    )
    axes: Mapping[str, Scores] = MappingProxyType({})
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """The teacher's outputs."""
        return AnswerTargets(photos, device)

    def learn(self, task: Task, photos: Sequence[Photo]) -> None:
        """The axes, and the shapes of the teacher's outputs."""
        self.axes = task.axes
        self.shapes = {name: value.shape for name, value in photos[0].answer.items()}

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard`."""
        answer, weight = target.unbind(1)
        if not self.axes:
            return {"hard": ((student.float() - answer).square() * weight).sum(1).mean()}
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        split = (torch.split(rows, sizes, 1) for rows in (student, answer, weight))
        losses = [self._loss(*part) for part in zip(self.shapes, *split, strict=True)]
        return {"hard": torch.stack(losses).sum()}

    def _loss(self, name: str, student: Tensor, answer: Tensor, weight: Tensor) -> Tensor:
        """The share of one output, rows [N, its values]."""
        if name not in self.axes:
            return ((student.float() - answer).square() * weight).sum(1).mean()
        shape, options = (len(student), *self.shapes[name]), self.options
        pair = student.reshape(shape), answer.reshape(shape)
        return softened_kl(*pair, self.axes[name], options.temperature) / len(self.shapes)


OBJECTIVES: Mapping[str, type[Objective]] = {
    objective.kind: objective
    for objective in (
        DensityObjective,
        ClassObjective,
        ValueObjective,
        AnswerObjective,
        MaskObjective,
        BoxObjective,
    )
}


def make_objective(
    task: Task, options: Distill, targets: Tensor, photos: Sequence[Photo]
) -> Objective:
    """The losses of a task, scaled by some batches of targets.

    Args:
        task: what the outputs mean.
        options: of the training.
        targets: of some samples.
        photos: that the training has, with the teacher's answers where the task imitates it.
    """
    made = objective_of(task)(options, targets)
    made.learn(task, photos)
    return made


def objective_of(task: Task) -> type[Objective]:
    """The losses of a task: its own, or else those of the built-in one that it is like."""
    own: type[Objective] | None = task.objective()
    return own or OBJECTIVES[task.like]
