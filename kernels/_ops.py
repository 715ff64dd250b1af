"""Kernel launches as PyTorch operators: opaque to `torch.compile`, safe in a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY: Any = torch.library.Library("kdcompile", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register a function of tensors and plain values as an operator.

    Args:
        fake: takes the same arguments and returns empty outputs of the right shapes, types and
            strides, without looking at any value.

    The first argument is a tensor or a sequence of them. The function must be fully annotated, must
    not change or return its inputs, and has no gradient: the caller's `torch.autograd.Function`
    provides that.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = function.__name__.strip("_")
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, _on_its_device(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"kdcompile::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.kdcompile, name).default

    return register


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current GPU: make that the one where the first tensor lies."""

    def guarded(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        if not first.is_cuda or first.device.index == torch.cuda.current_device():
            return function(*arguments)
        with torch.cuda.device(first.device):
            return function(*arguments)

    return guarded
