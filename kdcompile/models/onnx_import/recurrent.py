"""LSTM, GRU and plain recurrent layers as torch's own, with ONNX's gates and outputs."""

from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.models.onnx_import.values import Call, Node, Value, operator

# ONNX's gates in the order that torch has them
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
USUAL = {
    "LSTM": (["Sigmoid", "Tanh", "Tanh"],), "GRU": (["Sigmoid", "Tanh"],),
    "RNN": (["Tanh"], ["Relu"]),
}  # fmt: skip


class Recurrent(nn.Module):
    """[T, N, C] to ONNX's outputs: Y [T, directions, N, H] and the last states."""

    def __init__(self, layer: Any, reverse: bool, batch_first: bool) -> None:
        """A layer of torch's that reads time first."""
        super().__init__()
        self.layer = layer
        self.reverse, self.batch_first = reverse, batch_first

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all steps, the last state and of an LSTM the last cell."""
        if self.batch_first:
            x, state = x.transpose(0, 1), tuple(one.transpose(0, 1).contiguous() for one in state)
        x = x.flip(0) if self.reverse else x
        made, last = self.layer(x, (state if len(state) > 1 else state[0]) if state else None)
        made = made.flip(0) if self.reverse else made
        directions = 2 if self.layer.bidirectional else 1
        made = made.unflatten(2, (directions, made.shape[2] // directions)).transpose(1, 2)
        states = last if isinstance(last, tuple) else (last,)
        if self.batch_first:
            return made.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in states)
        return made, *states


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> Call:
    """With constant weights and the usual activations."""
    kind, direction = node.proto.op_type, node.get("direction", "forward")
    weight, more = node.constant(1), node.constant(2)
    directions, hidden = weight.shape[0], node.attributes["hidden_size"]
    given = node.get("activations", USUAL[kind][0] * directions)
    given = [one.decode() if isinstance(one, bytes) else one for one in given]
    used = [usual for usual in USUAL[kind] if given == usual * directions]
    if not used or "clip" in node.attributes or node.get("input_forget", 0):
        raise node.refused("its activations, a clip or coupled gates are not the usual ones")
    if kind == "GRU" and not node.get("linear_before_reset", 0):
        raise node.refused("it resets before the linear layer (linear_before_reset = 0)")
    if _given(node, 7):
        raise node.refused("it has peephole weights")
    if node.has(4) and _lengths_differ(node):
        raise node.refused("the lengths of its sequences are an input")
    bias = node.constant(3) if node.has(3) else None
    options: dict[str, Any] = {"bidirectional": directions == 2, "bias": bias is not None}
    if kind == "RNN":
        options["nonlinearity"] = used[0][0].lower()
    layer: Any = getattr(nn, kind)(weight.shape[2], hidden, **options)
    for side in range(directions):
        _load(layer, "_reverse" if side else "", kind, weight[side], more[side],
              None if bias is None else bias[side])  # fmt: skip
    states = [node.value(i) for i in (5, 6)[: 2 if kind == "LSTM" else 1] if _given(node, i)]
    if states and len(states) < (2 if kind == "LSTM" else 1):
        raise node.refused("it has one of two initial states")
    made = Recurrent(layer, direction == "reverse", bool(node.get("layout", 0)))
    return Call(made, [node.value(0), *map(_of_batch(node), states)])


def _lengths_differ(node: Node) -> bool:
    lengths = node.value(4).constant
    steps = node.value(0).shape[1 if node.get("layout", 0) else 0]
    return lengths is None or bool((lengths != steps).any())


def _given(node: Node, index: int) -> bool:
    """Whether an optional input is there and is not zeros, which it is by default."""
    if not node.has(index):
        return False
    constant = node.value(index).constant
    return constant is None or bool(constant.any())


def _of_batch(node: Node) -> Any:
    """A constant state of a batch of 1 is that of every sequence."""
    batched = node.get("layout", 0)

    def state(value: Value) -> Any:
        alone = value.constant is not None and value.shape[0 if batched else 1] == 1
        return Call(repeated, [value, node.value(0), bool(batched)]) if alone else value

    return state


def repeated(state: Tensor, x: Tensor, batch_first: bool) -> Tensor:
    """A state for each sequence of a batch."""
    if batch_first:
        return state.expand(x.shape[0], -1, -1)
    return state.expand(-1, x.shape[1], -1).contiguous()


def _load(
    layer: nn.Module, suffix: str, kind: str, weight: Tensor, more: Tensor, bias: Tensor | None
) -> None:
    """One direction's weights, gates in torch's order."""

    def ordered(tensor: Tensor) -> Tensor:
        gates = tensor.chunk(len(GATES[kind]))
        return torch.cat([gates[place] for place in GATES[kind]])

    tensors = {"weight_ih_l0": ordered(weight), "weight_hh_l0": ordered(more)}
    if bias is not None:
        inner, outer = bias.chunk(2)
        tensors |= {"bias_ih_l0": ordered(inner), "bias_hh_l0": ordered(outer)}
    for name, tensor in tensors.items():
        getattr(layer, name + suffix).data.copy_(tensor)
