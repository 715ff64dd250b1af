"""Recipe `reliability`: soft targets as far as the teacher is right (arXiv 2309.17134)."""

from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Weights
from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import (
    BLOCK,
    AnyObjective,
    ByReduction,
    DensityObjective,
    ValueObjective,
)
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels._runtime import full_precision
from kdcompile.kernels.kd_kl import kd_kl

RANKS = 10  # a label beyond the teacher's first ten is worth nothing


class Reliability(Recipe):
    """The soft term of each image times how well the teacher does on it, 0 to 1.

    Classes: 1 / rank of the label among the teacher's logits, 0 beyond ten; of a tie the best rank.
    Counts and values: exp(-|T - Y| / s), with s the mean count of a crop, or the labels' deviation.
    """

    about = About(
        name="reliability",
        summary="soft targets weighted by how right the teacher is on each image",
        formula="none + reliable * mean_images w soft, w = 1 / rank of the label among the"
        " teacher's logits (0 beyond 10), or exp(-|T - Y| / s) of counts and values, s the mean"
        ' count of a crop or the labels\' deviation. reduction "paper": one w, the mean of the'
        " batch (of each process), as published for classes. The weight is that of soft in kd",
        source="Carrino et al., Promoting Generalized Cross-lingual Question Answering in"
        " Few-resource Scenarios via Self-knowledge Distillation, 2023, 2309.17134 (mAP@k)",
        cost="as kd",
    )
    tasks = ("counting", "classification", "regression")
    why = "it weighs labels against the teacher, and there the teacher gives the labels"
    extra_weights: ClassVar[ByReduction] = {"mean": {"reliable": 0.9}, "paper": {"reliable": 0.9}}
    replaces_soft = True
    reads_labels = True
    reads_maps = True

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """`reliable` weighs what `soft` does in kd: its sum of weights is at most that."""
        return super().defaults(objective, reduction) | {
            "reliable": objective.weights[reduction]["soft"]
        }

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`reliable`."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        with full_precision(inputs.student):
            student, teacher = promoted(inputs.student), promoted(inputs.teacher)
            weight = self.trust(teacher, inputs.target)
            if self.options.reduction == "paper":
                weight = weight.mean().expand(len(weight))
            if self.objective.of_classes:
                own = weight.float().contiguous()
                return {"reliable": kd_kl(student, teacher, self.options.temperature, weight=own)}
            return {"reliable": (weight * self._soft(student, teacher)).mean()}

    def trust(self, teacher: Tensor, target: Tensor) -> Tensor:
        """The weight of each image, [B] from 0 to 1."""
        if isinstance(self.objective, DensityObjective):
            mean = self.objective.block / BLOCK**2 * teacher[0].numel()
            return (-(teacher - target).flatten(1).sum(1).abs() / mean).exp()
        if isinstance(self.objective, ValueObjective):
            return (-(teacher - target).flatten(1).abs().mean(1) / self.objective.scale).exp()
        label = teacher.gather(1, target.unsqueeze(1))
        rank = 1 + (teacher > label).sum(1)
        return torch.where(rank <= RANKS, 1 / rank, 0)

    def _soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The soft term of each image of a dense or value task, [B]."""
        gap = (student - teacher).flatten(1)
        if isinstance(self.objective, ValueObjective):
            gap = gap / self.objective.scale
            return (gap.abs() if self.options.hard == "l1" else gap.square()).mean(1)
        assert isinstance(self.objective, DensityObjective)
        if self.options.reduction == "paper":
            return gap.square().sum(1)
        return gap.square().mean(1) / self.objective.squared
