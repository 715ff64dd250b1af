"""Recipe `skt`: Structured Knowledge Transfer (Chen et al., ACM MM 2020, arXiv 2003.10120)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.distill.maps import fit_adapters
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.distill.taps import Tap
from kdcompile.kernels.adapter_cosine import adapter_cosines
from kdcompile.kernels.skt_tap import skt_tap


class StructuredTransfer(Recipe):
    """Labels, soft targets, Intra-layer Pattern and Inter-layer Relation Transfer.

    Each tap has an adapter (1x1 convolution and ReLU) from the student's to the teacher's width.
    The relations run over the adapted maps and the output, a density or a map of logits.
    """

    about = About(
        name="skt",
        summary="labels, soft targets, feature patterns and their relations across layers",
        formula="kd + intra * sum_t (1 - cos(F_t(S), F_t(T)))"
        " + inter * sum_{i<j} |G_ij(S) - G_ij(T)|^2",
        source="Chen et al., Efficient Crowd Counting via Structured Knowledge Transfer, 2020",
        cost="kd + one pass over the taps' maps forward and backward",
        evidence="benchmarks/digits.py: paired against `none`",
    )
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"intra": 10.0, "inter": 10.0},
        "paper": {"intra": 0.5, "inter": 0.5},
    }
    needs_taps = True
    tasks = ("counting", "segmentation", "detection")
    why = "its relations are between feature maps and an output that is a map"

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """One adapter a tap."""
        super().__init__(taps, options, objective)
        self.adapters = nn.ModuleList(
            nn.Linear(tap.student_channels, tap.teacher_channels) for tap in taps
        )

    def fit(self, inputs: LossInputs) -> None:
        """Adapters by least squares, so that the transfers start from what the student has."""
        fit_adapters(self.adapters, inputs.student_features, inputs.teacher_features)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`intra` (mean over taps under "mean") and `inter`.

        With relations one pass over the maps serves both transfers.
        """
        terms: dict[str, Tensor] = {}
        reduction = self.options.reduction
        adapters = [a for a in self.adapters if isinstance(a, nn.Linear)]
        weights, biases = [a.weight for a in adapters], [a.bias for a in adapters]
        taps = (inputs.student_features, inputs.teacher_features, weights, biases)
        if self.is_off("intra") and self.is_off("inter"):
            return terms
        if self.is_off("inter"):
            terms["intra"] = adapter_cosines(*taps, reduction)
        else:
            assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
            densities = (inputs.student, inputs.teacher)
            intra, terms["inter"] = skt_tap(*taps, *densities, reduction)
            terms["intra"] = intra.mean() if reduction == "mean" else intra.sum()
        return terms
