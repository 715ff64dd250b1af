"""Recipe `srd`: a projector, batch norm and a logarithm (Miles et al., 2024, arXiv 2303.11098)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.distill.embedding import embeddings
from kdcompile.distill.maps import fit_adapter
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.distill.taps import Tap
from kdcompile.kernels._runtime import full_precision

EPS = 1e-4  # of the batch norm, as released
LEAST = 1e-8  # mean fourth power at which the logarithm ends: features that differ by 0.01
UNRELATED = 12.0  # E d^4 of the difference d of two independent normal numbers


class ProjectedFeatures(Recipe):
    """The last tap's mean over pixels, projected to the teacher's width and normalised.

    The projection has no bias: the batch norm would take it out. The norm is of the batch at hand,
    in each process its own, and has no parameters.
    """

    about = About(
        name="srd",
        summary="projected, batch-normalised features under a logarithm, beside soft targets",
        formula="kd + srd * log(mean |N(W f_S) - N(f_T)|^4 + 1e-8), f the last tap's mean over"
        " pixels, N the batch norm without parameters; shifted and scaled to 0 for equal and 1 for"
        ' unrelated features, or with reduction "paper" the log of the sum. Published with'
        " 1 CE + 2 log + 1 KL at temperature 1; the ratio of the first two is kept, soft is the"
        " task's own",
        source="Miles and Mikolajczyk, Understanding the Role of the Projector in Knowledge"
        " Distillation, AAAI 2024, 2303.11098",
        cost="kd + a mean over the last tap's maps and a product of the batch",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"srd": 4.0}, "paper": {"srd": 0.2}}
    needs_taps = True
    needs = ("pairs",)

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """The projection of the last tap."""
        super().__init__(taps, options, objective)
        last = taps[-1]
        self.projection = nn.Linear(last.student_channels, last.teacher_channels, bias=False)

    def fit(self, inputs: LossInputs) -> None:
        """Start at the least-squares map, so that the student is not moved to a random one."""
        weight = self.projection.weight
        start = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        start.weight.copy_(weight)
        fit_adapter(start, inputs.student_features[-1], inputs.teacher_features[-1])
        weight.copy_(start.weight)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`srd`."""
        with full_precision(inputs.student):
            student, teacher = embeddings(inputs)
            gap = _normalised(self.projection(student)) - _normalised(teacher)
            log = self.log_power(gap)
            if self.options.reduction == "paper":
                return {"srd": log}
            least, unrelated = math.log(LEAST), math.log(UNRELATED)
            return {"srd": (log - least) / (unrelated - least)}

    def log_power(self, gap: Tensor) -> Tensor:
        """Log of the mean fourth power, or of the sum as published, of any number of gaps."""
        number = gap.numel() if self.options.reduction == "paper" else 1
        return (gap.square().square().mean() + LEAST).log() + math.log(number)


def _normalised(rows: Tensor) -> Tensor:
    """Rows [B, d], each column with mean 0 and deviation 1; zeros where B is 1."""
    centred = rows - rows.mean(0)
    return centred * torch.rsqrt(centred.square().mean(0) + EPS)
