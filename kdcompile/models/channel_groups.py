"""Groups of channels of a network: the constraints that any change of its widths must keep."""

import math
from dataclasses import dataclass, field

from torch import nn
from torch.fx import Node

# one run of channels: the group it is tied to, its length, and how often each channel repeats
Run = tuple[int, int, int]
Layout = tuple[Run, ...]

ENDS = "it is an input or output of the network"


@dataclass(frozen=True)
class Layer:
    """A module whose widths may change, with the channels it reads and writes."""

    kind: type[nn.Module]
    inputs: Layout
    outputs: Layout
    groups: int = 1


@dataclass
class Channels:
    """Groups of channels (union-find), the frozen ones among them, and the layers by name."""

    layers: dict[str, Layer] = field(default_factory=dict)
    # of parameters that no layer owns (a position table, a layer scale) the axis that has channels
    parameters: dict[str, tuple[int, Layout]] = field(default_factory=dict)
    size: list[int] = field(default_factory=list)
    multiple: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    nodes: dict[str, list[Node]] = field(default_factory=dict)  # where each layer runs
    why: dict[int, str] = field(default_factory=dict)  # a frozen group cannot change, by its root
    fixed: dict[str, str] = field(default_factory=dict)  # why a module is not among the layers
    _parent: list[int] = field(default_factory=list)

    def new(self, size: int, multiple: int = 1) -> Layout:
        """A fresh group of `size` channels whose width stays divisible by `multiple`."""
        self._parent.append(len(self._parent))
        self.size.append(size)
        self.multiple.append(multiple)
        return ((len(self.size) - 1, size, 1),)

    def root(self, group: int) -> int:
        """The representative of a group."""
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def freeze(self, layout: Layout, why: str) -> None:
        """Keep these channels at the teacher's width; the network's ends are the best reason."""
        for root in {self.root(group) for group, _, _ in layout}:
            self.frozen.add(root)
            if why == ENDS or root not in self.why:
                self.why[root] = why

    def unite(self, a: Layout, b: Layout) -> None:
        """Tie two layouts channel by channel; where their runs differ both are frozen."""
        if [run[1:] for run in a] != [run[1:] for run in b]:
            for layout in (a, b):
                self.freeze(layout, "tensors are joined whose channels are laid out differently")
            return
        for (left, _, _), (right, _, _) in zip(a, b, strict=True):
            one, other = self.root(left), self.root(right)
            if one != other:
                self._parent[other] = one
                self.multiple[one] = math.lcm(self.multiple[one], self.multiple[other])
                if other in self.frozen:
                    self.freeze(((one, 0, 0),), self.why[other])

    def divisible(self, layout: Layout, by: int) -> None:
        """Keep the width of a single run divisible; a layout of several runs is frozen."""
        if len(layout) != 1:
            self.freeze(layout, "a grouped convolution reads a concatenation")
            return
        root = self.root(layout[0][0])
        self.multiple[root] = math.lcm(self.multiple[root], by)

    def width(self, layout: Layout, ratio: float, tile: int) -> int:
        """Channels of a layout when every free group is scaled by `ratio`."""
        return sum(self._group_width(group, ratio, tile) * each for group, _, each in layout)

    def unit(self, group: int, tile: int) -> int:
        """What the width of a group is a multiple of."""
        root = self.root(group)
        unit = math.lcm(tile, self.multiple[root])
        return self.multiple[root] if unit >= self.size[root] else unit

    def _group_width(self, group: int, ratio: float, tile: int) -> int:
        root, unit = self.root(group), self.unit(group, tile)
        full = self.size[root]
        if root in self.frozen:
            return full
        return min(full, max(unit, round(full * ratio / unit) * unit))
