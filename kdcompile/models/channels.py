"""Trace a network and find the channel groups that any change of its widths must keep.

The network is traced once (`torch.export`). Every convolution and linear layer starts a group of
output channels; additions merge groups, concatenations line them up, depthwise convolutions and
normalisations pass them through. Each tensor has at most one axis of channels, which moves with
transposes and reshapes: axis 1 of an image, the last of tokens. Channels that meet an operator not
listed here keep the teacher's width: a student may come out wider than asked, never wrong.
"""

from typing import Any

from torch import nn
from torch.fx import Node

from kdcompile.models.channel_axes import (
    moved_axis,
    piece_bounds,
    reshaped,
    shape_of,
    slice_bounds,
    split_axis,
)
from kdcompile.models.channel_groups import ENDS, Channels, Layer, Layout
from kdcompile.models.channel_rules import (
    CONVOLUTIONS,
    MAKE,
    MERGE,
    MOVES,
    POINTWISE,
    PRODUCTS,
    RECURRENT,
    REDUCE,
    RESHAPE,
    SPATIAL,
    SPLITS,
    capture_graph,
    operator_name,
)
from kdcompile.models.channel_ties import Axis, Ties
from kdcompile.models.channel_trial import fitted
from kdcompile.models.examples import Example
from kdcompile.models.resize import why_fixed


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
    exported = capture_graph(model, example)
    signature = exported.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk(model, owned, set(signature.inputs_to_parameters.values()))
    for node in exported.graph.nodes:
        walk.visit(node)
    walk.channels.settle()
    return fitted(model, example, walk.channels, walk.heads) if walk.moved else walk.channels


class _Walk(Ties):
    """Follows the channel axis of every tensor through the graph."""

    def __init__(self, model: nn.Module, owned: dict[str, str], parameters: set[str]) -> None:
        super().__init__(owned, parameters)
        self._model = model
        self._shared = _shared(model)
        self.heads: list[tuple[Layout, Layout]] = []  # what a split layer reads, and one head

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            if node.name not in self._owned:
                self._why[node] = ENDS
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source, ENDS)
        elif node.op == "call_function" and node.users:  # not a check that gives nothing
            axis = self._call(node)
            if axis is not None:
                self._axes[node] = axis

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
            layer = self._module(node.args[0] if name == "embedding" else _first(node), node)
            if layer is not None:
                return (self._embedding if name == "embedding" else self._recurrent)(node, layer)
        elif name in PRODUCTS:
            return self._product(node, name)
        elif name in MAKE or (name == "expand_as" and known is None):
            return None
        elif known is not None:
            return self._pass(node, name, known)
        return self._unknown(node)

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
            return self._cut(node, known, piece_bounds(node, known.dim))
        if name not in MOVES | REDUCE:
            return self._unknown(node)
        dim = moved_axis(node, name, known.dim)
        self.moved |= dim != known.dim
        if dim is not None:
            return Axis(dim, known.layout)
        if name in REDUCE:  # a mean over channels asks for no number of them
            return None
        if name in SPLITS:
            if name != "slice":
                return self._even(node, known)
            if node.args[4:5] not in ((), (1,)):
                return self._unknown(node)
            return self._cut(node, known, slice_bounds(node, known.dim))
        return self._unknown(node)

    def _convolution(self, node: Node, name: str) -> Axis:
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

    def _linear(self, node: Node, name: str) -> Axis | None:
        module = self._model.get_submodule(name)
        last = len(shape_of(node)) - 1
        if isinstance(module, nn.MultiheadAttention):
            self._attend(node, name, module)
            return None
        known = self._axes.get(node.args[0])  # type: ignore[arg-type]
        if known is not None and known.dim != last:
            # it mixes positions: its own widths are those of the image
            self.channels.fixed[name] = "it mixes positions, not channels"
            return known
        self.moved |= last != 1
        source = self._known(node.args[0], last)
        made = self.channels.new(int(module.out_features))  # type: ignore[arg-type]
        return self._layer(node, name, Layer(type(module), source, made), last)

    def _attend(self, node: Node, name: str, module: nn.MultiheadAttention) -> None:
        """torch's own attention on one tensor: it gives the channels that it reads, by heads."""
        last = len(shape_of(node)) - 1
        source = self._known(node.args[0], last)
        self.channels.divisible(source, module.num_heads)
        self.moved = True
        self._layer(node, name, Layer(type(module), source, source), last)
        self._why[node] = f"it is inside of {name}"

    def _embedding(self, node: Node, name: str) -> Axis:
        module = self._model.get_submodule(name)
        made = self.channels.new(int(module.embedding_dim))  # type: ignore[arg-type]
        return self._layer(node, name, Layer(type(module), made, made), len(shape_of(node)) - 1)

    def _recurrent(self, node: Node, name: str) -> Axis:
        """All layers and both directions of an LSTM or a GRU have one hidden size."""
        module: Any = self._model.get_submodule(name)
        last = len(shape_of(node.args[0])) - 1
        hidden = self.channels.new(module.hidden_size)
        self._layer(node, name, Layer(type(module), self._known(node.args[0], last), hidden), last)
        hidden = self.channels.layers[name].outputs
        self.moved = True  # a state that its caller makes has the hidden size too
        states: Any = node.args[1]
        for state in states if isinstance(states, list | tuple) else [states]:
            if state in self._axes and self._axes[state].dim == len(shape_of(state)) - 1:
                self.channels.unite(self._axes[state].layout, hidden)
            elif state.all_input_nodes or state.op == "placeholder":
                self._freeze(state, f"it is a state of {name}")
                self._tie(state, len(shape_of(state)) - 1, hidden, node)
        return Axis(last, hidden * (1 + module.bidirectional))

    def _in_attention(self, node: Node) -> Axis | None:
        """What the last layer of such an attention gives."""
        weight = node.args[1]
        owned = self._owned.get(weight.name, "") if isinstance(weight, Node) else ""
        layer = self.channels.layers.get(owned.removesuffix(".out_proj.weight"))
        if layer is None or not issubclass(layer.kind, nn.MultiheadAttention):
            return None
        return Axis(len(shape_of(node)) - 1, layer.outputs)

    def _layer(self, node: Node, name: str, layer: Layer, dim: int) -> Axis:
        """Register a layer; one that runs twice has its channels tied."""
        self.channels.nodes.setdefault(name, []).append(node)
        before = self.channels.layers.setdefault(name, layer)
        if before is not layer:
            self.channels.unite(before.inputs, layer.inputs)
            self.channels.unite(before.outputs, layer.outputs)
        return Axis(dim, layer.outputs)

    def _norm(self, node: Node, operator: str) -> Axis | None:
        """Batch and group norm are of axis 1, layer and RMS norm of the last."""
        last = len(shape_of(node.args[0])) - 1
        over: Any = node.args[1]
        known = self._axes.get(node.args[0])  # type: ignore[arg-type]
        at_last = operator in {"layer_norm", "rms_norm"}
        if at_last and known is not None and known.dim <= last - len(over):
            return known  # of other axes alone
        values = node.args[1:5] if operator == "batch_norm" else node.args[2:4]
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

    def _reshape(self, node: Node, known: Axis) -> Axis | None:
        sizes = shape_of(node.args[0]), shape_of(node)
        found = reshaped(*sizes, known.dim)
        if found is None:
            return self._heads(node, known, split_axis(*sizes, known.dim))
        dim, before, after = found
        self.moved |= operator_name(node) != "flatten"  # which names no number
        return Axis(dim, tuple((g, n, each * after) for g, n, each in known.layout) * before)

    def _heads(self, node: Node, known: Axis, split: tuple[int, int] | None) -> Axis | None:
        """Heads of attention, or groups of a shuffle: each as wide as the others."""
        part = self.channels.divide(known.layout, split[1]) if split is not None else None
        if split is None or part is None:
            return self._unknown(node)
        self.moved = True
        source: Any = node.args[0]
        if operator_name(source) == "linear" and source.args[0] in self._axes:
            self.heads.append((self._axes[source.args[0]].layout, part))
        return Axis(split[0], part)

    def _even(self, node: Node, known: Axis) -> Axis:
        """Pieces of one size stay of one size: code that halves a tensor gives two alike."""
        sizes = [value.shape[known.dim] for value in node.meta["val"]]
        if len({*sizes}) == 1:
            starts = range(0, sum(sizes), sizes[0])
            pieces = [self.channels.part(known.layout, start, sizes[0]) for start in starts]
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

    def _module(self, value: Any, node: Node) -> str | None:
        """The resizable module that a parameter which a node reads belongs to."""
        if not isinstance(value, Node) or value.name not in self._owned:
            return None
        name = self._owned[value.name].rpartition(".")[0]
        if name not in self.channels.layers and name not in self.channels.fixed:
            why = why_fixed(self._model.get_submodule(name), shape_of(node.args[0]))
            if other := self._shared.get(self._owned[value.name]):
                why = f"it shares its weights with {other}"
                self.channels.fixed[other] = f"it shares its weights with {name}"
            if why is not None:
                self.channels.fixed[name] = why
        return None if name in self.channels.fixed else name


def _first(node: Node) -> Any:
    """The first weight of a recurrent operator; None where it reads a packed sequence."""
    weights: Any = node.args[2]
    return weights[0] if isinstance(weights, list | tuple) and len(weights) > 1 else None


def _shared(model: nn.Module) -> dict[str, str]:
    """Parameters that two modules own, with the other one of them."""
    found: dict[str, str] = {}
    seen: dict[int, tuple[str, str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            first, other = seen.setdefault(id(parameter), (name, path))
            if first != name:
                found |= {name: other, first: path}
    return found
