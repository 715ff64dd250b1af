"""Search space of the teacher's own architecture: width of each channel group, dropped parts.

Works for any teacher that can be traced. A choice is the width of each free group and a set of
dropped parts; an architecture is its canonical form, so that equal students are equal dicts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from torch import nn

from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.channel_groups import Channels, Layout
from kdcompile.models.channels import trace
from kdcompile.models.dropped import droppable, is_gone, members, tied
from kdcompile.models.resize import architecture_of
from kdcompile.search.spaces.base import Architecture
from kdcompile.search.spaces.pruned_kernels import Template

GRID = 64


def architectures(
    teacher: nn.Module, shape: Sequence[int], tile: int, seed: int, ratios: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """The distinct students, widest first; `ratios` replaces the grid of 1/64 steps.

    Raises:
        KDError: the teacher cannot be traced.
    """
    return students(trace(teacher, shape), tile, seed, ratios)


def students(
    channels: Channels, tile: int, seed: int, ratios: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """As `architectures`, of a teacher that is traced already."""
    found: list[dict[str, Any]] = []
    for ratio in ratios or [n / GRID for n in range(GRID, 0, -1)]:
        made = architecture_of(channels, lambda layout, r=ratio: channels.width(layout, r, tile))  # type: ignore[misc]
        if not found or made["modules"] != found[-1]["modules"]:
            found.append({"family": "shrink", "width": ratio, "seed": seed, **made})
    return found


NARROWEST = 1 / 16  # of the teacher's width, where students are drawn at random
SPREAD = 2.0  # a group of a random student is up to so many times wider or narrower than the rest
CHANGED = 0.15  # of the groups, by a mutation
CORNERS = (1.0, 0.0)
UNIFORM = 16

Widths = dict[int, int]


class LayerSpace:
    """Students that are a teacher's own code with narrower layers and fewer of them."""

    def __init__(
        self,
        teacher: nn.Module,
        shape: Sequence[int],
        tile: int,
        seed: int,
        template: Template | None = None,
    ) -> None:
        """Trace the teacher, and export it where no template is given.

        Args:
            teacher: in inference mode, on the CPU.
            shape: input [N, C, H, W] that kernels are for.
            tile: channels that the target computes at once.
            seed: of the students' untrained weights.
            template: of the same teacher and shape.

        Raises:
            KDError: those of `Template`.
        """
        self.template = template or Template.of(teacher, shape)
        self._teacher, self._tile, self._seed = teacher, tile, seed
        self._channels = self.template.channels
        layouts = self._channels.layouts()
        roots = dict.fromkeys(self._root(run[0]) for layout in layouts for run in layout)
        self.options = {
            root: self._widths(root) for root in roots if root not in self._channels.frozen
        }
        """The widths that each free group may have, ascending, by its root."""
        self.droppable = [
            n for n in droppable(teacher, shape) if self._can_tie(n) and self.template.can_drop(n)
        ]
        """Parts that may be dropped, in order of execution."""

    def uniform(self, ratio: float, dropped: Iterable[str] = ()) -> Architecture:
        """Every group scaled by one ratio."""
        widths = {root: _nearest(self.options[root], ratio) for root in self.options}
        return self.architecture(widths, dropped)

    def random(self, draw: Random) -> Architecture:
        """Any student: a ratio for all, a factor for each group, some parts dropped."""
        ratio = math.exp(draw.uniform(math.log(NARROWEST), 0))
        spread = math.log(SPREAD)
        widths = {
            root: _nearest(options, ratio * math.exp(draw.uniform(-spread, spread)))
            for root, options in self.options.items()
        }
        share = draw.random()
        return self.architecture(widths, [n for n in self.droppable if draw.random() < share])

    def mutate(self, architecture: Architecture, draw: Random) -> Architecture:
        """A few groups a step or more wider or narrower, or one part dropped or kept after all."""
        widths, dropped = self.widths(architecture), set(architecture["dropped"])
        if self.droppable and draw.random() < 0.3:
            dropped ^= {draw.choice(self.droppable)}
        else:
            for root in self._choose_groups(draw):
                options = self.options[root]
                index = min(range(len(options)), key=lambda i: abs(options[i] - widths[root]))
                step = draw.choice((-2, -1, 1, 2)) * max(1, len(options) // 16)
                widths[root] = options[min(max(index + step, 0), len(options) - 1)]
        return self.architecture(widths, dropped)

    def _choose_groups(self, draw: Random) -> list[int]:
        chosen = [root for root in self.options if draw.random() < CHANGED]
        return chosen or draw.sample(list(self.options), min(1, len(self.options)))

    def cross(self, one: Architecture, other: Architecture, draw: Random) -> Architecture:
        """Each group and each part as in one of the two."""
        first, second = self.widths(one), self.widths(other)
        widths = {root: draw.choice((first, second))[root] for root in self.options}
        dropped = [n for n in self.droppable if n in draw.choice((one, other))["dropped"]]
        return self.architecture(widths, dropped)

    def corners(self) -> list[Architecture]:
        """The widest and the narrowest uniform student, and the smallest of all."""
        return [*map(self.uniform, CORNERS), self.uniform(0.0, self.droppable)]

    def uniform_students(self) -> list[Architecture]:
        """The teacher at every sixteenth of its width."""
        return [self.uniform(number / UNIFORM) for number in range(1, UNIFORM + 1)]

    def missing_layers(self, architecture: Architecture) -> int:
        """The dropped parts."""
        return len(architecture["dropped"])

    def kernels(self, architecture: Architecture, precision: Precision) -> list[Kernel]:
        """What the student's ONNX file will be compiled to."""
        return self.template.at(architecture, precision)

    def widths(self, architecture: Mapping[str, Any]) -> Widths:
        """The width of each free group; the teacher's of those that are nowhere in the student."""
        full = {root: options[-1] for root, options in self.options.items()}
        return full | self.template.widths(architecture["modules"], architecture["dropped"])

    def architecture(self, widths: Mapping[int, int], dropped: Iterable[str] = ()) -> Architecture:
        """The canonical form of a choice.

        Where a convolution is dropped, its outputs are the inputs: both groups get the width of
        the first. Groups that are only in dropped parts have no width.

        Args:
            widths: of each free group.
            dropped: some of `droppable`.
        """
        requested = set(dropped)
        without = [name for name in self.droppable if name in requested]
        ties = tied(self._channels, without)
        width = {root: widths[ties.get(root, root)] for root in self.options}
        gone = [path for name in without for path in members(self._teacher, name)]
        channels = self._channels
        kept = {n: layer for n, layer in channels.layers.items() if not is_gone(n, gone)}
        parameters = {n: v for n, v in channels.parameters.items() if not is_gone(n, gone)}
        attributes = {n: v for n, v in channels.attributes.items() if not is_gone(n, gone)}
        left = replace(channels, layers=kept, parameters=parameters, attributes=attributes)
        used = {self._root(run[0]) for layout in left.layouts() for run in layout}
        free = [root for root in self.options if root in used]
        full = sum(self.options[root][-1] for root in free)
        return {
            "family": "shrink",
            "width": sum(width[root] for root in free) / full if full else 1.0,
            "seed": self._seed,
            **architecture_of(left, lambda layout: self._total(width, layout)),
            "dropped": without,
        }

    def _can_tie(self, name: str) -> bool:
        """Whether the groups on both sides of a convolution may have the same widths."""
        layer = self._channels.layers.get(name)
        if layer is None:
            return True
        if len(layer.inputs) != 1 or len(layer.outputs) != 1 or layer.inputs[0][2] != 1:
            return False
        before, after = (self._root(v[0][0]) for v in (layer.inputs, layer.outputs))
        return self.options.get(before) == self.options.get(after)

    def _widths(self, root: int) -> list[int]:
        full, unit = self._channels.size[root], self._channels.unit(root, self._tile)
        return sorted({*range(unit, full, unit), full})

    def _total(self, widths: Mapping[int, int], layout: Layout) -> int:
        return sum(widths.get(self._root(g), size) * each for g, size, each in layout)

    def _root(self, group: int) -> int:
        return self._channels.root(group)


def _nearest(options: Sequence[int], ratio: float) -> int:
    wanted = ratio * options[-1]
    return min(options, key=lambda width: abs(width - wanted))
