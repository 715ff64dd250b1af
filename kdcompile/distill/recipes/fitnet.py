"""Recipe `fitnet`: hints (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.maps import AdaptedRecipe
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs


class Hints(AdaptedRecipe):
    """Labels, soft targets, and the squared distance of adapted maps to the teacher's."""

    about = About(
        name="fitnet",
        summary="labels, soft targets, and hints: the teacher's maps, by squared error",
        formula="kd + fitnet * mean_t (|r(S_t) - T_t|^2 / variance of T_t), r a 1x1 convolution;"
        " paper: 1/2 sum_t |r(S_t) - T_t|^2 of an image",
        source="Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550;"
        " there one hint, in a stage of its own before kd",
        cost="kd + the adapters and one pass over the taps' maps forward and backward",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"fitnet": 3.0}, "paper": {"fitnet": 0.5}}

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`fitnet`; under "paper" its 1/2 is in the weight."""
        return {"fitnet": self.squared(self.adapted(inputs))}
