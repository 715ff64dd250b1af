"""Channel groups of a network: the constraints that any change of its widths must keep.

The network is traced once (`torch.export`). Every convolution and linear layer starts a group of
output channels; additions merge groups, concatenations line them up, depthwise convolutions pass
them through. Channels that meet an operator not listed here keep the teacher's width: a student
may come out wider than asked, never wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from kdcompile.models.channel_rules import (
    CONVOLUTIONS,
    MERGE,
    PASS,
    capture_graph,
    describe_node,
    operator_name,
    why_fixed,
)

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


def trace(model: nn.Module, shape: Sequence[int]) -> Channels:
    """The channel groups of a network.

    Args:
        model: in inference mode.
        shape: input [N, C, H, W].

    Raises:
        KDError: `trace-failed`, when the forward pass cannot be captured.
    """
    exported = capture_graph(model, shape)
    signature = exported.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk(model, owned)
    for node in exported.graph.nodes:
        walk.visit(node)
    return walk.channels


class _Walk:
    """Follows the channel axis of every tensor through the graph."""

    def __init__(self, model: nn.Module, owned: dict[str, str]) -> None:
        self.channels = Channels()
        self._model, self._owned = model, owned
        self._layout: dict[Node, Layout] = {}

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            if node.name not in self._owned:
                self._layout[node] = self._fixed(node, ENDS)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source, ENDS)
        elif node.op == "call_function":
            layout = self._call(node)
            if layout is not None:
                self._layout[node] = layout

    def _call(self, node: Node) -> Layout | None:
        name = operator_name(node)
        if name in CONVOLUTIONS or name == "linear":
            layer = self._module(node.args[1], node)
            if layer is not None and self._shape(node.args[0]):
                return (
                    self._convolution(node, layer)
                    if name != "linear"
                    else self._linear(node, layer)
                )
        elif name == "batch_norm":
            return self._batch_norm(node)
        elif name in PASS or (name == "mean" and self._spatial(node)):
            return self._known(node.args[0])
        elif name in MERGE:
            return self._merge(node)
        elif name == "cat" and (node.args[1] if len(node.args) > 1 else 0) == 1:
            parts: Any = node.args[0]
            return tuple(run for part in parts for run in self._known(part))
        elif name in {"flatten", "view", "reshape"}:
            return self._flatten(node)
        return self._unknown(node)

    def _convolution(self, node: Node, name: str) -> Layout:
        module = self._model.get_submodule(name)
        source, groups = self._known(node.args[0]), int(module.groups)  # type: ignore[arg-type]
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
        return self._layer(node, name, Layer(type(module), source, made, groups))

    def _linear(self, node: Node, name: str) -> Layout:
        module = self._model.get_submodule(name)
        source = self._known(node.args[0])
        if len(self._shape(node.args[0])) != 2:
            why = f"a linear layer on {self._shape(node.args[0])}, which is not [N, C]"
            self._freeze(node.args[0], f"it reaches {describe_node(node)}: {why}")
            source = self.channels.new(int(module.in_features))  # type: ignore[arg-type]
            self.channels.freeze(source, why)
        made = self.channels.new(int(module.out_features))  # type: ignore[arg-type]
        return self._layer(node, name, Layer(type(module), source, made))

    def _layer(self, node: Node, name: str, layer: Layer) -> Layout:
        """Register a layer; one that runs twice has its channels tied."""
        self.channels.nodes.setdefault(name, []).append(node)
        before = self.channels.layers.setdefault(name, layer)
        if before is not layer:
            self.channels.unite(before.inputs, layer.inputs)
            self.channels.unite(before.outputs, layer.outputs)
        return layer.outputs

    def _batch_norm(self, node: Node) -> Layout:
        source = self._known(node.args[0])
        names = (self._module(value, node) for value in node.args[1:5])
        name = next((n for n in names if n is not None), None)
        if name is None:
            self.channels.freeze(
                source, f"it reaches {describe_node(node)}, which cannot be resized"
            )
            return source
        kind = type(self._model.get_submodule(name))
        return self._layer(node, name, Layer(kind, source, source))

    def _merge(self, node: Node) -> Layout | None:
        tensors = [a for a in node.args if isinstance(a, Node)]
        # a learnt scalar has no channels
        tensors = [t for t in tensors if t.name not in self._owned or math.prod(self._shape(t)) > 1]
        if not tensors or any(t.name in self._owned for t in tensors):
            return self._unknown(node)
        channels = self._axis(node)
        wide = [t for t in tensors if self._axis(t) == channels]
        for narrow in tensors:
            if narrow not in wide:
                self._freeze(narrow, f"{describe_node(node)} spreads it over other channels")
        first = self._known(wide[0])
        for other in wide[1:]:
            self.channels.unite(first, self._known(other))
        return first

    def _flatten(self, node: Node) -> Layout | None:
        before, after = self._shape(node.args[0]), self._shape(node)
        if len(before) == 4 and len(after) == 2 and after[1] == math.prod(before[1:]):
            area = before[2] * before[3]
            return tuple((g, n, each * area) for g, n, each in self._known(node.args[0]))
        if before[:2] == after[:2] and len(before) >= 2:
            return self._known(node.args[0])
        return self._unknown(node)

    def _unknown(self, node: Node) -> Layout | None:
        """Freeze what goes in; what comes out is of fixed width."""
        for source in node.all_input_nodes:
            self._freeze(source, f"it reaches {describe_node(node)}, for which there is no rule")
        return self._fixed(node, f"it comes from {describe_node(node)}, for which there is no rule")

    def _fixed(self, node: Node, why: str) -> Layout:
        layout = self.channels.new(self._axis(node))
        self.channels.freeze(layout, why)
        return layout

    def _freeze(self, value: Any, why: str) -> None:
        if isinstance(value, Node):
            if value.name in self._owned:
                name = self._owned[value.name].rpartition(".")[0]
                layer = self.channels.layers.get(name)
                for layout in (layer.inputs, layer.outputs) if layer else ():
                    self.channels.freeze(layout, why)
            elif value in self._layout:
                self.channels.freeze(self._layout[value], why)

    def _known(self, value: Any) -> Layout:
        layout = self._layout.get(value)
        return layout if layout is not None else self._fixed(value, "how it is made is not known")

    def _module(self, value: Any, node: Node) -> str | None:
        """The resizable module that a parameter which a node reads belongs to."""
        if not isinstance(value, Node) or value.name not in self._owned:
            return None
        name = self._owned[value.name].rpartition(".")[0]
        if name not in self.channels.layers and name not in self.channels.fixed:
            why = why_fixed(self._model.get_submodule(name), self._shape(node.args[0]))
            if why is not None:
                self.channels.fixed[name] = why
        return None if name in self.channels.fixed else name

    def _spatial(self, node: Node) -> bool:
        axes: Any = node.args[1]
        return all(d in (2, 3, -1, -2) for d in axes) and len(self._shape(node.args[0])) == 4

    def _shape(self, value: Any) -> list[int]:
        found = value.meta.get("val") if isinstance(value, Node) else None
        return list(found.shape) if isinstance(found, torch.Tensor) else []

    def _axis(self, value: Any) -> int:
        shape = self._shape(value)
        return int(shape[1]) if len(shape) > 1 else 1
