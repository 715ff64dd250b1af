"""The tensors and whole numbers of a network that is imported, and what an operator becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import NodeProto
from torch import Tensor, fx

from kdcompile.core.errors import KDError

MOST_INTS = 64  # numbers of a constant that may take part in arithmetic on sizes


class Dim(int):
    """A size that the network reads from a tensor when it runs, as it is for the example."""


def _dim(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def computed(self: int, other: Any = 0) -> Any:
        made = plain(self) if name == "__neg__" else plain(int(self), other)
        return Dim(made) if isinstance(made, int) and not isinstance(made, bool) else made

    return computed


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "neg"):
    setattr(Dim, f"__{_name}__", _dim(f"__{_name}__"))


@dataclass
class Value:
    """A tensor of the network, or whole numbers that are computed from sizes.

    Args:
        name: in the file.
        example: what it is for the example inputs: a tensor without values, or a number or a list
            of numbers (`is_host`).
        constant: the tensor, where it does not depend on the inputs.
        node: what gives it in the torch graph; of a constant only once something reads it.
    """

    name: str
    example: Any
    constant: Tensor | None = None
    node: fx.Node | None = None

    @property
    def is_host(self) -> bool:
        """Whether it is numbers computed from sizes, and no tensor."""
        return not isinstance(self.example, Tensor)

    @property
    def shape(self) -> list[int]:
        """For the example inputs."""
        return [len(self.example)] * isinstance(self.example, list) if self.is_host else [
            int(size) for size in self.example.shape
        ]  # fmt: skip

    @property
    def is_float(self) -> bool:
        """Whether it is a tensor of real numbers."""
        return isinstance(self.example, Tensor) and self.example.is_floating_point()

    def numbers(self) -> Any:
        """A constant as a number or a list of numbers; None where it is none, or long."""
        if self.constant is None or self.constant.numel() > MOST_INTS or self.constant.dim() > 1:
            return None
        return self.constant.tolist()


@dataclass
class Call:
    """What an operator becomes: a module or a function, called with values and numbers.

    Args:
        target: called in the torch graph; None where the operator's output is `arguments[0]`.
        arguments: values, numbers, and lists of both.
        options: by keyword.
        shared: what a module that runs twice is known by; empty for one that is never shared.
        outputs: names that the results have, where they are not the node's own.
    """

    target: Any
    arguments: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: str = ""
    outputs: Sequence[str] | None = None


@dataclass
class Node:
    """A node of the file with the values that it reads."""

    proto: NodeProto
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    opset: int
    readers: Callable[[str], Sequence[NodeProto]]
    constants: Callable[[str], Tensor | None]
    skip: Callable[[NodeProto], None]

    @property
    def name(self) -> str:
        """Its name, or that of its first output."""
        return self.proto.name or self.proto.output[0]

    def value(self, index: int) -> Value:
        """An input that the operator must have."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.refused(f"its input {index} is missing")
        return found

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def constant(self, index: int) -> Tensor:
        """An input that must not depend on the network's inputs: a layer's weights."""
        found = self.value(index).constant
        if found is None:
            raise self.refused(f"its input {index} ({self.value(index).name}) is computed")
        return found

    def ints(self, name: str, index: int, default: Any = None) -> Any:
        """Numbers that are an attribute in old files and an input in newer ones.

        Returns:
            A list of numbers, a `Value` where the network computes them, or the default.
        """
        if name in self.attributes:
            return self.attributes[name]
        if not self.has(index):
            return default
        value = self.value(index)
        found = value if value.constant is None else value.constant.flatten().tolist()
        if isinstance(found, Value) and not found.is_host:
            raise self.refused(f"its {name} depends on the values of the input")
        return found

    def known(self, name: str, index: int, default: Any = None) -> Any:
        """`ints` that must be constants."""
        found = self.ints(name, index, default)
        if isinstance(found, Value):
            raise self.refused(f"its {name} is computed from sizes")
        return found

    def refused(self, why: str) -> KDError:
        """The error of an operator that is known, in a form that is not."""
        return KDError(
            "onnx-operator",
            f"{self.proto.op_type} in a form that is not read: {why}",
            where=self.name,
            fix="export the network in another way, or give the PyTorch network as teacher.model",
        )


OPERATORS: dict[str, Callable[[Node], Call]] = {}


def operator(*names: str) -> Callable[[Callable[[Node], Call]], Callable[[Node], Call]]:
    """Register what makes a call of nodes of some operators."""

    def register(make: Callable[[Node], Call]) -> Callable[[Node], Call]:
        OPERATORS.update(dict.fromkeys(names, make))
        return make

    return register


def axes_of(given: Any, rank: int) -> list[int]:
    """Axes counted from 0."""
    return [int(axis) % max(rank, 1) for axis in given]


def to_tensor(numbers: Any) -> Tensor:
    """Numbers computed from sizes as a tensor."""
    return torch.tensor(numbers)


def axis_from(node: Node, default: int) -> int:
    """The attribute `axis`, counted from 0."""
    return int(node.get("axis", default)) % max(len(node.value(0).shape), 1)
