"""Breakdown of a network's predicted latency by stage: kernels grouped by the size of their maps.

Kernels that follow one another at one size of map and with the same dilation are a stage. A kernel
without a window (1 x 1, pointwise, a reformat) stays in the stage that it follows, since it has no
dilation. What comes before the first layer of a stage, such as its pooling or the reformat of the
input, belongs to it. What has no map any more, such as a classifier's matrix product, is the head.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdcompile.latency_model.predict import Estimate, Part
from kdcompile.latency_model.workload import Kernel

TOKEN_AXES = 3  # [N, tokens, C]


@dataclass(frozen=True)
class StageCost:
    """A stage: where it computes, and its part in the latency.

    Args:
        resolution: `at full resolution`, `at 1/8 resolution`, `at 30 x 40`, `on 197 tokens` or `the
            head`; equal for the stages of two networks that compute on maps of the same size.
        dilation: of its convolutions.
        ms: predicted.
        share: of the network's latency.
        bounds: ms by what holds its kernels up: arithmetic, memory, launch.
        widths: output channels of its convolutions and products, in their order.
        kernels: how many launches.
    """

    resolution: str
    dilation: int
    ms: float
    share: float
    bounds: Mapping[str, float]
    widths: tuple[int, ...]
    kernels: int

    @property
    def name(self) -> str:
        """Its resolution, and its dilation where there is one."""
        return (
            f"{self.resolution}, dilated by {self.dilation}"
            if self.dilation > 1
            else self.resolution
        )

    @property
    def bound(self) -> str:
        """What holds most of its time up."""
        return max(self.bounds, key=lambda name: self.bounds[name])


def stage_costs(
    kernels: Sequence[Kernel], estimate: Estimate, shape: Sequence[int]
) -> list[StageCost]:
    """The stages of a network, in the order of execution.

    Args:
        kernels: those that were priced.
        estimate: of just these kernels, with a part for each, in their order.
        shape: of the network's input, [N, C, H, W].
    """
    runs: list[_Run] = []
    for kernel, part in zip(kernels, estimate.parts, strict=True):
        size = tuple(kernel.shape[1:2] if len(kernel.shape) == TOKEN_AXES else kernel.shape[2:])
        windowed = max(kernel.kernel_size, default=1) > 1
        dilation = max(kernel.dilation, default=1)
        if not runs or runs[-1].size != size or (windowed and runs[-1].dilation != dilation):
            runs.append(_Run(size, dilation))
        runs[-1].members.append((kernel, part))
    return [_cost(run, shape, estimate.ms) for run in _with_layers(runs)]


@dataclass
class _Run:
    """Kernels in a row: the size of their maps, none in the head, their dilation, their parts."""

    size: tuple[int, ...]
    dilation: int
    members: list[tuple[Kernel, Part]] = field(default_factory=list)

    @property
    def has_layers(self) -> bool:
        """Whether anything there multiplies."""
        return any(kernel.macs for kernel, _ in self.members)


def _with_layers(runs: Sequence[_Run]) -> list[_Run]:
    """Runs without a layer put to the next one, those at the end to the last that has one."""
    found: list[_Run] = []
    waiting: list[tuple[Kernel, Part]] = []
    for run in runs:
        if run.has_layers:
            found.append(_Run(run.size, run.dilation, waiting + run.members))
            waiting = []
        else:
            waiting = waiting + run.members
    if not found:
        return list(runs)
    found[-1].members.extend(waiting)
    return found


def merge_by_resolution(stages: Sequence[StageCost]) -> dict[str, StageCost]:
    """The stages with those of one resolution merged: a decoder's, or of several dilations."""
    found: dict[str, StageCost] = {}
    for stage in stages:
        before = found.get(stage.resolution)
        if before is not None:
            bounds: Counter[str] = Counter(before.bounds)
            bounds.update(stage.bounds)
            stage = StageCost(
                stage.resolution,
                max(before.dilation, stage.dilation),
                before.ms + stage.ms,
                before.share + stage.share,
                dict(bounds),
                before.widths + stage.widths,
                before.kernels + stage.kernels,
            )
        found[stage.resolution] = stage
    return found


def _cost(run: _Run, shape: Sequence[int], total: float) -> StageCost:
    bounds: dict[str, float] = {}
    for _, part in run.members:
        bounds[part.bound] = bounds.get(part.bound, 0.0) + part.ms
    ms = math.fsum(part.ms for _, part in run.members)
    widths = tuple(kernel.out_channels for kernel, _ in run.members if kernel.macs)
    resolution = _resolution_text(run.size, shape[2:]) if run.size else "the head"
    return StageCost(resolution, run.dilation, ms, ms / total, bounds, widths, len(run.members))


def _resolution_text(size: Sequence[int], whole: Sequence[int]) -> str:
    """In words; a pooling may round a half up or down."""
    if tuple(size) == tuple(whole):
        return "at full resolution"
    if len(size) == 1:
        return f"on {size[0]} tokens"
    if len(size) == len(whole):
        ratio = round(whole[0] / size[0])
        if ratio > 1 and all(abs(w / ratio - s) < 1 for s, w in zip(size, whole, strict=True)):
            return f"at 1/{ratio} resolution"
    return "at " + " x ".join(str(side) for side in size)
