"""Recipe `cckd`: Correlation Congruence (Peng et al., ICCV 2019)."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from kdcompile.distill.embedding import RelationRecipe, embeddings, unit
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels._runtime import full_precision

GAMMA = 0.4
ORDER = 2


class CorrelationTransfer(RelationRecipe):
    """Correlations between the embeddings of two images, through a kernel.

    `cckd` has the paper's best kernel, `cckd_bilinear` its plain one, which is off by default.
    """

    about = About(
        name="cckd",
        summary="correlations of image pairs in the embeddings, by a Gaussian kernel",
        formula="kd + cckd * mean_ij (k(c_ij(S)) - k(c_ij(T)))^2"
        " + cckd_bilinear * mean_ij (c_ij(S) - c_ij(T))^2, c = cosine,"
        " k(c) = exp(-2 g) (1 + 2 g c + (2 g c)^2 / 2), g = 0.4: the second-order series of"
        " exp(-g |x - y|^2)",
        source="Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019,"
        " arXiv 1904.01802; weight 0.003 as in torchdistill",
        cost="kd + a B x B Gram of pooled maps",
        evidence="tests/distill/recipes/test_cckd.py: float64 and the paper's formula;"
        " docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"cckd": 200.0, "cckd_bilinear": 0.0},
        "paper": {"cckd": 0.003, "cckd_bilinear": 0.0},
    }
    needs = ("pairs",)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`cckd` and `cckd_bilinear`: over the images of a step in this process."""
        student, teacher = (cosines(e) for e in embeddings(inputs))
        terms = {}
        if not self.is_off("cckd"):
            terms["cckd"] = mse_loss(gaussian(student), gaussian(teacher))
        if not self.is_off("cckd_bilinear"):
            terms["cckd_bilinear"] = mse_loss(student, teacher)
        return terms


def cosines(embedding: Tensor) -> Tensor:
    """[B, B]; an embedding of zero has cosine 0 with all.

    Args:
        embedding: [B, d].
    """
    with full_precision(embedding):
        rows = unit(embedding)
        return rows @ rows.mT


def gaussian(cosine: Tensor) -> Tensor:
    """The Taylor series of exp(-GAMMA |x - y|^2) for x and y of length 1."""
    powers = [(2 * GAMMA * cosine) ** p / math.factorial(p) for p in range(ORDER + 1)]
    return math.exp(-2 * GAMMA) * torch.stack(powers).sum(0)
