"""Trace a network and find the channel groups that any change of its widths must keep.

The network is traced once (`torch.export`). Every convolution and linear layer starts a group of
output channels; additions merge groups, concatenations line them up, depthwise convolutions and
normalisations pass them through. Each tensor has at most one axis of channels, which moves with
transposes and reshapes: axis 1 of an image, the last of tokens; a product of channels with channels
has two. Channels that meet an operator not listed here keep the teacher's width: a student may come
out wider than asked, never wrong.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from kdcompile.models.channel_axes import (
    moved_axis,
    piece_bounds,
    reshaped,
    shape_of,
    slice_bounds,
    split_axis,
)
from kdcompile.models.channel_groups import ENDS, Channels, Layout, length
from kdcompile.models.channel_layers import Layers, first_weight
from kdcompile.models.channel_rules import (
    CONVOLUTIONS,
    MAKE,
    MERGE,
    MOVES,
    PIXELS,
    POINTWISE,
    PRODUCTS,
    RECURRENT,
    REDUCE,
    RESHAPE,
    SPATIAL,
    SPLITS,
    WRAPPERS,
    capture_graph,
    describe_node,
    operator_name,
)
from kdcompile.models.channel_ties import Axis
from kdcompile.models.channel_trial import fitted
from kdcompile.models.examples import Example
from kdcompile.models.rows import in_order, on_tensors, ports_of


def trace(model: nn.Module, example: Example) -> Channels:
    """The channel groups of a network.

    Where channels are on another axis than 1, the network's own code may ask for its widths
    (`reshape(n, 384, -1)`): then narrower networks are tried, and groups that fail are frozen.

    Args:
        model: in inference mode.
        example: its input tensors in the order of its arguments, of any rank and type, or the shape
            of its one image [N, C, H, W].

    Raises:
        KDError: `trace-failed`, when the forward pass cannot be captured.
    """
    if (ports := ports_of(model)) is not None:
        with on_tensors(model):
            return trace(model, in_order(model, ports))
    exported = capture_graph(model, example)
    signature = exported.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk(model, owned, set(signature.inputs_to_parameters.values()))
    walk.follow(exported.graph_module)
    walk.channels.settle()
    return fitted(model, example, walk.channels, walk.heads) if walk.moved else walk.channels


class _Walk(Layers):
    """Follows the channel axis of every tensor through the graph."""

    def __init__(self, model: nn.Module, owned: dict[str, str], parameters: set[str]) -> None:
        super().__init__(model, owned, parameters)
        self._graphs: nn.Module = nn.Module()  # that hold graphs which a node runs
        self._run_by: Node | None = None
        self._given: dict[Node, Sequence[Any]] = {}  # by such a node, what its graph gives
        self._pieces: dict[Node, Layout] = {}  # of a split at no channel, each of its pieces
        self.heads: list[
            tuple[Layout, Layout]
        ] = []  # what a layer reads, and one head that it gives

    def follow(self, graphs: GraphModule) -> None:
        """Visit the nodes of a graph, and those of the graphs that they run."""
        before, self._graphs = self._graphs, graphs
        for node in graphs.graph.nodes:
            self.visit(node)
        self._graphs = before

    def visit(self, node: Node) -> None:
        """Note what a node does to channels."""
        if node.op == "placeholder":
            if node.name not in self._owned and node not in self._why | self._axes:
                self._why[node] = ENDS
        elif node.op == "output" and self._run_by is not None:
            self._given[self._run_by] = node.args[0]  # type: ignore[assignment]
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source, ENDS)
        elif node.op == "call_function" and (owner := self._computed_by(node)) is not None:
            self._computed[node] = owner
            self._why[node] = f"it comes from {describe_node(node)}, for which there is no rule"
        elif node.op == "call_function" and node.users:  # not a check that gives nothing
            axis = self._axis_of(node)
            if axis is not None:
                self._axes[node] = axis
            self._pass_second(node)

    def _axis_of(self, node: Node) -> Axis | None:
        source: Any = node.args[0] if node.args else None
        if operator_name(node) in WRAPPERS:
            self._run(node)
            return None
        if isinstance(source, Node) and source in self._given:
            return self._alike(self._given[source][node.args[1]], node)  # type: ignore[index]
        return self._call(node)

    def _call(self, node: Node) -> Axis | None:
        name, source = operator_name(node), node.args[0] if node.args else None
        known = self._axes.get(source) if isinstance(source, Node) else None
        if name in CONVOLUTIONS or name == "linear":
            if (inside := self._in_attention(node)) is not None:
                return inside
            layer = self._module(node.args[1], node)
            if layer is not None and shape_of(source):
                return (self._linear if name == "linear" else self._convolution)(node, layer)
        elif name in {"batch_norm", "layer_norm", "group_norm", "rms_norm"}:
            return self._norm(node, name)
        elif name in MERGE:
            return self._merge(node)
        elif name == "cat":
            return self._concatenate(node)
        elif name in RECURRENT | {"embedding"}:
            layer = self._module(node.args[0] if name == "embedding" else first_weight(node), node)
            if layer is not None:
                return (self._embedding if name == "embedding" else self._recurrent)(node, layer)
        elif name in PRODUCTS:
            return self._product(node, name)
        elif name in MAKE or (name == "expand_as" and known is None):
            return None
        elif known is not None:
            return self._pass(node, name, known)
        return self._unknown(node)

    def _run(self, node: Node) -> None:
        """Follow the graph that a node runs, such as code under `torch.autocast`."""
        first = next(n for n, arg in enumerate(node.args) if isinstance(arg, Node))
        held: Any = node.args[first]
        graphs = getattr(self._graphs, held.target)
        inner = (n for n in graphs.graph.nodes if n.op == "placeholder")
        for own, given in zip(inner, node.args[first + 1 :], strict=True):
            axis = self._alike(given, own) if isinstance(given, Node) else None
            if axis is not None:
                self._axes[own] = axis
        before, self._run_by = self._run_by, node
        self.follow(graphs)
        self._run_by = before

    def _alike(self, value: Any, node: Node) -> Axis | None:
        """Take a node for another one, of which everything that is known is known of it too."""
        known: Any
        for known in (self._second, self._computed, self._why):
            if value in known:
                known[node] = known[value]
        if value.name in self._owned:
            self._owned[node.name] = self._owned[value.name]
        return self._axes.get(value)

    def _pass(self, node: Node, name: str, known: Axis) -> Axis | None:
        """Operators that move the channel axis, or cut it, and compute nothing over it."""
        if name in POINTWISE or (name in SPATIAL and known.dim == 1):
            return known
        if name in RESHAPE:
            return self._reshape(node, known)
        if name == "getitem" and operator_name(node.args[0]) in RECURRENT:  # type: ignore[arg-type]
            # all outputs, or the last state of every layer and direction
            return known if node.args[1] == 0 else Axis(len(shape_of(node)) - 1, known.layout[:1])
        if name == "getitem":
            if node.args[0] in self._pieces:
                return Axis(known.dim, self._pieces[node.args[0]])  # type: ignore[index]
            return self._cut(node, known, piece_bounds(node, known.dim))
        if name in PIXELS and known.dim == len(shape_of(node)) - 3:
            return self._shuffled(node, name, known)
        if name not in MOVES | REDUCE:
            return self._unknown(node)
        dim = moved_axis(node, name, known.dim)
        self.moved |= dim != known.dim
        if dim is not None:
            return Axis(dim, known.layout)
        return self._across(node, name, known)

    def _across(self, node: Node, name: str, known: Axis) -> Axis | None:
        """Operators over the axis of channels itself."""
        if name in {"pad", "constant_pad_nd"}:
            return self._padded(node, known)
        if name in REDUCE:  # a mean over channels asks for no number of them
            return None
        if name in SPLITS:
            if name != "slice":
                return self._even(node, known)
            if node.args[4:5] not in ((), (1,)):
                return self._unknown(node)
            return self._cut(node, known, slice_bounds(node, known.dim))
        return self._unknown(node)

    def _pass_second(self, node: Node) -> None:
        """The other axis of a product of channels with channels."""
        name = operator_name(node)
        for source in node.all_input_nodes:
            known = self._second.get(source)
            if known is None or name in PRODUCTS:
                continue
            dim: int | None = known.dim
            if name in MERGE:
                dim = known.dim + len(shape_of(node)) - len(shape_of(source))
                for other in node.all_input_nodes:
                    place = dim - len(shape_of(node)) + len(shape_of(other))
                    if other is not source and place >= 0 and shape_of(other)[place] > 1:
                        self._tie(other, place, known.layout, node)
            elif name not in POINTWISE:
                dim = moved_axis(node, name, known.dim) if name in MOVES | REDUCE else None
            if dim is not None:
                self._second[node] = Axis(dim, known.layout)
            elif name not in REDUCE:
                why = f"it reaches {describe_node(node)}, for which there is no rule"
                self.channels.freeze(known.layout, why)

    def _reshape(self, node: Node, known: Axis) -> Axis | None:
        sizes = shape_of(node.args[0]), shape_of(node)
        # a factor of all runs' repeats, which a reshape may cut off again
        each = math.gcd(*(run[2] for run in known.layout))
        found = reshaped(*sizes, known.dim, each)
        if found is None:
            return self._heads(node, known, split_axis(*sizes, known.dim))
        dim, before, after = found
        if operator_name(node) != "flatten":  # which names no number
            self.moved = True
            self._made_from(node, known.layout)
        return Axis(dim, tuple((g, n, e // each * after) for g, n, e in known.layout) * before)

    def _heads(self, node: Node, known: Axis, split: tuple[int, int] | None) -> Axis | None:
        """Heads of attention, or groups of a shuffle: each as wide as the others."""
        part = self.channels.divide(known.layout, split[1]) if split is not None else None
        if split is None or part is None:
            return self._unknown(node)
        self.moved = True
        self._made_from(node, part)
        return Axis(split[0], part)

    def _made_from(self, node: Node, part: Layout) -> None:
        """Code may take the size that it gives a layer's output from what the layer reads."""
        source: Any = node.args[0]
        while operator_name(source) in POINTWISE:
            source = source.args[0]
        made_by = operator_name(source)
        if made_by in CONVOLUTIONS | {"linear"} and source.args[0] in self._axes:
            read = self._axes[source.args[0]].layout
            if length(read) % length(part) == 0:
                self.heads.append((read, part))

    def _even(self, node: Node, known: Axis) -> Axis:
        """Pieces of one size stay of one size: code that halves a tensor gives two alike."""
        sizes = [value.shape[known.dim] for value in node.meta["val"]]
        if len({*sizes}) > 1:
            return known
        if len(self.channels.expand(known.layout)) == 1:
            self.channels.divide(known.layout, len(sizes))
        starts = range(0, sum(sizes), sizes[0])
        pieces = [self.channels.part(known.layout, start, sizes[0]) for start in starts]
        runs = self.channels.expand(known.layout)
        if None in pieces and not math.gcd(*(each for _, _, each in runs)) % len(sizes):
            # a shuffle again after a shuffle: which channels are in a piece depends on how many
            # there are, but each piece has its share of the places of every channel
            self.moved = True
            self._pieces[node] = tuple((group, n, each // len(sizes)) for group, n, each in runs)
            return known
        for piece in pieces[1:]:
            if piece is not None and pieces[0] is not None:
                self.channels.unite(pieces[0], piece)
        return known

    def _cut(self, node: Node, known: Axis, bounds: tuple[int, int] | None) -> Axis | None:
        """Channels from the first bound, as many as the second; all of them where it has none."""
        if bounds is None:
            return known
        layout = self.channels.part(known.layout, *bounds)
        if layout is None:
            return self._unknown(node)
        self.moved = True  # code that cuts at a number asks for the width
        return Axis(known.dim, layout)
