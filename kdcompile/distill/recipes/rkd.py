"""Recipe `rkd`: Relational Knowledge Distillation (Park et al., CVPR 2019)."""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from kdcompile.distill.embedding import RelationRecipe, embeddings, unit
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels._runtime import full_precision
from kdcompile.kernels.batch_relation import batch_relation

WEIGHTS = {"rkd_distance": 25.0, "rkd_angle": 50.0}


class RelationalTransfer(RelationRecipe):
    """Distances between the embeddings of two images and angles between those of three."""

    about = About(
        name="rkd",
        summary="distances of image pairs and angles of image triples in the embeddings",
        formula="kd + rkd_distance * mean_ij SmoothL1(d_ij(S) - d_ij(T))"
        " + rkd_angle * mean_ijk SmoothL1(cos(S) - cos(T)), d = distance over the mean distance,"
        " cos = of the angle at image j between i and k",
        source="Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068;"
        " weights 25 and 50, the paper's for classification",
        cost="kd + B^3 angles of pooled maps",
        evidence="tests/distill/recipes/test_rkd.py: float64 and torchdistill; docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": WEIGHTS, "paper": WEIGHTS}
    needs = ("triples",)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`rkd_distance` and `rkd_angle`: over the images of a step in this process."""
        student, teacher = embeddings(inputs)
        terms = {"rkd_distance": batch_relation(student, teacher, "rkd")}
        if not self.is_off("rkd_angle"):
            terms["rkd_angle"] = smooth_l1_loss(angles(student), angles(teacher))
        return terms


def angles(embedding: Tensor) -> Tensor:
    """[B, B, B]: at [j, i, k] the cosine of the angle at image j between i and k.

    It is 0 where an image lies where j does.

    Args:
        embedding: [B, d].
    """
    with full_precision(embedding):
        ways = unit(embedding[None] - embedding[:, None])
        return ways @ ways.mT
