"""Base classes of recipes that compare feature maps: adapters to the teacher's widths, scales.

Adapters start where they fit: at the least squares from the student's maps to the teacher's.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.distill.embedding import promoted
from kdcompile.distill.objective import Objective
from kdcompile.distill.recipe import LossInputs, Recipe
from kdcompile.distill.taps import Tap
from kdcompile.kernels.feature_mse import feature_mse

SAMPLES = 16384
RIDGE = 1e-3


@torch.no_grad()
def fit_adapter(adapter: nn.Linear, student: Tensor, teacher: Tensor) -> None:
    """Set an adapter to the ridge regression from the student's pixels to the teacher's.

    An adapter from random weights spends the first steps on finding the student's channels in the
    teacher's, and its gradient moves the student meanwhile.

    Args:
        adapter: C_s to C_t.
        student: map [N, C_s, H, W].
        teacher: map [N, C_t, H, W].
    """
    x, y = (_pixels(student), _pixels(teacher))
    one = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    gram = one.T @ one
    mean = gram.diagonal()[:-1].mean()
    if not torch.isfinite(gram).all() or not torch.isfinite(y).all() or mean <= 0:
        return  # nothing to fit to: the adapter keeps its random start
    strength = torch.full_like(gram.diagonal(), float(RIDGE * mean))
    strength[-1] = 0.0  # the bias is not shrunk
    solution = torch.linalg.lstsq(gram + strength.diag(), one.T @ y).solution
    adapter.weight.copy_(solution[:-1].T)
    adapter.bias.copy_(solution[-1])


def fit_adapters(
    adapters: Iterable[nn.Module], students: Iterable[Tensor], teachers: Iterable[Tensor]
) -> None:
    """`fit_adapter` for each that is an adapter, in order; what is none has nothing to fit."""
    for adapter, student, teacher in zip(adapters, students, teachers, strict=True):
        if isinstance(adapter, nn.Linear):
            fit_adapter(adapter, student, teacher)


def _pixels(maps: Tensor) -> Tensor:
    """At most SAMPLES pixels, evenly spread, float64 [P, C]."""
    flat = maps.detach().movedim(1, -1).reshape(-1, maps.shape[1])
    step = max(1, len(flat) // SAMPLES)
    return flat[::step].double()


class Adapter(nn.Linear):
    """A 1x1 convolution of maps [N, C_s, H, W] to [N, C_t, H, W], in the maps' type."""

    def forward(self, maps: Tensor) -> Tensor:
        """The maps at the teacher's width."""
        weight, bias = self.weight.to(maps.dtype), self.bias.to(maps.dtype)
        return functional.conv2d(maps, weight[:, :, None, None], bias)


class MapRecipe(Recipe):
    """Compares the taps' maps, by a loss of each part that are joined to one number."""

    needs_taps = True

    @property
    def is_mean(self) -> bool:
        """Whether losses are dimensionless, rather than the paper's."""
        return self.options.reduction == "mean"

    def joined(self, losses: Sequence[Tensor]) -> Tensor:
        """The mean of the parts' losses, or their sum under "paper"."""
        each = torch.stack(list(losses))
        return each.mean() if self.is_mean else each.sum()


class ScaledRecipe(MapRecipe):
    """Divides each part's loss by what an unrelated student costs.

    scale: float32 [parts], measured once on the first crops, so that a loss does not depend on the
    batch that it is computed in; 1 under "paper".
    """

    scale: Tensor

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """One part a tap."""
        super().__init__(taps, options, objective)
        self.register_buffer("scale", torch.ones(len(taps)))

    def fit(self, inputs: LossInputs) -> None:
        """The scales; 1 stays for what is 0 or not finite."""
        if self.is_mean:
            found = torch.stack(self.sizes(inputs)).to(self.scale)
            self.scale.copy_(torch.where(found.isfinite() & (found > 0), found, 1))

    def sizes(self, inputs: LossInputs) -> list[Tensor]:
        """The scale of each part: the variance of the teacher's map, which no constant explains."""
        return [variance(maps) for maps in inputs.teacher_features]

    def scaled(self, losses: Sequence[Tensor]) -> Tensor:
        """The parts' losses in their scales, joined."""
        return self.joined((torch.stack(list(losses)) / self.scale).unbind())


class AdaptedRecipe(ScaledRecipe):
    """Compares maps after an adapter at each tap, which starts at the least squares fit."""

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """One adapter a tap."""
        super().__init__(taps, options, objective)
        self.adapters = nn.ModuleList(
            Adapter(tap.student_channels, tap.teacher_channels) for tap in taps
        )

    def fit(self, inputs: LossInputs) -> None:
        """Adapters by least squares, and the scales."""
        super().fit(inputs)
        fit_adapters(self.adapters, inputs.student_features, inputs.teacher_features)

    def adapted(self, inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
        """The student's adapted map and the teacher's, in one type, of each tap."""
        pairs = zip(self.adapters, inputs.student_features, inputs.teacher_features, strict=True)
        made = [(adapter(student), teacher) for adapter, student, teacher in pairs]
        return [(student, teacher.to(student.dtype)) for student, teacher in made]

    def squared(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The squared errors of pairs of maps, joined; under "paper" the sum of an image's."""
        losses = [feature_mse(s, t) * (1 if self.is_mean else s[0].numel()) for s, t in pairs]
        return self.scaled(losses)


def variance(maps: Tensor) -> Tensor:
    """The variance over batch and pixels of a map [N, C, ...], averaged over the channels."""
    return promoted(maps.detach()).movedim(1, 0).flatten(1).var(1, correction=0).mean()


def direction(rows: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` over their length; one of 0 stays 0 and has no gradient."""
    length = torch.linalg.vector_norm(rows, dim=dim, keepdim=True)
    return torch.where(length > 0, rows / length.masked_fill(length == 0, 1), 0)
