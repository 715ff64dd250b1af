"""Groups of channels of a network: the constraints that any change of its widths must keep."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.fx import Node

# one run of channels: the group it is tied to, its length, and how often each channel repeats
Run = tuple[int, int, int]
Layout = tuple[Run, ...]

NARROWEST = 8  # channels of a head, where several fill a tile
MOST_PARTS = 512  # groups that are split, in a network
ENDS = "it is an input or output of the network"


def length(layout: Layout) -> int:
    """Channels of a layout in the teacher."""
    return sum(size * each for _, size, each in layout)


@dataclass(frozen=True)
class Layer:
    """A module whose widths may change, with the channels it reads and writes."""

    kind: type[nn.Module]
    inputs: Layout
    outputs: Layout
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each output is made of one input alone."""
        return self.groups > 1 and self.groups == length(self.inputs)


@dataclass
class Channels:
    """Groups of channels (union-find), the frozen ones among them, and the layers by name."""

    layers: dict[str, Layer] = field(default_factory=dict)
    # of parameters that no layer owns (a position table, a layer scale) the axis that has channels
    parameters: dict[str, tuple[int, Layout]] = field(default_factory=dict)
    # numbers in the network's own modules that follow a width: a module's path, and attributes
    attributes: dict[str, dict[str, Layout]] = field(default_factory=dict)
    size: list[int] = field(default_factory=list)
    multiple: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    nodes: dict[str, list[Node]] = field(default_factory=dict)  # where each layer runs
    why: dict[int, str] = field(default_factory=dict)  # a frozen group cannot change, by its root
    fixed: dict[str, str] = field(default_factory=dict)  # why a module is not among the layers
    _parent: list[int] = field(default_factory=list)
    # of a group that was split, by its root
    _parts: dict[int, Layout] = field(default_factory=dict)
    # how many times a group lies in each layout that has it, or a factor of that, by its root
    _copies: dict[int, int] = field(default_factory=dict)

    def new(self, size: int, multiple: int = 1) -> Layout:
        """A fresh group of `size` channels whose width stays divisible by `multiple`."""
        self._parent.append(len(self._parent))
        self.size.append(size)
        self.multiple.append(multiple)
        return ((len(self.size) - 1, size, 1),)

    def layouts(self) -> list[Layout]:
        """What each layer reads and gives."""
        return [side for layer in self.layers.values() for side in (layer.inputs, layer.outputs)]

    def root(self, group: int) -> int:
        """The representative of a group."""
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def freeze(self, layout: Layout, why: str) -> None:
        """Keep these channels at the teacher's width; the network's ends are the best reason."""
        for root in {self.root(group) for group, _, _ in self.expand(layout)}:
            self.frozen.add(root)
            if why == ENDS or root not in self.why:
                self.why[root] = why

    def expand(self, layout: Layout) -> Layout:
        """A layout with the parts of groups that were split since it was made."""
        found: list[Run] = []
        for group, size, each in layout:
            parts = self._parts.get(self.root(group))
            if parts is None:
                found.append((group, size, each))
            else:
                found += [(g, n, e * each) for g, n, e in self.expand(parts)]
        return tuple(found)

    def part(self, layout: Layout, start: int, size: int) -> Layout | None:
        """Channels from `start` of a layout; groups are split there. None where that cannot be."""
        for cut in (start, start + size):
            while (inside := self._run_at(layout, cut)) is not None:
                group, offset = inside
                if not offset or not self._split(group, offset):
                    return None
        position, found = 0, []
        for run in self.expand(layout):
            if start <= position < start + size:
                found.append(run)
            position += run[1] * run[2]
        return tuple(found)

    def divide(self, layout: Layout, count: int) -> Layout | None:
        """One of `count` parts of one size that stay of one size; None where that cannot be."""
        runs = self.expand(layout)
        size = length(runs) // count
        if len(runs) == 1:
            return self._divide_group(runs[0], size, count)
        parts: list[Layout] = []
        for run in runs:
            times, rest = divmod(length((run,)), size)
            part = (run,) if times == 1 else self.divide((run,), times) if times else None
            if rest or part is None:
                return None
            parts.append(part)
        for part in parts[1:]:
            self.unite(parts[0], part)
        return self.expand(parts[0])

    def _divide_group(self, run: Run, size: int, count: int) -> Layout | None:
        root = self.root(run[0])
        multiple = self.multiple[root] // math.gcd(self.multiple[root], count)
        if run[2] != 1 or size % multiple:
            return None
        part = self.new(size, multiple)
        self._parts[root] = part * count
        if root in self.frozen:
            self.freeze(part, self.why[root])
        return part

    def _run_at(self, layout: Layout, cut: int) -> tuple[int, int] | None:
        """The group that a position is inside of, and its channel; 0 where it is inside of one."""
        position = 0
        for group, size, each in self.expand(layout):
            if position < cut < position + size * each:
                offset = cut - position
                return group, 0 if offset % each else offset // each
            position += size * each
        return None

    def _split(self, group: int, at: int) -> bool:
        """Split a group in two; False where its width has to stay divisible, or parts get many."""
        root = self.root(group)
        if self.multiple[root] > 1 or len(self._parts) >= MOST_PARTS:
            return False
        size = self.size[root]
        self._parts[root] = (*self.new(at), *self.new(size - at))
        if root in self.frozen:
            self.freeze(self._parts[root], self.why[root])
        return True

    def unite(self, a: Layout, b: Layout) -> None:
        """Tie two layouts channel by channel; where that cannot be both are frozen."""
        left, right = self.expand(a), self.expand(b)
        while left and right:
            (one, n, e), (other, m, f) = left[0], right[0]
            if e != f and not self._repeat(*((one, n, e), (other, m, f))[:: 1 if e < f else -1]):
                break
            if e != f:
                left, right = self.expand(left), self.expand(right)
                continue
            if n != m and not self._split(one if n > m else other, min(n, m)):
                break
            if n == m:
                self._join(one, other)
                left, right = left[1:], right[1:]
            left, right = self.expand(left), self.expand(right)
        if left or right:
            for layout in (a, b):
                self.freeze(layout, "tensors are joined whose channels are laid out differently")

    def _repeat(self, fine: Run, coarse: Run) -> bool:
        """Let channels be those of a group whose channels repeat more often; False where not."""
        (one, n, e), (other, m, f) = fine, coarse
        times, rest = divmod(f, e)
        root = self.root(one)
        if rest or n < m * times or self.multiple[root] > 1 or root == self.root(other):
            return False
        if n > m * times:
            return self._split(one, m * times)
        self._parts[root] = ((other, m, times),)
        if root in self.frozen:
            self.freeze(self._parts[root], self.why[root])
        return True

    def _join(self, a: int, b: int) -> None:
        one, other = self.root(a), self.root(b)
        if one != other:
            self._parent[other] = one
            self.multiple[one] = math.lcm(self.multiple[one], self.multiple[other])
            if other in self.frozen:
                self.freeze(((one, 0, 0),), self.why[other])

    def split_roots(self) -> set[int]:
        """Groups that some operator cuts out of a larger one."""
        return {
            self.root(group)
            for layout in self._parts.values()
            for group, _, _ in self.expand(layout)
        }

    def settle(self) -> None:
        """Give every layer and parameter the parts of groups that were split after it was met."""
        for name, layer in self.layers.items():
            sides = self.expand(layer.inputs), self.expand(layer.outputs)
            self.layers[name] = replace(layer, inputs=sides[0], outputs=sides[1])
        for name, (dim, layout) in self.parameters.items():
            self.parameters[name] = (dim, self.expand(layout))
        for path, named in self.attributes.items():
            self.attributes[path] = {name: self.expand(v) for name, v in named.items()}
        self._copies = {}
        for layout in self.layouts():
            for root, count in Counter(self.root(group) for group, _, _ in layout).items():
                self._copies[root] = math.gcd(count, self._copies.get(root, 0))

    def divisible(self, layout: Layout, by: int) -> None:
        """Keep the width of a single run divisible; a layout of several runs is frozen."""
        runs = self.expand(layout)
        if len(runs) != 1:
            self.freeze(runs, "a grouped convolution reads a concatenation")
            return
        root = self.root(runs[0][0])
        self.multiple[root] = math.lcm(self.multiple[root], by)

    def width(self, layout: Layout, ratio: float, tile: int) -> int:
        """Channels of a layout when every free group is scaled by `ratio`."""
        return sum(self._group_width(group, ratio, tile) * each for group, _, each in layout)

    def widths_of(self, sides: Sequence[tuple[Layout, int]]) -> dict[int, int]:
        """The width of each group that is not frozen, by its root, from how long layouts are.

        Args:
            sides: layouts with their number of channels in a student; what contradicts is left out.
        """
        found: dict[int, int] = {}
        waiting = [
            ([(self.root(group), size, each) for group, size, each in layout], length)
            for layout, length in sides
        ]
        progress = True
        while progress:
            progress = False
            for runs, length in waiting:
                open_ = {r for r, _, _ in runs if r not in found and r not in self.frozen}
                if len(open_) == 1:
                    (root,) = open_
                    known = sum(found.get(r, n) * each for r, n, each in runs if r != root)
                    width, rest = divmod(length - known, sum(e for r, _, e in runs if r == root))
                    if not rest and width > 0:
                        found[root], progress = width, True
        return found

    def unit(self, group: int, tile: int) -> int:
        """What the width of a group is a multiple of.

        Heads lie next to each other: together they fill tiles, so each of them need not.
        """
        root = self.root(group)
        tile = max(min(tile, NARROWEST), tile // math.gcd(tile, self._copies.get(root, 1)))
        unit = math.lcm(tile, self.multiple[root])
        return self.multiple[root] if unit >= self.size[root] else unit

    def _group_width(self, group: int, ratio: float, tile: int) -> int:
        root, unit = self.root(group), self.unit(group, tile)
        full = self.size[root]
        if root in self.frozen:
            return full
        return min(full, max(unit, round(full * ratio / unit) * unit))
