"""Recipe `pkt`: Probabilistic Knowledge Transfer (Passalis & Tefas, ECCV 2018)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.embedding import RelationRecipe, embeddings
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels.batch_relation import batch_relation


class ProbabilisticTransfer(RelationRecipe):
    """How probable each image is as another's neighbour: KL between the networks' rows."""

    about = About(
        name="pkt",
        summary="which images are neighbours, as probabilities from cosines of embeddings",
        formula="kd + pkt * mean_i sum_j p_ij(T) log(p_ij(T) / p_ij(S)),"
        " p = rows of (cosine + 1) / 2 over their sum; the paper's weight is of the mean over i, j",
        source="Passalis & Tefas, Learning Deep Representations with Probabilistic Knowledge"
        " Transfer, ECCV 2018, arXiv 1803.10837; weight 30000 as in RepDistiller",
        cost="kd + a B x B Gram of pooled maps",
        evidence="tests/distill/recipes/test_pkt.py: float64 and torchdistill; docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"pkt": 100.0}, "paper": {"pkt": 30000.0}}
    needs = ("pairs",)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`pkt`: over the images of a step in this process."""
        student, teacher = embeddings(inputs)
        loss = batch_relation(student, teacher, "pkt")
        return {"pkt": loss * len(student) if self.options.reduction == "mean" else loss}
