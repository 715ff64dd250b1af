"""Recipe `ickd`: inter-channel correlation (Liu et al., ICCV 2021)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import AdaptedRecipe, direction
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels._runtime import full_precision


class ChannelCorrelation(AdaptedRecipe):
    """Labels, soft targets, and which channels of a map are active together."""

    about = About(
        name="ickd",
        summary="labels, soft targets, and which of the teacher's channels are active together",
        formula="kd + ickd * mean_t |G(S_t) - G(T_t)|^2 / C, G the C x C products of an image's"
        " channels with rows of length 1, mean over the batch; paper: the sum over taps",
        source="Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge"
        " Distillation, ICCV 2021; torchdistill divides by the batch twice, here once",
        cost="kd + the adapters and a C x C product at each tap",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"ickd": 2.0}, "paper": {"ickd": 2.0}}

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`ickd`: rows have length 1 already, so no scale is needed."""
        gaps = [correlation(s) - correlation(t) for s, t in self.adapted(inputs)]
        return {"ickd": self.joined([gap.square().sum(2).mean() for gap in gaps])}


def correlation(maps: Tensor) -> Tensor:
    """[N, C, C]: the channels' products over the pixels, each row of length 1 (or 0)."""
    with full_precision(maps):
        rows = promoted(maps).flatten(2)
        return direction(rows @ rows.mT, dim=2)
