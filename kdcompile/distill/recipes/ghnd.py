"""Recipe `ghnd`: generalized head network distillation (Matsubara, Levorato, arXiv 2007.15818)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Distill, Weights
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import AdaptedRecipe
from kdcompile.distill.objective import AnyObjective, ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, RecipeContext
from kdcompile.distill.taps import Tap

CROPS = 64  # whose outputs tell how much the teacher's output varies


class HeadNetwork(AdaptedRecipe):
    """The squared distance to the teacher at every tap and at the output; labels take no part."""

    about = About(
        name="ghnd",
        summary="the teacher's maps and output by squared error, without labels or soft targets",
        formula="ghnd * mean_t (|r(S_t) - T_t|^2 / variance of T_t), r a 1x1 convolution, t over"
        " the taps and, without r, the output; no other term, beside other recipes too; paper:"
        " sum_t |r(S_t) - T_t|^2 of an image",
        source="Matsubara and Levorato, Neural Compression and Filtering for Edge-assisted"
        " Real-time Object Detection, 2020, arXiv 2007.15818; there the student is the teacher with"
        " another head, so its output needs no term",
        cost="that of fitnet",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"ghnd": 1.0}, "paper": {"ghnd": 1.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """A part for each tap and one for the output."""
        super().__init__(taps, options, objective)
        self.scale = torch.ones(len(taps) + 1)
        self._spread = torch.ones(())

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """Its own term alone."""
        return {**cls.extra_weights[reduction]}

    def prepare(self, context: RecipeContext) -> None:
        """Measure how the teacher's output varies over some photos: few crops may be alike."""
        outputs: list[Tensor] = []
        for batch in context.crops():
            outputs.append(promoted(context.look(batch.images)[0]))
            if sum(map(len, outputs)) >= CROPS:
                break
        self._spread = torch.cat(outputs).var(correction=0)

    def sizes(self, inputs: LossInputs) -> list[Tensor]:
        """The variances of the teacher's maps and of its output."""
        return [*super().sizes(inputs), self._spread.to(self.scale)]

    def base(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Nothing: the student learns from the teacher alone."""
        return {}

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`ghnd`."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        own, theirs = (
            promoted(o).flatten(1)[:, :, None, None] for o in (inputs.student, inputs.teacher)
        )
        return {"ghnd": self.squared([*self.adapted(inputs), (own, theirs)])}
