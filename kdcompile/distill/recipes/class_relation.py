"""Recipe `class-relation`: new classes at a site, and the old ones kept as the teacher has them."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe

SHARPNESS = 0.1  # the paper's t, a factor of the temperature


class ClassRelation(Recipe):
    """Cross-entropy over all classes, and the teacher's distribution over its own.

    The student's first classes are the teacher's, in the same order, and new ones follow. A photo
    weighs as much as the student holds it for one of the old classes, 1 on average over the batch
    (of each process, where there are several). Under "mean" the divergence vanishes where both
    agree and no gradient flows through the weight, which would let the student pay less by
    calling every hard photo new; under "paper" both are as released. The published cross-entropy
    is of logits over 0.1, so that its gradient is ten times that of this one: hence a tenth of the
    published weight. More of it stops the new classes from being learnt.
    """

    about = About(
        name="class-relation",
        summary="add classes at a site without losing the old ones",
        formula="none + class_relation T^2 mean_i w_i KL(softmax(T_i / tau), softmax(S_i[old] /"
        " tau)), w_i = softmax(S_i / tau)[old] over its batch mean, tau = 0.1 T, T the temperature;"
        " paper: cross-entropy for KL, gradient through w",
        source="Gu et al., Class-relation Knowledge Distillation for Novel Class Discovery, ICCV"
        " 2023, arXiv 2307.09158; its clustering of unlabelled photos is replaced by labels",
        cost="kd",
    )
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"class_relation": 0.01},
        "paper": {"class_relation": 0.1},
    }
    needs = ("own-student",)
    replaces_soft = True
    widens = True
    tasks = ("classification",)
    why = "it adds classes"

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`class_relation`."""
        if self.is_off("class_relation"):
            return {}
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        tau = SHARPNESS * self.options.temperature
        student, teacher = promoted(inputs.student) / tau, promoted(inputs.teacher) / tau
        old = student[:, : teacher.shape[1]]
        weight = old_class_weight(student, teacher.shape[1])
        rows = -(teacher.softmax(1) * old.log_softmax(1)).sum(1)
        if self.options.reduction == "mean":
            weight = weight.detach()
            rows = rows + (teacher.softmax(1) * teacher.log_softmax(1)).sum(1)
        return {"class_relation": self.options.temperature**2 * (weight * rows).mean()}


def old_class_weight(logits: Tensor, known: int) -> Tensor:
    """softmax(logits)[:, :known] summed, over its mean: [N] of mean 1.

    Args:
        logits: [N, K], softened.
        known: how many of the classes are old.

    By logarithms, so that a batch of which no photo looks old has finite weights too.
    """
    mass = logits[:, :known].logsumexp(1) - logits.logsumexp(1)
    return mass.softmax(0) * len(mass)
