"""Trace a network and find the channel groups that any change of its widths must keep.

The network is traced once (`torch.export`). Every convolution and linear layer starts a group of
output channels; additions merge groups, concatenations line them up, depthwise convolutions and
normalisations pass them through. Each tensor has at most one axis of channels, which moves with
transposes and reshapes: axis 1 of an image, the last of tokens. Channels that meet an operator not
listed here keep the teacher's width: a student may come out wider than asked, never wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from kdcompile.models.channel_axes import moved_axis, reshaped
from kdcompile.models.channel_groups import ENDS, Channels, Layer, Layout
from kdcompile.models.channel_rules import (
    CONVOLUTIONS,
    MERGE,
    MOVES,
    POINTWISE,
    REDUCE,
    RESHAPE,
    SPATIAL,
    SPLITS,
    capture_graph,
    describe_node,
    operator_name,
)
from kdcompile.models.channel_trial import freeze_what_fails
from kdcompile.models.resize import why_fixed


def trace(model: nn.Module, shape: Sequence[int]) -> Channels:
    """The channel groups of a network.

    Where channels are on another axis than 1, the network's own code may ask for its widths
    (`reshape(n, 384, -1)`): then narrower networks are tried, and groups that fail are frozen.

    Args:
        model: in inference mode.
        shape: input [N, C, H, W].

    Raises:
        KDError: `trace-failed`, when the forward pass cannot be captured.
    """
    exported = capture_graph(model, shape)
    signature = exported.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk(model, owned, set(signature.inputs_to_parameters.values()))
    for node in exported.graph.nodes:
        walk.visit(node)
    walk.channels.settle()
    if walk.moved:
        freeze_what_fails(model, shape, walk.channels)
    return walk.channels


@dataclass(frozen=True)
class _Axis:
    """The axis of a tensor that has channels, counted from 0, and what they are."""

    dim: int
    layout: Layout


class _Walk:
    """Follows the channel axis of every tensor through the graph."""

    def __init__(self, model: nn.Module, owned: dict[str, str], parameters: set[str]) -> None:
        self.channels = Channels()
        self.moved = False  # whether a rule was used that the network's own code may not keep
        self._model, self._owned, self._parameters = model, owned, parameters
        self._axes: dict[Node, _Axis] = {}
        self._why: dict[Node, str] = {}  # of tensors whose channels are not known

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            if node.name not in self._owned and len(shape_of(node)) > 1:
                layout = self.channels.new(shape_of(node)[1])
                self.channels.freeze(layout, ENDS)
                self._axes[node] = _Axis(1, layout)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source, ENDS)
        elif node.op == "call_function" and node.users:  # not a check that gives nothing
            axis = self._call(node)
            if axis is not None:
                self._axes[node] = axis

    def _call(self, node: Node) -> _Axis | None:
        name, source = operator_name(node), node.args[0] if node.args else None
        known = self._axes.get(source) if isinstance(source, Node) else None
        if name in CONVOLUTIONS or name == "linear":
            layer = self._module(node.args[1], node)
            if layer is not None and shape_of(source):
                return (self._linear if name == "linear" else self._convolution)(node, layer)
        elif name in {"batch_norm", "layer_norm", "group_norm", "rms_norm"}:
            return self._norm(node, name)
        elif name in MERGE:
            return self._merge(node)
        elif name == "cat":
            return self._concatenate(node)
        elif known is not None:
            return self._pass(node, name, known)
        return self._unknown(node)

    def _pass(self, node: Node, name: str, known: _Axis) -> _Axis | None:
        """Operators that move the channel axis, or cut it, and compute nothing over it."""
        if name in POINTWISE or (name in SPATIAL and known.dim == 1):
            return known
        if name in RESHAPE:
            return self._reshape(node, known)
        if name == "getitem":
            return self._piece(node, known)
        if name not in MOVES | REDUCE:
            return self._unknown(node)
        dim = moved_axis(node, name, known.dim)
        self.moved |= dim != known.dim
        if dim is not None:
            return _Axis(dim, known.layout)
        if name in REDUCE:  # a mean over channels asks for no number of them
            return None
        if name in SPLITS:
            return self._slice(node, known) if name == "slice" else self._even(node, known)
        return self._unknown(node)

    def _convolution(self, node: Node, name: str) -> _Axis:
        module = self._model.get_submodule(name)
        source, groups = self._known(node.args[0], 1), int(module.groups)  # type: ignore[arg-type]
        inputs, outputs = int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]
        if groups == inputs == outputs:
            made = source
        else:
            made = self.channels.new(outputs, groups)
            if groups == inputs > 1:
                why = f"{name} is a depthwise convolution that multiplies its channels"
                for layout in (source, made):
                    self.channels.freeze(layout, why)
            elif groups > 1:
                self.channels.divisible(source, groups)
        return self._layer(node, name, Layer(type(module), source, made, groups), 1)

    def _linear(self, node: Node, name: str) -> _Axis:
        module = self._model.get_submodule(name)
        last = len(shape_of(node)) - 1
        known = self._axes.get(node.args[0])  # type: ignore[arg-type]
        if known is not None and known.dim != last:
            # it mixes positions: its own widths are those of the image
            self.channels.fixed[name] = "it mixes positions, not channels"
            return known
        self.moved |= last != 1
        source = self._known(node.args[0], last)
        made = self.channels.new(int(module.out_features))  # type: ignore[arg-type]
        return self._layer(node, name, Layer(type(module), source, made), last)

    def _layer(self, node: Node, name: str, layer: Layer, dim: int) -> _Axis:
        """Register a layer; one that runs twice has its channels tied."""
        self.channels.nodes.setdefault(name, []).append(node)
        before = self.channels.layers.setdefault(name, layer)
        if before is not layer:
            self.channels.unite(before.inputs, layer.inputs)
            self.channels.unite(before.outputs, layer.outputs)
        return _Axis(dim, layer.outputs)

    def _norm(self, node: Node, operator: str) -> _Axis | None:
        """Batch and group norm are of axis 1, layer and RMS norm of the last."""
        last = len(shape_of(node.args[0])) - 1
        over: Any = node.args[1]
        known = self._axes.get(node.args[0])  # type: ignore[arg-type]
        at_last = operator in {"layer_norm", "rms_norm"}
        if at_last and known is not None and known.dim <= last - len(over):
            return known  # of other axes alone
        values = node.args[1:5] if not at_last else node.args[2:4]
        if operator == "group_norm":
            values = node.args[2:4]
        names = (self._module(value, node) for value in values)
        name = next((n for n in names if n is not None), None)
        if name is None or (at_last and len(over) != 1):
            return self._unknown(node)
        dim = last if at_last else 1
        source = self._known(node.args[0], dim)
        if operator == "group_norm":
            self.channels.divisible(source, int(over))
        self.moved |= operator != "batch_norm"
        kind = type(self._model.get_submodule(name))
        return self._layer(node, name, Layer(kind, source, source), dim)

    def _merge(self, node: Node) -> _Axis | None:
        rank = len(shape_of(node))
        tensors = [a for a in node.args if isinstance(a, Node) and math.prod(shape_of(a)) > 1]
        known = [(t, self._axes[t]) for t in tensors if t in self._axes]
        dims = {axis.dim + rank - len(shape_of(t)) for t, axis in known}
        if len(dims) != 1:
            return self._unknown(node)
        (dim,) = dims
        size = shape_of(node)[dim]
        first: Layout | None = None
        for tensor in tensors:
            place = dim - rank + len(shape_of(tensor))
            if place < 0 or shape_of(tensor)[place] != size:
                self._freeze(tensor, f"{describe_node(node)} spreads it over other channels")
            elif tensor in self._axes:
                layout = self._axes[tensor].layout
                if first is None:
                    first = layout
                else:
                    self.channels.unite(first, layout)
        if first is None:
            return self._unknown(node)
        for tensor in tensors:
            place = dim - rank + len(shape_of(tensor))
            if tensor not in self._axes and place >= 0 and shape_of(tensor)[place] == size:
                self._tie(tensor, place, first, node)
        return _Axis(dim, first)

    def _tie(self, tensor: Node, dim: int, layout: Layout, node: Node) -> None:
        """Tie a tensor that is computed from one parameter alone to what it is merged with."""
        while tensor.name not in self._owned:
            name, source = operator_name(tensor), tensor.args[0] if tensor.args else None
            inner = None
            if isinstance(source, Node) and len(tensor.all_input_nodes) == 1:
                inner = dim if name in POINTWISE else _source_dim(tensor, name, dim)
            if inner is None:
                why = self._why.get(tensor, f"{describe_node(node)} joins it with an unknown one")
                self.channels.freeze(layout, why)
                return
            assert isinstance(source, Node), "it is the one input"
            tensor, dim = source, inner
        name = self._owned[tensor.name]
        owner = self.channels.layers.get(name.rpartition(".")[0])
        known, before = self.channels.parameters.get(name, (dim, layout))
        if name not in self._parameters or owner is not None or known != dim:
            for one in (layout, before):
                self.channels.freeze(one, f"{describe_node(node)} reads {name}, which stays")
            return
        self.channels.parameters[name] = (dim, layout)
        self.moved = True
        self.channels.unite(before, layout)

    def _concatenate(self, node: Node) -> _Axis | None:
        parts: Any = node.args[0]
        rank = len(shape_of(node))
        along = int(node.args[1] if len(node.args) > 1 else 0) % max(rank, 1)  # type: ignore[call-overload]
        dims = {self._axes[part].dim for part in parts if part in self._axes}
        if len(dims) != 1:
            return self._unknown(node)
        (dim,) = dims
        if dim == along:
            return _Axis(dim, tuple(run for part in parts for run in self._known(part, dim)))
        first = next(self._axes[part].layout for part in parts if part in self._axes)
        for part in parts:
            if part in self._axes:
                self.channels.unite(first, self._axes[part].layout)
            else:
                self._tie(part, dim, first, node)
        return _Axis(dim, first)

    def _reshape(self, node: Node, known: _Axis) -> _Axis | None:
        found = reshaped(shape_of(node.args[0]), shape_of(node), known.dim)
        if found is None:
            return self._unknown(node)
        dim, before, after = found
        self.moved |= dim != 1 or before > 1
        return _Axis(dim, tuple((g, n, each * after) for g, n, each in known.layout) * before)

    def _even(self, node: Node, known: _Axis) -> _Axis:
        """Pieces of one size stay of one size: code that halves a tensor gives two alike."""
        sizes = [value.shape[known.dim] for value in node.meta["val"]]
        if len({*sizes}) == 1:
            starts = range(0, sum(sizes), sizes[0])
            pieces = [self.channels.part(known.layout, start, sizes[0]) for start in starts]
            for piece in pieces[1:]:
                if piece is not None and pieces[0] is not None:
                    self.channels.unite(pieces[0], piece)
        return known

    def _piece(self, node: Node, known: _Axis) -> _Axis | None:
        """One of the tensors that a split gives."""
        source: Any = node.args[0]
        name = operator_name(source)
        if name not in SPLITS or moved_axis(source, name, known.dim) is not None:
            return known
        sizes = [value.shape[known.dim] for value in source.meta["val"]]
        index = int(node.args[1])  # type: ignore[call-overload]
        return self._cut(node, known, sum(sizes[:index]), sizes[index])

    def _slice(self, node: Node, known: _Axis) -> _Axis | None:
        if len(node.args) > 4 and node.args[4] != 1:
            return self._unknown(node)
        full, size = shape_of(node.args[0])[known.dim], shape_of(node)[known.dim]
        start = int(node.args[2] or 0) if len(node.args) > 2 else 0  # type: ignore[call-overload]
        return self._cut(node, known, start % full, size)

    def _cut(self, node: Node, known: _Axis, start: int, size: int) -> _Axis | None:
        layout = self.channels.part(known.layout, start, size)
        if layout is None:
            return self._unknown(node)
        self.moved = True  # code that cuts at a number asks for the width
        return _Axis(known.dim, layout)

    def _unknown(self, node: Node) -> None:
        """Freeze what goes in; what comes out has channels that stay."""
        here = describe_node(node)
        for source in node.all_input_nodes:
            self._freeze(source, f"it reaches {here}, for which there is no rule")
        self._why[node] = f"it comes from {here}, for which there is no rule"

    def _freeze(self, value: Any, why: str) -> None:
        if isinstance(value, Node):
            if value.name in self._owned:
                name = self._owned[value.name].rpartition(".")[0]
                layer = self.channels.layers.get(name)
                for layout in (layer.inputs, layer.outputs) if layer else ():
                    self.channels.freeze(layout, why)
            elif value in self._axes:
                self.channels.freeze(self._axes[value].layout, why)

    def _known(self, value: Any, dim: int) -> Layout:
        """What is on an axis of a tensor; channels that stay, where that is not known."""
        axis = self._axes.get(value)
        if axis is not None and axis.dim == dim:
            return axis.layout
        self._freeze(value, "its channels are on another axis than a layer reads")
        layout = self.channels.new(shape_of(value)[dim])
        self.channels.freeze(layout, self._why.get(value, "how it is made is not known"))
        return layout

    def _module(self, value: Any, node: Node) -> str | None:
        """The resizable module that a parameter which a node reads belongs to."""
        if not isinstance(value, Node) or value.name not in self._owned:
            return None
        name = self._owned[value.name].rpartition(".")[0]
        if name not in self.channels.layers and name not in self.channels.fixed:
            why = why_fixed(self._model.get_submodule(name), shape_of(node.args[0]))
            if why is not None:
                self.channels.fixed[name] = why
        return None if name in self.channels.fixed else name


def _source_dim(node: Node, name: str, dim: int) -> int | None:
    """The axis of a node's input that its axis `dim` is made of."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if name in RESHAPE:
        found = reshaped(after, before, dim)
        return found[0] if found is not None and found[1:] == (1, 1) else None
    places = (d for d in range(len(before)) if moved_axis(node, name, d) == dim)
    return next(places, None) if name in MOVES else None


def shape_of(value: Any) -> list[int]:
    """The sizes of a tensor of the graph; empty of anything else."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return list(found.shape) if isinstance(found, torch.Tensor) else []
