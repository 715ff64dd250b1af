"""Arithmetic on sizes: what `Shape` gives stays Python numbers, so that reshapes follow widths."""

import math
from collections.abc import Callable
from typing import Any

from kdcompile.models.onnx_import.values import Call, Node, Value

HOST: dict[str, Callable[[Node], Call | None]] = {}


def host_call(node: Node) -> Call | None:
    """The call of an operator on numbers; None where it is one on tensors."""
    if node.proto.op_type not in HOST or not any(v is not None and v.is_host for v in node.inputs):
        return None
    if any(v is not None and not v.is_host and v.numbers() is None for v in node.inputs):
        return None
    return HOST[node.proto.op_type](node)


def _numbers(value: Value) -> Any:
    return value if value.is_host else value.numbers()


def _all(node: Node) -> list[Any]:
    return [_numbers(value) for value in node.inputs if value is not None]


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers as one of lists, of which those of one number are repeated."""

    def run(*given: Any) -> Any:
        if not any(isinstance(one, list) for one in given):
            return function(*given)
        lists = [one if isinstance(one, list) else [one] for one in given]
        most = max(map(len, lists))
        columns = zip(*(one * most if len(one) == 1 else one for one in lists), strict=True)
        return [function(*column) for column in columns]

    return run


def divide(a: Any, b: Any) -> Any:
    """ONNX's division: of whole numbers whole."""
    return a / b if isinstance(a, float) or isinstance(b, float) else a // b


def gather(data: Any, index: Any) -> Any:
    """Some numbers of a list."""
    return [data[i] for i in index] if isinstance(index, list) else data[index]


def concatenate(*parts: Any) -> list[Any]:
    """All numbers one after the other."""
    return [one for part in parts for one in (part if isinstance(part, list) else [part])]


def cut(data: list[Any], start: int, stop: int, step: int) -> list[Any]:
    """A slice of a list; a start or end beyond it is its end."""
    return data[start : None if stop < -len(data) else stop : step]


def as_list(data: Any) -> list[Any]:
    """A list, of one number for a number."""
    return data if isinstance(data, list) else [data]


def as_number(data: Any) -> Any:
    """The one number of a list."""
    return data[0] if isinstance(data, list) else data


def product(data: Any) -> Any:
    """Of all numbers."""
    return math.prod(as_list(data))


def whole(data: Any) -> Any:
    """Without fractions."""
    return int(data) if isinstance(data, float | bool) else data


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """One of two numbers."""
    return yes if condition else no


_EACH: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b,
    "Div": divide, "Mod": lambda a, b: a % b, "Neg": lambda a: -a, "Min": min, "Max": max,
    "Floor": math.floor, "Ceil": math.ceil, "Sqrt": math.sqrt, "Abs": abs,
    "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b,
    "GreaterOrEqual": lambda a, b: a >= b, "LessOrEqual": lambda a, b: a <= b,
    "And": lambda a, b: a and b, "Or": lambda a, b: a or b, "Not": lambda a: not a,
    "Where": choose,
}  # fmt: skip


def _elementwise(name: str, function: Callable[..., Any]) -> None:
    run = _each(function)
    HOST[name] = lambda node: Call(run, _all(node))


for _name, _function in _EACH.items():
    _elementwise(_name, _function)

HOST["Gather"] = lambda node: Call(gather, _all(node))
HOST["Concat"] = lambda node: Call(concatenate, _all(node))
HOST["ReduceProd"] = lambda node: Call(product, _all(node)[:1])
HOST["Identity"] = lambda node: Call(None, [node.value(0)])
HOST["Unsqueeze"] = lambda node: Call(as_list, _all(node)[:1])
HOST["Squeeze"] = lambda node: Call(as_number, _all(node)[:1])


def _cast(node: Node) -> Call:
    """To a floating type nothing is done: a division of whole numbers stays one of them."""
    floating = node.get("to", 1) in (1, 10, 11, 16)
    return Call(_each(float if floating else whole), _all(node))


def _slice(node: Node) -> Call | None:
    bounds = [node.known(name, i) for i, name in enumerate(("starts", "ends"), 1)]
    step = node.known("steps", 4, [1])
    return Call(cut, [_numbers(node.value(0)), *(int(one[0]) for one in bounds), int(step[0])])


def _reshape(node: Node) -> Call | None:
    """Numbers have one axis or none."""
    shape = node.ints("shape", 1)
    if isinstance(shape, Value) or len(shape) > 1:
        return None
    return Call(as_list if shape else as_number, [_numbers(node.value(0))])


HOST["Cast"] = _cast
HOST["Slice"] = _slice
HOST["Reshape"] = _reshape
