"""Recipe `cwd`: channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.distill.maps import AdaptedRecipe
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs
from kdcompile.distill.taps import Tap
from kdcompile.kernels.channel_kl import channel_kl


class ChannelWise(AdaptedRecipe):
    """Labels, soft targets, and each channel's map as a distribution over the pixels."""

    about = About(
        name="cwd",
        summary="labels, soft targets, and where each channel of the teacher is active",
        formula="kd + cwd * mean_t tau^2 KL(softmax_pixels(T_t / tau), softmax_pixels(S_t / tau)),"
        " mean over channels, tau = distill.temperature, maps over the deviation of T_t; paper:"
        " maps as they are, sum over taps",
        source="Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,"
        " arXiv 2011.13256",
        cost="kd + one pass over the taps' maps forward and backward; adapters where widths differ",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"cwd": 3.0}, "paper": {"cwd": 50.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """An adapter where the widths differ, as in the paper."""
        super().__init__(taps, options, objective)
        for place, tap in enumerate(taps):
            if tap.student_channels == tap.teacher_channels:
                self.adapters[place] = nn.Identity()

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`cwd`; softmax of maps in units of the teacher's deviation under "mean"."""
        losses = []
        units = self.scale.sqrt().unbind()
        for unit, (student, teacher) in zip(units, self.adapted(inputs), strict=True):
            own, theirs = (maps / unit.to(maps.dtype) for maps in (student, teacher))
            losses.append(channel_kl(own, theirs, self.options.temperature))
        return {"cwd": self.joined(losses)}
