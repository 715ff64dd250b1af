"""Operators that take numbers by index: slices along an axis, an embedding's rows."""

from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.models.onnx_import.layers import shared_by, with_weights
from kdcompile.models.onnx_import.reshaping import followed, reshaped
from kdcompile.models.onnx_import.values import Call, Node, axis_from, operator


@operator("Gather")
def gather(node: Node) -> Call:
    """Slices along an axis: one of them, an embedding's, or several."""
    data, index = node.value(0), node.value(1)
    axis = axis_from(node, 0)
    numbers = index.numbers()
    if isinstance(numbers, int):
        return Call(torch.select, [data, axis, numbers])
    if data.constant is not None and data.is_float and axis == 0 and data.constant.dim() == 2:
        size = data.constant.shape
        made = nn.Embedding(size[0], size[1])
        return Call(
            with_weights(made, weight=data.constant), [index], shared=shared_by(node, [data.name])
        )
    indices = None if index.constant is None else index.constant.flatten().tolist()
    if len(data.shape) == 1 and indices == list(range(data.shape[0])):  # another shape
        return Call(reshaped, [data, None, followed(data.shape, index.shape, set())])
    return Call(take, [data, index, axis])


def take(data: Tensor, index: Any, axis: int) -> Tensor:
    """ONNX's Gather: numbers below zero count from the end."""
    if isinstance(index, int):
        return data.select(axis, index)
    indices = torch.as_tensor(index, device=data.device)
    indices = torch.where(indices < 0, indices + data.shape[axis], indices)
    made = data.index_select(axis, indices.flatten())
    return made.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
