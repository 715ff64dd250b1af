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
from kdcompile.core.errors import KDError
from kdcompile.data.masks import IGNORED
from kdcompile.data.photo import Photo
from kdcompile.data.rows import AnswerTargets
from kdcompile.data.targets import LabelTargets, MaskTargets, Targets
from kdcompile.distill.bayesian import BayesianObjective
from kdcompile.distill.box_objective import BoxObjective
from kdcompile.distill.density_objective import BLOCK, DensityObjective
from kdcompile.distill.matching import MatchingObjective
from kdcompile.distill.objective_base import AnyObjective, ByReduction, Objective
from kdcompile.distill.softened import softened_kl
from kdcompile.kernels.kd_kl import kd_kl
from kdcompile.tasks.task import Task

__all__ = [
    "BLOCK",
    "OBJECTIVES",
    "AnyObjective",
    "ByReduction",
    "DensityObjective",
    "Objective",
    "make_objective",
    "objective_of",
]


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
# of counting, by distill.hard
POINT_LOSSES: Mapping[str, type[Objective]] = {
    "bayesian": BayesianObjective,
    "dm": MatchingObjective,
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
    made = objective_of(task, options)(options, targets)
    made.learn(task, photos)
    return made


def objective_of(task: Task, options: Distill) -> type[Objective]:
    """The losses of a task: its own, or else those of the built-in one that it is like.

    Raises:
        KDError: `label-loss`, the task has none of that name.
    """
    own: type[Objective] | None = task.objective()
    found = own or OBJECTIVES[task.like]
    if options.hard not in POINT_LOSSES:
        return found
    if found is not DensityObjective:
        raise KDError(
            "label-loss",
            f"the label loss {options.hard} compares a density with points, and {task.kind} has "
            "no density",
            where="[distill] hard",
            fix="leave distill.hard out; bayesian and dm are for counting",
        )
    return POINT_LOSSES[options.hard]
