"""Recipe `vid`: variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import Adapter, MapRecipe, fit_adapter, variance
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.distill.taps import Tap

EPS = 1e-5
START = 5.0  # variance before the fit, as released
LEAST = 1e-2  # of the map's variance: what a channel that fits at once starts with


class VariationalInformation(MapRecipe):
    """Labels, soft targets, and the likelihood of the teacher's maps given the student's."""

    about = About(
        name="vid",
        summary="labels, soft targets, and how likely the teacher's maps are given the student's",
        formula="kd + vid * mean_t 1/2 ((mu(S_t) - T_t)^2 / v + log v), mu three 1x1 convolutions,"
        " v a variance a channel, T_t in units of its deviation; paper: T_t as it is, sum over"
        " taps",
        source="Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,"
        " arXiv 1904.05835",
        cost="kd + three 1x1 convolutions at each tap forward and backward",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"vid": 1.0}, "paper": {"vid": 1.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """One regressor a tap."""
        super().__init__(taps, options, objective)
        self.regressors = nn.ModuleList(
            Regressor(tap.student_channels, tap.teacher_channels) for tap in taps
        )

    def _each(self, inputs: LossInputs) -> list[tuple["Regressor", Tensor, Tensor]]:
        regressors = [r for r in self.regressors if isinstance(r, Regressor)]
        features = (inputs.student_features, inputs.teacher_features)
        return list(zip(regressors, *features, strict=True))

    def fit(self, inputs: LossInputs) -> None:
        """Last layers by least squares, variances from what they leave."""
        for regressor, student, teacher in self._each(inputs):
            regressor.fit(student, teacher, in_units=self.is_mean)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`vid`, nats an element; it falls below 0 where the student explains the teacher."""
        losses = [regressor(student, teacher) for regressor, student, teacher in self._each(inputs)]
        return {"vid": self.joined(losses)}


class Regressor(nn.Module):
    """A Gaussian of the teacher's map given the student's, of one variance a channel.

    unit: float32 [], the variance that maps are measured in.
    """

    unit: Tensor

    def __init__(self, own: int, theirs: int) -> None:
        """Widths of student and teacher; the hidden layers have the teacher's."""
        super().__init__()
        self.first, self.second = Adapter(own, theirs), Adapter(theirs, theirs)
        self.last = Adapter(theirs, theirs)
        self.spread = nn.Parameter(_inverse_softplus(torch.full((theirs,), START - EPS)))
        self.register_buffer("unit", torch.ones(()))

    def hidden(self, maps: Tensor) -> Tensor:
        """What the last layer sees."""
        return self.second(self.first(maps).relu()).relu()  # type: ignore[no-any-return]

    def variance(self) -> Tensor:
        """[C_t], above 0."""
        return functional.softplus(self.spread) + EPS

    @torch.no_grad()
    def fit(self, student: Tensor, teacher: Tensor, in_units: bool) -> None:
        """Last layer, unit and variances from a first batch, where they are finite.

        The residuals of the fit itself are too small by its degrees of freedom. Of a few pixels
        they tell nothing, and the variance is the map's own.
        """
        hidden = self.hidden(student)
        fit_adapter(self.last, hidden, teacher)
        whole = variance(teacher).to(self.unit)
        if in_units and whole > 0:
            self.unit.copy_(whole)
        pixels, free = teacher[:, 0].numel(), len(self.spread) + 1
        left = (promoted(self.last(hidden)) - promoted(teacher)).square().mean((0, 2, 3))
        left = left * pixels / (pixels - free) if pixels >= 2 * free else whole.expand_as(left)
        if left.isfinite().all():
            found = torch.maximum(left, LEAST * whole) / self.unit
            self.spread.copy_(_inverse_softplus(found.clamp_min(10 * EPS) - EPS))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The negative log-likelihood without its constant, mean over all elements."""
        gap = promoted(self.last(self.hidden(student))) - promoted(teacher)
        spread = self.variance()[:, None, None]
        return 0.5 * (gap.square() / (spread * self.unit) + spread.log()).mean()


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
