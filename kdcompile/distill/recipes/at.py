"""Recipe `at`: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from typing import ClassVar

from torch import Tensor

from kdcompile.distill.maps import MapRecipe
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.kernels.attention_transfer import attention_transfer


class AttentionTransfer(MapRecipe):
    """Labels, soft targets, and where each layer looks: its energy at each pixel."""

    about = About(
        name="at",
        summary="labels, soft targets, and the teacher's attention: the energy at each pixel",
        formula="kd + at * mean_t |q(S_t) - q(T_t)|, q = e / |e|, e = sum_channels F^2;"
        " paper: the sum over taps, weight beta / 2 with beta = 0.1",
        source="Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017,"
        " arXiv 1612.03928, equation 2",
        cost="kd + one pass over the taps' maps forward and backward; no adapters",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"at": 2.0}, "paper": {"at": 0.05}}

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`at`: the distance of the two attention maps, any widths."""
        pairs = zip(inputs.student_features, inputs.teacher_features, strict=True)
        losses = [attention_transfer(s, t.to(s.dtype), "paper") for s, t in pairs]
        return {"at": self.joined(losses)}
