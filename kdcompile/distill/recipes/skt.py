"""Recipe `skt`: Structured Knowledge Transfer (Chen et al., ACM MM 2020, arXiv 2003.10120)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.distill.recipe import About, LossInputs
from kdcompile.distill.recipes.kd import OutputTransfer
from kdcompile.distill.taps import Tap
from kdcompile.kernels.adapter_cosine import adapt, adapter_cosine, cosine_distance
from kdcompile.kernels.gram_relation import gram_relation
from kdcompile.spec import Distill


class StructuredTransfer(OutputTransfer):
    """Labels, soft targets, Intra-layer Pattern and Inter-layer Relation Transfer.

    Each tap has an adapter (1x1 convolution and ReLU) from the student's to the teacher's width.
    The relations run over the adapted maps and the output density.
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
    default_weights: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "mean": {"hard": 1.0, "count": 1.0, "soft": 4.0, "intra": 10.0, "inter": 10.0},
        "paper": {"hard": 1.0, "count": 0.0, "soft": 1.0, "intra": 0.5, "inter": 0.5},
    }
    needs_taps = True

    def __init__(self, taps: Sequence[Tap], options: Distill, scales: tuple[float, float]) -> None:
        """One adapter a tap."""
        super().__init__(taps, options, scales)
        self.adapters = nn.ModuleList(
            nn.Linear(tap.student_channels, tap.teacher_channels) for tap in taps
        )

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`hard`, `count`, `soft`, `intra` (mean over taps under "mean") and `inter`.

        Without relations the adapted maps are needed by nothing else, so the fused loss serves.
        """
        terms = super().terms(inputs)
        adapters = [(a.weight, a.bias) for a in self.adapters if isinstance(a, nn.Linear)]
        taps = list(zip(inputs.student_features, inputs.teacher_features, adapters, strict=True))
        if self.weights["inter"] == 0:
            losses = [adapter_cosine(s, t, *a, self.reduction) for s, t, a in taps]
        else:
            adapted = [adapt(s, t, *a) for s, t, a in taps]
            losses = [
                cosine_distance(f, t, self.reduction)
                for f, t in zip(adapted, inputs.teacher_features, strict=True)
            ]
            assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
            terms["inter"] = gram_relation(
                [*adapted, inputs.student],
                [*inputs.teacher_features, inputs.teacher],
                self.reduction,
            )
        total = torch.stack(losses)
        terms["intra"] = total.mean() if self.reduction == "mean" else total.sum()
        return terms
