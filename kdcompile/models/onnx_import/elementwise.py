"""Operators on each number by itself: activations, arithmetic, comparisons, types."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.models.onnx_import.graph_file import torch_type
from kdcompile.models.onnx_import.values import Call, Node, Value, operator

SIXTH = 1e-6  # how far HardSigmoid's slope may be from 1/6, which files round


def _is_small(value: Value, other: Value) -> bool:
    """Whether a value is one number, which adds no axes to the other."""
    constant = value.constant
    return constant is not None and constant.numel() == 1 and constant.dim() <= len(other.shape)


def _operands(node: Node) -> list[Any]:
    """The inputs; of a pair with one number that number itself, where types agree."""
    values = [value for value in node.inputs if value is not None]
    if len(values) == 2 and all(not value.is_host for value in values):
        first, second = values
        if first.example.dtype == second.example.dtype:
            if _is_small(second, first):
                return [first, second.constant.item()]  # type: ignore[union-attr]
            if _is_small(first, second):
                return [first.constant.item(), second]  # type: ignore[union-attr]
    return list(values)


def divide(a: Any, b: Any) -> Any:
    """ONNX's division: of whole numbers whole, towards zero."""
    tensor = a if isinstance(a, Tensor) else b
    rounding = None if tensor.is_floating_point() else "trunc"
    return torch.div(torch.as_tensor(a), b, rounding_mode=rounding) if rounding else a / b


def add(a: Any, b: Any) -> Any:
    """The sum; so named, since torch.add takes no number first."""
    return a + b


def subtract(a: Any, b: Any) -> Any:
    """The difference."""
    return a - b


def multiply(a: Any, b: Any) -> Any:
    """The product."""
    return a * b


def power(a: Any, b: Any) -> Any:
    """`a` to `b`."""
    return a**b


def total(*tensors: Tensor) -> Tensor:
    """The sum of several."""
    return sum(tensors[1:], tensors[0])


def mean(*tensors: Tensor) -> Tensor:
    """The mean of several."""
    return total(*tensors) / len(tensors)


def largest(*tensors: Tensor) -> Tensor:
    """The largest of several, number by number."""
    found = tensors[0]
    for other in tensors[1:]:
        found = torch.maximum(found, torch.as_tensor(other, dtype=found.dtype))
    return found


def smallest(*tensors: Tensor) -> Tensor:
    """The smallest of several, number by number."""
    found = tensors[0]
    for other in tensors[1:]:
        found = torch.minimum(found, torch.as_tensor(other, dtype=found.dtype))
    return found


PLAIN: dict[str, Callable[..., Any]] = {
    "Add": add, "Sub": subtract, "Mul": multiply, "Div": divide, "Pow": power, "Sum": total,
    "Mean": mean, "Max": largest, "Min": smallest, "Abs": torch.abs, "Neg": torch.neg,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin,
    "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softsign": functional.softsign,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Not": torch.logical_not, "IsNaN": torch.isnan,
}  # fmt: skip


@operator(*PLAIN)
def plain(node: Node) -> Call:
    """Operators that torch has under another name."""
    operands = _operands(node) if node.proto.op_type in ("Add", "Sub", "Mul", "Div", "Pow") else [
        value for value in node.inputs if value is not None
    ]  # fmt: skip
    return Call(PLAIN[node.proto.op_type], operands)


MODULES: dict[str, Callable[[Node], nn.Module]] = {
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", 0.01)),
    "Elu": lambda node: nn.ELU(node.get("alpha", 1.0)),
    "Celu": lambda node: nn.CELU(node.get("alpha", 1.0)),
    "ThresholdedRelu": lambda node: nn.Threshold(node.get("alpha", 1.0), 0.0),
    "Softplus": lambda node: nn.Softplus(),
    "Mish": lambda node: nn.Mish(),
    "HardSwish": lambda node: nn.Hardswish(),
    "Gelu": lambda node: nn.GELU(node.get("approximate", "none")),
}


@operator(*MODULES)
def activation(node: Node) -> Call:
    """Activations without weights."""
    return Call(MODULES[node.proto.op_type](node), [node.value(0)])


@operator("Selu")
def selu(node: Node) -> Call:
    """With the paper's two numbers or with others."""
    alpha, gamma = node.get("alpha", 1.67326319), node.get("gamma", 1.05070102)
    return Call(multiply, [Call(functional.elu, [node.value(0), alpha]), gamma])


@operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Call:
    """By torch's where it has its slope."""
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < SIXTH and beta == 0.5:
        return Call(nn.Hardsigmoid(), [node.value(0)])
    return Call(clipped_line, [node.value(0), alpha, beta])


def clipped_line(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Between 0 and 1."""
    return (x * alpha + beta).clamp(0.0, 1.0)


@operator("Clip")
def clip(node: Node) -> Call:
    """Between numbers that are attributes before opset 11."""
    bounds: list[Any] = []
    for place, name in enumerate(("min", "max"), 1):
        given = node.get(name, None)
        if given is None and node.has(place):
            given = node.constant(place).item()
        bounds.append(given)
    if bounds == [0.0, 6.0]:
        return Call(nn.ReLU6(), [node.value(0)])
    return Call(None if bounds == [None, None] else torch.clamp, [node.value(0), *bounds])


@operator("Cast", "CastLike")
def cast(node: Node) -> Call:
    """To another type; all floating types are float32."""
    value = node.value(0)
    if node.proto.op_type == "CastLike":
        kind = node.value(1).example.dtype
    else:
        kind = torch_type(node.attributes["to"])
    return Call(None, [value]) if value.example.dtype == kind else Call(to_type, [value, kind])


def to_type(x: Tensor, kind: torch.dtype) -> Tensor:
    """In another type."""
    return x.to(kind)


@operator("Where")
def where(node: Node) -> Call:
    """One of two tensors, number by number."""
    return Call(torch.where, [node.value(i) for i in range(3)])


@operator("Mod")
def modulo(node: Node) -> Call:
    """The rest, with the sign of the divisor or, as of C, of the dividend."""
    kind = torch.fmod if node.get("fmod", 0) else torch.remainder
    return Call(kind, [node.value(0), node.value(1)])


@operator("Identity", "Dropout")
def identity(node: Node) -> Call:
    """What changes nothing in inference mode."""
    return Call(None, [node.value(0)])


@operator("Softmax", "LogSoftmax")
def softmax(node: Node) -> Call:
    """Along one axis; before opset 13 over all axes from one on."""
    value = node.value(0)
    rank = len(value.shape)
    kind = torch.softmax if node.proto.op_type == "Softmax" else torch.log_softmax
    axis = int(node.get("axis", -1 if node.opset >= 13 else 1)) % rank
    if node.opset >= 13 or all(size == 1 for size in value.shape[axis + 1 :]):
        return Call(kind, [value, axis])
    return Call(over_rest, [value, axis, node.proto.op_type == "LogSoftmax"])


def over_rest(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    """Over all axes from one on, taken as one."""
    flat = x.flatten(axis)
    return (flat.log_softmax(-1) if logarithm else flat.softmax(-1)).reshape(x.shape)
