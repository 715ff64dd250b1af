"""Search space of staged students: one stage for each stage of the teacher, of other blocks.

A stage's width is a multiple of the target's channel tile up to the teacher's. Its stride, over the
input's scale, is the teacher's or up to `COARSER` times it; where it is coarser it needs no
dilation to see as far, and where it ends below the teacher's output the output is resized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.cuts import Cut
from kdcompile.search.spaces.base import Architecture
from kdcompile.search.spaces.staged_kernels import staged_kernels

COARSER = 4
DEEPEST = 4
WIDTHS = 8  # of a stage, about evenly spaced in their logarithm
STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class StagedSpace:
    """Staged students of a teacher.

    Args:
        cuts: the ends of the teacher's stages.
        shape: input [N, C, H, W].
        out_channels: of the teacher's output.
        head: `dense` or `pooled`.
        output_stride: pixels a cell of the teacher's output, along an axis; 1 where the head is
            pooled. The stages end at it or coarser, which `reaches` checks.
        tile: channels that the target computes at once.
        blocks: kinds of block.
        scales: of the input's sides.
        seed: of the untrained weights.
    """

    cuts: Sequence[Cut]
    shape: Sequence[int]
    out_channels: int
    head: str
    output_stride: int
    tile: int
    blocks: Sequence[str]
    scales: Sequence[float]
    seed: int

    @property
    def reaches(self) -> bool:
        """Whether so many stages can end at the output's stride."""
        return bool(max(STRIDES) ** len(self.cuts) >= self.output_stride)

    @cached_property
    def widths(self) -> list[list[int]]:
        """What each stage may have, ascending."""
        return [_widths(cut.channels, self.tile) for cut in self.cuts]

    def random(self, draw: Random) -> Architecture:
        """Any student."""
        scale = draw.choice(self.scales)
        totals = self._strides(scale, draw)
        stages = [self._stage(i, totals, draw) for i in range(len(self.cuts))]
        return self._architecture(scale, totals, stages)

    def mutate(self, architecture: Architecture, draw: Random) -> Architecture:
        """One stage changed, or, one time in five, the strides of all."""
        scale = architecture["input_scale"]
        totals = _totals(architecture)
        stages = [dict(stage) for stage in architecture["stages"]]
        if draw.random() < 0.2:
            scale = draw.choice(self.scales)
            totals = self._strides(scale, draw)
        else:
            index = draw.randrange(len(stages))
            changed = self._stage(index, totals, draw)
            name = draw.choice(("width", "width", "depth", "block", "down", "all"))
            stages[index] = changed if name == "all" else stages[index] | {name: changed[name]}
        return self._architecture(scale, totals, stages)

    def cross(self, one: Architecture, other: Architecture, draw: Random) -> Architecture:
        """The first's strides, each stage's make from either."""
        pairs = zip(one["stages"], other["stages"], strict=True)
        stages = [dict(draw.choice(pair)) for pair in pairs]
        return self._architecture(one["input_scale"], _totals(one), stages)

    def corners(self) -> list[Architecture]:
        """The smallest student of each block, and the widest of the first block."""
        coarse, fine = min(self.scales), max(self.scales)
        found = [self._uniform(coarse, COARSER, 0, 1, block) for block in self.blocks]
        found += [self._uniform(fine, 1, -1, depth, self.blocks[0]) for depth in (1, DEEPEST)]
        return found

    def uniform_students(self) -> list[Architecture]:
        """None: the teacher is no staged student."""
        return []

    def missing_layers(self, architecture: Architecture) -> int:
        """None: it has none of the teacher's layers to begin with, and multiply-adds order it."""
        return 0

    def kernels(self, architecture: Architecture, precision: Precision) -> list[Kernel]:
        """What the student's ONNX file will be compiled to."""
        return staged_kernels(architecture, self.shape, precision)

    def _uniform(
        self, scale: float, coarser: int, width: int, depth: int, block: str
    ) -> Architecture:
        totals: list[float] = []
        for index, cut in enumerate(self.cuts):
            allowed = self._allowed(index, totals[-1] if totals else 1 / scale)
            wanted = [t for t in allowed if t <= coarser * cut.stride] or allowed[:1]
            totals.append(wanted[-1])
        stages = [
            {
                "block": block,
                "width": self.widths[i][width],
                "depth": max(1, min(depth, cut.depth)),
                "down": "stride",
                "dilation": cut.dilation,
            }
            for i, cut in enumerate(self.cuts)
        ]
        return self._architecture(scale, totals, stages)

    def _strides(self, scale: float, draw: Random) -> list[float]:
        """Pixels of the image, along an axis, for each cell at the end of every stage."""
        totals: list[float] = []
        for index in range(len(self.cuts)):
            allowed = self._allowed(index, totals[-1] if totals else 1 / scale)
            totals.append(draw.choice(allowed))
        return totals

    def _allowed(self, index: int, before: float) -> list[float]:
        """Strides, ascending, that a stage can have behind one of `before`."""
        own = self.cuts[index].stride
        later = max(STRIDES) ** (len(self.cuts) - 1 - index)
        reached = [before * stride for stride in STRIDES]
        # the stages behind must still be able to end at the output's stride
        reached = [t for t in reached if t * later >= self.output_stride] or reached[-1:]
        near = [t for t in reached if own <= t <= COARSER * own]
        return near or [min(reached, key=lambda t: abs(math.log(t / own)))]

    def _stage(self, index: int, totals: Sequence[float], draw: Random) -> dict[str, Any]:
        cut = self.cuts[index]
        return {
            "block": draw.choice(self.blocks),
            "width": draw.choice(self.widths[index]),
            "depth": draw.randint(1, max(1, min(cut.depth, DEEPEST))),
            "down": draw.choice(("pool", "stride")),
            "dilation": draw.choice((1, cut.dilation)),
        }

    def _architecture(
        self, scale: float, totals: Sequence[float], stages: Sequence[dict[str, Any]]
    ) -> Architecture:
        """The canonical form: what has no effect has one value."""
        made, before = [], 1 / scale
        for cut, total, stage in zip(self.cuts, totals, stages, strict=True):
            stride = round(total / before)
            made.append(
                {
                    **stage,
                    "stride": stride,
                    "down": stage["down"] if stride > 1 else "stride",
                    "dilation": stage["dilation"] if total == cut.stride else 1,
                }
            )
            before = total
        return {
            "family": "staged",
            "seed": self.seed,
            "input_scale": scale,
            "stages": made,
            "in_channels": self.shape[1],
            "out_channels": self.out_channels,
            "head": self.head,
            "output_stride": self.output_stride,
        }


def _totals(architecture: Architecture) -> list[float]:
    total, found = 1 / architecture["input_scale"], []
    for stage in architecture["stages"]:
        total *= stage["stride"]
        found.append(total)
    return found


def _widths(full: int, tile: int) -> list[int]:
    """Multiples of the tile up to `full`, `WIDTHS` at most; `full` alone where it is below one."""
    tiles = full // tile
    if tiles < 1:
        return [full]
    steps = [tiles ** (k / (WIDTHS - 1)) for k in range(WIDTHS)]
    return sorted({round(step) * tile for step in steps})
