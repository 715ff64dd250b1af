"""The channels of tensors while a graph is followed: what ties, joins and freezes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from kdcompile.models.channel_axes import pads_at, shape_of, source_axis
from kdcompile.models.channel_groups import ENDS, Channels, Layout, length
from kdcompile.models.channel_rules import POINTWISE, describe_node, operator_name


@dataclass(frozen=True)
class Axis:
    """The axis of a tensor that has channels, counted from 0, and what they are."""

    dim: int
    layout: Layout


class Ties:
    """The axes of tensors by the node that gives them, and the operators on several tensors."""

    def __init__(self, owned: dict[str, str], parameters: set[str]) -> None:
        """Nothing is known yet.

        Args:
            owned: the network's names of parameters and buffers by their input of the graph.
            parameters: those of them that are parameters.
        """
        self.channels = Channels()
        self.moved = False  # whether a rule was used that the network's own code may not keep
        self._owned, self._parameters = owned, parameters
        self._axes: dict[Node, Axis] = {}
        self._second: dict[Node, Axis] = {}  # of products that have two axes of channels
        self._computed: dict[Node, str] = {}  # from one module's parameters alone, by its path
        self._why: dict[Node, str] = {}  # of tensors whose channels are not known

    def _merge(self, node: Node) -> Axis | None:
        rank = len(shape_of(node))
        tensors = [a for a in node.args if isinstance(a, Node) and math.prod(shape_of(a)) > 1]
        known = [(t, self._axes[t]) for t in tensors if t in self._axes]
        dims = {axis.dim + rank - len(shape_of(t)) for t, axis in known}
        if len(dims) != 1:
            return self._unknown(node)
        (dim,) = dims
        size, alike = shape_of(node)[dim], []
        for tensor in tensors:
            place = dim - rank + len(shape_of(tensor))
            if place < 0 or shape_of(tensor)[place] != size:
                self._freeze(tensor, f"{describe_node(node)} spreads it over other channels")
            else:
                alike.append((tensor, place))
        if not any(tensor in self._axes for tensor, _ in alike):
            return self._unknown(node)
        return Axis(dim, self._together(alike, node))

    def _together(self, tensors: Sequence[tuple[Node, int]], node: Node) -> Layout:
        """Tie tensors along an axis of each; the channels of one of them at least are known."""
        known = [self._axes[tensor].layout for tensor, _ in tensors if tensor in self._axes]
        for other in known[1:]:
            self.channels.unite(known[0], other)
        for tensor, dim in tensors:
            if tensor not in self._axes:
                self._tie(tensor, dim, known[0], node)
        return known[0]

    def _tie(self, tensor: Node, dim: int, layout: Layout, node: Node) -> None:
        """Tie a tensor that is computed from one parameter alone to what it is merged with."""
        while tensor.name not in self._owned:
            name, source = operator_name(tensor), tensor.args[0] if tensor.args else None
            inner = None
            if isinstance(source, Node) and len(tensor.all_input_nodes) == 1:
                inner = dim if name in POINTWISE else source_axis(tensor, name, dim)
            if inner is None:
                why = self._why.get(tensor, f"{describe_node(node)} joins it with an unknown one")
                self.channels.freeze(layout, why)
                return
            assert isinstance(source, Node), "it is the one input"
            tensor, dim = source, inner
        name = self._owned[tensor.name]
        owner = self.channels.layers.get(name.rpartition(".")[0])
        known, before = self.channels.parameters.get(name, (dim, layout))
        fits = shape_of(tensor)[dim] == length(layout)
        if name not in self._parameters or owner is not None or known != dim or not fits:
            for one in (layout, before):
                self.channels.freeze(one, f"{describe_node(node)} reads {name}, which stays")
            return
        self.channels.parameters[name] = (dim, layout)
        self.moved = True
        self.channels.unite(before, layout)

    def _concatenate(self, node: Node) -> Axis | None:
        parts: Any = node.args[0]
        rank = len(shape_of(node))
        along: Any = node.args[1] if len(node.args) > 1 else 0
        dims = {self._axes[part].dim for part in parts if part in self._axes}
        if len(dims) != 1:
            return self._unknown(node)
        (dim,) = dims
        if dim == along % max(rank, 1):
            return Axis(dim, tuple(run for part in parts for run in self._known(part, dim)))
        return Axis(dim, self._together([(part, dim) for part in parts], node))

    def _shuffled(self, node: Node, name: str, known: Axis) -> Axis:
        """Pixel shuffle: so many channels in a row become the pixels of one, or the other way."""
        factor: Any = node.args[1]
        back = name == "pixel_shuffle"
        one = self.channels.new(shape_of(node)[known.dim]) if back else known.layout
        many = tuple((group, n, each * factor**2) for group, n, each in one)
        if back:
            self.channels.unite(known.layout, many)
        return Axis(known.dim, one if back else many)

    def _padded(self, node: Node, known: Axis) -> Axis | None:
        """More channels than there were, of one value; how many more stays."""
        before, after = pads_at(node, known.dim)
        if min(before, after) < 0:
            return self._unknown(node)
        more = [self.channels.new(count) if count else () for count in (before, after)]
        for layout in more:
            self.channels.freeze(layout, "it is padding")
        return Axis(known.dim, (*more[0], *known.layout, *more[1]))

    def _product(self, node: Node, name: str) -> Axis | None:
        """Products of two computed matrices, and attention: what is summed over is tied."""
        if name != "scaled_dot_product_attention":
            return self._matmul(node)
        operands = [a for a in node.args[:3] if isinstance(a, Node)]
        places = [
            (self._axes[a].dim - len(shape_of(a)), self._axes[a]) if a in self._axes else None
            for a in operands
        ]
        first, second = places[:2]
        over = [p is not None and p[0] == -1 for p in (first, second)]
        if over[0] != over[1]:
            return self._unknown(node)
        if over[0]:
            assert first is not None, "it is where the sum is"
            assert second is not None, "it is where the sum is"
            self.channels.unite(first[1].layout, second[1].layout)
        kept = [p for p in places[2:] if p is not None]
        if len(kept) != 1:
            return self._unknown(node) if kept else None
        return Axis(len(shape_of(node)) + kept[0][0], kept[0][1].layout)

    def _matmul(self, node: Node) -> Axis | None:
        a, b = (node.args[0], node.args[1])
        if min(len(shape_of(a)), len(shape_of(b))) < 2:
            return self._unknown(node)
        left, right = self._from_end(a), self._from_end(b)
        if (-1 in left) != (-2 in right):
            return self._unknown(node)
        if -1 in left:
            self.channels.unite(left.pop(-1), right.pop(-2))
        kept = {at: layout for at, layout in (left | right).items() if at >= -2}
        batch = {at: layout for at, layout in (left | right).items() if at < -2}
        for at in left.keys() & right.keys():
            self.channels.unite(left[at], right[at])
        if not kept and len(batch) == 1:
            kept, batch = batch, {}
        for layout in batch.values():  # of matrices next to each other: how many stays
            self.channels.freeze(layout, f"{describe_node(node)} computes one matrix for each")
        rank = len(shape_of(node))
        if len(kept) == 2:
            self._second[node] = Axis(rank - 2, kept.pop(-2))
        return next((Axis(rank + at, layout) for at, layout in kept.items()), None)

    def _from_end(self, value: Any) -> dict[int, Layout]:
        """The axes of a tensor that have channels, counted from its end."""
        known = [axes[value] for axes in (self._axes, self._second) if value in axes]
        return {axis.dim - len(shape_of(value)): axis.layout for axis in known}

    def _unknown(self, node: Node) -> Axis | None:
        """Freeze what goes in; what comes out has channels that stay."""
        here = describe_node(node)
        for source in node.all_input_nodes:
            self._freeze(source, f"it reaches {here}, for which there is no rule")
        computed = [n for n in node.all_input_nodes if n.name not in self._owned]
        of_inputs = computed and all(self._why.get(source) == ENDS for source in computed)
        self._why[node] = ENDS if of_inputs else f"it comes from {here}, for which there is no rule"
        return None

    def _freeze(self, value: Any, why: str) -> None:
        if isinstance(value, Node):
            owner = self._owner(value)
            if owner is not None:
                layer = self.channels.layers.get(owner)
                for layout in (layer.inputs, layer.outputs) if layer else ():
                    self.channels.freeze(layout, why)
            elif value in self._axes:
                self.channels.freeze(self._axes[value].layout, why)

    def _owner(self, value: Node) -> str | None:
        """The module whose parameter a tensor is, or is computed from; None of any other."""
        if value.name in self._owned:
            return self._owned[value.name].rpartition(".")[0]
        return self._computed.get(value)

    def _computed_by(self, node: Node) -> str | None:
        """The module from whose parameters alone a node computes; None where there is none."""
        owners = {self._owner(source) for source in node.all_input_nodes}
        return owners.pop() if len(owners) == 1 else None

    def _known(self, value: Any, dim: int) -> Layout:
        """What is on an axis of a tensor; channels that stay, where that is not known."""
        axis = self._axes.get(value)
        if axis is not None and axis.dim == dim:
            return axis.layout
        self._freeze(value, "its channels are on another axis than a layer reads")
        layout = self.channels.new(shape_of(value)[dim])
        self.channels.freeze(layout, self._why.get(value, "how it is made is not known"))
        return layout
