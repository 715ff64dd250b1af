"""The channels that a network's layers read and give: convolutions, linear layers, norms, cells."""

from typing import Any

from torch import nn
from torch.fx import Node

from kdcompile.models.channel_axes import shape_of
from kdcompile.models.channel_groups import Layer
from kdcompile.models.channel_ties import Axis, Ties
from kdcompile.models.resize import plain_kind, why_fixed


class Layers(Ties):
    """What is made of each operator that has weights."""

    def __init__(self, model: nn.Module, owned: dict[str, str], parameters: set[str]) -> None:
        """As `Ties`, of a network in inference mode."""
        super().__init__(owned, parameters)
        self._model = model
        self._shared = _shared(model)

    def _convolution(self, node: Node, name: str) -> Axis:
        module = self._model.get_submodule(name)
        source, groups = self._known(node.args[0], 1), int(module.groups)  # type: ignore[arg-type]
        inputs, outputs = int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]
        if groups == inputs > 1 or groups == outputs == 1 == inputs:
            made = tuple((g, n, each * (outputs // inputs)) for g, n, each in source)
        else:
            made = self.channels.new(outputs, groups)
            if groups > 1:
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

    def _module(self, value: Any, node: Node) -> str | None:
        """The resizable module that a parameter which a node reads belongs to."""
        name = self._owner(value) if isinstance(value, Node) else None
        if name is None:
            return None
        module = self._model.get_submodule(name)
        if value in self._computed and type(module) is plain_kind(module):
            return None  # its weights are used from outside, and in another way than its own
        if name not in self.channels.layers and name not in self.channels.fixed:
            why = why_fixed(module, shape_of(node.args[0]))
            if other := self._shared.get(self._owned.get(value.name, "")):
                why = f"it shares its weights with {other}"
                self.channels.fixed[other] = f"it shares its weights with {name}"
            if why is not None:
                self.channels.fixed[name] = why
        return None if name in self.channels.fixed else name


def first_weight(node: Node) -> Any:
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
