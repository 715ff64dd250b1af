"""A network's kernels together with the latency estimate that was made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdcompile.latency_model.breakdown import StageCost, stage_costs
from kdcompile.latency_model.correction import scaled
from kdcompile.latency_model.kernels import Kernel
from kdcompile.latency_model.predict import Estimate


@dataclass(frozen=True)
class Priced:
    """A network's kernels with the estimate that was made of them, a part for each."""

    kernels: Sequence[Kernel]
    estimate: Estimate
    shape: Sequence[int]

    def at(self, ms: float) -> "Priced":
        """The same with its parts in proportion to another latency, such as the measured one."""
        return replace(self, estimate=scaled(self.estimate, ms / self.estimate.ms))

    def stages(self) -> list[StageCost]:
        """Its time by stage."""
        return stage_costs(self.kernels, self.estimate, self.shape)
