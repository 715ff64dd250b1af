"""Recipe `tf-kd`: a virtual teacher (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels.kd_kl import kd_kl

CORRECT = 0.99  # the virtual teacher's probability of the right class


class VirtualTeacher(Recipe):
    """Soft targets made of the labels: the regularisation of Tf-KD; no teacher runs."""

    about = About(
        name="tf-kd",
        summary="soft targets of a virtual teacher that is right with probability 0.99",
        formula="none + tfkd * T^2 KL(u softened by the temperature, softmax(S/temperature)),"
        " u = 0.99 for the label and 0.01 / (K - 1) for the others."
        ' reduction "paper": KL(softmax(u/temperature), softmax(S)) as released, which takes the'
        " probabilities for logits; published with 0.9 CE + 0.1 KL at temperature 20, which is the"
        " ratio here",
        source="Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization,"
        " CVPR 2020, 1909.11723",
        cost="as none",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"tfkd": 0.9}, "paper": {"tfkd": 0.1 / 9}}
    needs_teacher = False
    reads_labels = True
    tasks = ("classification",)
    why = "its virtual teacher gives probabilities of classes"

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`tfkd`."""
        student, temperature = promoted(inputs.student), self.options.temperature
        classes = student.shape[1]
        wrong = (1 - CORRECT) / max(classes - 1, 1)
        is_right = one_hot(inputs.target, classes).bool()
        virtual = torch.full_like(student, wrong).masked_fill(is_right, CORRECT)
        if self.options.reduction == "paper":
            return {"tfkd": kd_kl(student, virtual / temperature)}
        return {"tfkd": kd_kl(student, virtual.log(), temperature)}
