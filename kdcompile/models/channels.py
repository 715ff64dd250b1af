"""Which channels of a network belong together: the constraints that any change of width must keep.

The network is traced once (`torch.export`). Every convolution and linear layer starts a group of
output channels; additions merge groups, concatenations line them up, depthwise convolutions pass
them through. Channels that meet an operator not listed here keep the teacher's width: a student
may come out wider than asked, never wrong.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from kdcompile.errors import KDError
from kdcompile.models.shrunk import RESIZABLE

# one run of channels: the group it is tied to, its length, and how often each channel repeats
Run = tuple[int, int, int]
Layout = tuple[Run, ...]

PASS = {
    "relu", "relu_", "relu6", "relu6_", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardtanh",
    "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "leaky_relu", "leaky_relu_", "elu",
    "elu_", "mish", "softplus", "dropout", "dropout_", "feature_dropout", "clone", "contiguous",
    "to", "neg", "abs", "exp", "sqrt", "square", "clamp", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "pad", "constant_pad_nd", "alias", "detach", "_to_copy",
}  # fmt: skip
MERGE = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"}


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

    def freeze(self, layout: Layout) -> None:
        """Keep these channels at the teacher's width."""
        self.frozen |= {self.root(group) for group, _, _ in layout}

    def unite(self, a: Layout, b: Layout) -> None:
        """Tie two layouts channel by channel; where their runs differ both are frozen."""
        if [run[1:] for run in a] != [run[1:] for run in b]:
            self.freeze(a)
            self.freeze(b)
            return
        for (left, _, _), (right, _, _) in zip(a, b, strict=True):
            one, other = self.root(left), self.root(right)
            if one != other:
                self._parent[other] = one
                self.multiple[one] = math.lcm(self.multiple[one], self.multiple[other])
                if other in self.frozen:
                    self.frozen.add(one)

    def divisible(self, layout: Layout, by: int) -> None:
        """Keep the width of a single run divisible; a layout of several runs is frozen."""
        if len(layout) != 1:
            self.freeze(layout)
            return
        root = self.root(layout[0][0])
        self.multiple[root] = math.lcm(self.multiple[root], by)

    def width(self, layout: Layout, ratio: float, tile: int) -> int:
        """Channels of a layout when every free group is scaled by `ratio`."""
        return sum(self._group_width(group, ratio, tile) * each for group, _, each in layout)

    def _group_width(self, group: int, ratio: float, tile: int) -> int:
        root = self.root(group)
        full = self.size[root]
        if root in self.frozen:
            return full
        unit = math.lcm(tile, self.multiple[root])
        if unit >= full:
            unit = self.multiple[root]
        return min(full, max(unit, round(full * ratio / unit) * unit))


def trace(model: nn.Module, shape: Sequence[int]) -> Channels:
    """The channel groups of a network.

    Args:
        model: in inference mode.
        shape: input [N, C, H, W].

    Raises:
        KDError: `trace-failed`, when the forward pass cannot be captured.
    """
    try:
        device = next((p.device for p in model.parameters()), None)
        exported = torch.export.export(model, (torch.zeros(*shape, device=device),))
    except Exception as error:
        raise KDError(
            "trace-failed",
            f"the teacher's forward pass cannot be captured: {str(error).strip().splitlines()[0]}",
            where=type(model).__name__,
            fix='write the student yourself: student.family = "student.py:build"',
        ) from error
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
                self._layout[node] = self._fixed(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source)
        elif node.op == "call_function":
            layout = self._call(node)
            if layout is not None:
                self._layout[node] = layout

    def _call(self, node: Node) -> Layout | None:
        name = operator_name(node)
        if name in CONVOLUTIONS or name == "linear":
            layer = self._module(node.args[1])
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
            if groups > 1:
                self.channels.divisible(source, groups)
        return self._layer(node, name, Layer(type(module), source, made, groups))

    def _linear(self, node: Node, name: str) -> Layout:
        module = self._model.get_submodule(name)
        source = self._known(node.args[0])
        if len(self._shape(node.args[0])) != 2:
            self._freeze(node.args[0])
            source = self.channels.new(int(module.in_features))  # type: ignore[arg-type]
            self.channels.freeze(source)
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
        name = next((n for n in map(self._module, node.args[1:5]) if n is not None), None)
        if name is None:
            self.channels.freeze(source)
            return source
        kind = type(self._model.get_submodule(name))
        return self._layer(node, name, Layer(kind, source, source))

    def _merge(self, node: Node) -> Layout | None:
        tensors = [a for a in node.args if isinstance(a, Node)]
        if any(t.name in self._owned for t in tensors):
            return self._unknown(node)
        channels = self._axis(node)
        wide = [t for t in tensors if self._axis(t) == channels]
        for narrow in tensors:
            if narrow not in wide:
                self._freeze(narrow)
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
            self._freeze(source)
        return self._fixed(node)

    def _fixed(self, node: Node) -> Layout:
        layout = self.channels.new(self._axis(node))
        self.channels.freeze(layout)
        return layout

    def _freeze(self, value: Any) -> None:
        if isinstance(value, Node):
            if value.name in self._owned:
                name = self._owned[value.name].rpartition(".")[0]
                layer = self.channels.layers.get(name)
                for layout in (layer.inputs, layer.outputs) if layer else ():
                    self.channels.freeze(layout)
            elif value in self._layout:
                self.channels.freeze(self._layout[value])

    def _known(self, value: Any) -> Layout:
        layout = self._layout.get(value)
        return layout if layout is not None else self._fixed(value)

    def _module(self, value: Any) -> str | None:
        """The resizable module that a parameter node belongs to."""
        if not isinstance(value, Node) or value.name not in self._owned:
            return None
        name = self._owned[value.name].rpartition(".")[0]
        return name if type(self._model.get_submodule(name)) in RESIZABLE else None

    def _spatial(self, node: Node) -> bool:
        axes: Any = node.args[1]
        return all(d in (2, 3, -1, -2) for d in axes) and len(self._shape(node.args[0])) == 4

    def _shape(self, value: Any) -> list[int]:
        found = value.meta.get("val") if isinstance(value, Node) else None
        return list(found.shape) if isinstance(found, torch.Tensor) else []

    def _axis(self, value: Any) -> int:
        shape = self._shape(value)
        return int(shape[1]) if len(shape) > 1 else 1


def operator_name(node: Node) -> str:
    """The operator that a node calls, without its namespace: `conv2d`, `relu`."""
    target = node.target
    if target is operator.getitem:
        return "getitem"
    return str((getattr(target, "_schema", None) and target._schema.name) or target).split("::")[-1]  # type: ignore[union-attr]
