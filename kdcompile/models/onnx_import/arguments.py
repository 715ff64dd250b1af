"""The arguments of a call: the values in them, and what stands for each."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from kdcompile.models.onnx_import.values import Value


def item_of(values: Any, index: int) -> Any:
    """One of several results."""
    return values[index]


def as_results(made: Any) -> Any:
    """Results as one tensor, one number, a list of numbers or a tuple of tensors."""
    several = isinstance(made, tuple | list) and any(isinstance(one, Tensor) for one in made)
    return tuple(made) if several else made


def constant_of(value: Value) -> Any:
    """The tensor that does not depend on the inputs."""
    return value.constant


def example_of(value: Value) -> Any:
    """What a value is for the example inputs."""
    return value.example


def values_in(arguments: Any) -> Iterator[Value]:
    """All values in arguments, in lists too."""
    for one in arguments:
        if isinstance(one, Value):
            yield one
        elif isinstance(one, list | tuple):
            yield from values_in(one)


def in_arguments(arguments: Any, of: Any) -> Any:
    """Arguments with something in the place of each value."""
    if isinstance(arguments, Value):
        return of(arguments)
    if isinstance(arguments, list | tuple):
        return type(arguments)(in_arguments(one, of) for one in arguments)
    return arguments


def in_options(options: Mapping[str, Any], of: Any) -> dict[str, Any]:
    """The same by keyword."""
    return {name: in_arguments(value, of) for name, value in options.items()}
