"""Recipe `kr`: knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import Adapter, ScaledRecipe, fit_adapter
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.distill.taps import Tap

GRIDS = (4, 2, 1)
WIDEST = 512  # channels that are fused


class KnowledgeReview(ScaledRecipe):
    """Labels, soft targets, and the teacher's maps from the student's map and all deeper ones."""

    about = About(
        name="kr",
        summary="labels, soft targets, and the teacher's maps from the student's of all depths",
        formula="kd + kr * mean_t H(f_t(S_t, S_t+1, ...), T_t) / variance of T_t; f fuses with the"
        " deeper maps by attention, H the mean squared error of the maps and of their means on"
        " grids of 4, 2, 1 with weights 1, 1/2, 1/4, 1/8; paper: sum_t H",
        source="Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021,"
        " arXiv 2104.09044; here without batch norms",
        cost="kd + a 1x1 and a 3x3 convolution at each tap forward and backward",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"kr": 3.0}, "paper": {"kr": 1.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """A fusion for each tap; the fused maps are as wide as the student's widest."""
        super().__init__(taps, options, objective)
        width = min(WIDEST, max((tap.student_channels for tap in taps), default=1))
        self.fusions = nn.ModuleList(
            Fusion(tap.student_channels, width, tap.teacher_channels, place < len(taps) - 1)
            for place, tap in enumerate(taps)
        )

    def fit(self, inputs: LossInputs) -> None:
        """Output layers by least squares, and the scales."""
        super().fit(inputs)
        fused = self._fused(inputs.student_features)
        for fusion, maps, teacher in zip(self._each(), fused, inputs.teacher_features, strict=True):
            fusion.fit(maps, teacher)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`kr`."""
        fused = self._fused(inputs.student_features)
        each = zip(self._each(), fused, inputs.teacher_features, strict=True)
        losses = [
            context_loss(promoted(fusion.output(maps)), promoted(teacher))
            for fusion, maps, teacher in each
        ]
        return {"kr": self.scaled(losses)}

    def _each(self) -> list["Fusion"]:
        return [fusion for fusion in self.fusions if isinstance(fusion, Fusion)]

    def _fused(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each map fused with the deeper ones, in the taps' order."""
        fused: list[Tensor] = []
        for fusion, maps in zip(self._each()[::-1], features[::-1], strict=True):
            fused.insert(0, fusion(promoted(maps), fused[0] if fused else None))
        return fused


class Fusion(nn.Module):
    """Attention between a map and what was fused of the deeper ones."""

    def __init__(self, own: int, width: int, theirs: int, has_deeper: bool) -> None:
        """Channels of the student's map, of fused maps, and of the teacher's map."""
        super().__init__()
        self.reduce = nn.Conv2d(own, width, 1)
        self.attention = nn.Conv2d(2 * width, 2, 1) if has_deeper else None
        self.output = nn.Conv2d(width, theirs, 3, padding=1)

    def forward(self, maps: Tensor, deeper: Tensor | None) -> Tensor:
        """[N, width, H, W]: a map's own channels and the deeper ones, weighed at each pixel."""
        own: Tensor = self.reduce(maps)
        if self.attention is None or deeper is None:
            return own
        resized = functional.interpolate(deeper, own.shape[2:], mode="nearest")
        share = self.attention(torch.cat([own, resized], dim=1)).sigmoid()
        fused: Tensor = own * share[:, :1] + resized * share[:, 1:]
        return fused

    @torch.no_grad()
    def fit(self, fused: Tensor, teacher: Tensor) -> None:
        """Set the output layer to the regression of each pixel, neighbours to 0."""
        weight, bias = self.output.weight, self.output.bias
        assert bias is not None
        adapter = Adapter(weight.shape[1], weight.shape[0]).to(weight)
        fit_adapter(adapter, fused, teacher)
        weight.zero_()[:, :, 1, 1].copy_(adapter.weight)
        bias.copy_(adapter.bias)


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of maps [N, C, H, W] and of their means over coarser and coarser grids.

    A grid counts if it is coarser than the map: fewer cells a side than the shorter side has.
    """
    losses, weight, total = functional.mse_loss(student, teacher), 1.0, 1.0
    for grid in GRIDS:
        if grid < min(student.shape[2:]):
            weight /= 2
            own, theirs = (
                functional.adaptive_avg_pool2d(maps, grid) for maps in (student, teacher)
            )
            losses = losses + weight * functional.mse_loss(own, theirs)
            total += weight
    return losses / total
