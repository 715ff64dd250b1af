"""Recipe `partitioned`: the better of teacher and deployed student teaches each image."""

from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Weights
from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import AnyObjective, ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe


class Partitioned(Recipe):
    """The objective's soft term against the trusted one of teacher and deployed student.

    A photo is the teacher's where its error of the label is smaller than that of the student as
    it was loaded, and the old student's else, at a tie too. The error is the probability that the
    true class lacks, the distance of the crop's count, or that of the value.
    """

    about = About(
        name="partitioned",
        summary="refresh a deployed student from any teacher without losing what it knew",
        formula="none + partitioned: the soft loss of kd against R, where R is T on photos that T"
        " has better than the deployed student (p[y], count or value), else that student",
        source="Roth et al., Fantastic Gains and Where to Find Them, ICLR 2024, arXiv 2310.17653",
        cost="kd + a forward pass of the student as it was",
    )
    tasks = ("counting", "classification", "regression")
    why = "it weighs labels against the teacher, and there the teacher gives the labels"
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"partitioned": 1.0},
        "paper": {"partitioned": 1.0},
    }
    needs_first = True
    reads_labels = True
    reads_maps = True
    needs = ("deployed",)
    replaces_soft = True

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """The term weighs what the task's soft term does, in whose place it stands."""
        weight = objective.weights[reduction]["soft"]
        return super().defaults(objective, reduction) | {"partitioned": weight}

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`partitioned`."""
        if self.is_off("partitioned"):
            return {}
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        assert inputs.first is not None, "the trainer runs the first student for this recipe"
        trusted = torch.where(self.trusts_teacher(inputs), inputs.teacher, inputs.first)
        trusted = trusted.to(inputs.student.dtype)  # under autocast two of them may differ
        terms = self.objective.terms(inputs.student, inputs.target, trusted)
        return {"partitioned": terms["soft"]}

    def trusts_teacher(self, inputs: LossInputs) -> Tensor:
        """Whose photos they are: bool [N, 1, ...], true for the teacher's."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        assert inputs.first is not None, "the trainer runs the first student for this recipe"
        error = _surprise if self.objective.of_classes else _distance
        teacher, first = (error(x, inputs.target) for x in (inputs.teacher, inputs.first))
        return (teacher < first).reshape(-1, *[1] * (inputs.student.dim() - 1))


def _surprise(logits: Tensor, target: Tensor) -> Tensor:
    """-log p[y], [N]: it orders as 1 - p[y] does, and still where both are near 0."""
    return -promoted(logits).log_softmax(1).gather(1, target[:, None])[:, 0]


def _distance(output: Tensor, target: Tensor) -> Tensor:
    """|sum of output - sum of target| of each crop, [N]: of counts, or of single values."""
    return (promoted(output) - target).flatten(1).sum(1).abs()
