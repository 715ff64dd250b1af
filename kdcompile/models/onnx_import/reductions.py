"""Operators that reduce axes, or choose among the numbers along one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdcompile.models.onnx_import.decomposed import layer_norm_from
from kdcompile.models.onnx_import.values import Call, Node, axes_of, axis_from, operator


def product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Of several axes."""
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def absolute_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The L1 norm."""
    return x.abs().sum(list(axes), keep)


def square_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The sum of squares."""
    return x.square().sum(list(axes), keep)


def length(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The L2 norm."""
    return x.square().sum(list(axes), keep).sqrt()


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
    "ReduceMin": torch.amin, "ReduceProd": product, "ReduceL1": absolute_sum, "ReduceL2": length,
    "ReduceSumSquare": square_sum, "ReduceLogSumExp": torch.logsumexp,
}  # fmt: skip


@operator(*REDUCTIONS)
def reduce(node: Node) -> Call:
    """Axes are an attribute in old files and an input in newer ones; none are all."""
    if node.proto.op_type == "ReduceMean" and (norm := layer_norm_from(node)) is not None:
        return norm
    rank = len(node.value(0).shape)
    axes = node.known("axes", 1)
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return Call(None, [node.value(0)])
        axes = range(rank)
    kept = bool(node.get("keepdims", 1))
    return Call(REDUCTIONS[node.proto.op_type], [node.value(0), axes_of(axes, rank), kept])


@operator("ArgMax", "ArgMin")
def place(node: Node) -> Call:
    """Where the largest or smallest number is."""
    if node.get("select_last_index", 0):
        raise node.refused("it takes the last of several")
    kind = torch.argmax if node.proto.op_type == "ArgMax" else torch.argmin
    return Call(kind, [node.value(0), axis_from(node, 0), bool(node.get("keepdims", 1))])


@operator("TopK")
def largest(node: Node) -> Call:
    """The largest or smallest numbers and their places."""
    (count,) = node.known("k", 1)
    order = bool(node.get("largest", 1)), bool(node.get("sorted", 1))
    return Call(torch.topk, [node.value(0), int(count), axis_from(node, -1), *order])


@operator("CumSum")
def running_sum(node: Node) -> Call:
    """Along an axis."""
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise node.refused("it is exclusive or runs backwards")
    (axis,) = node.known("axis", 1)
    return Call(torch.cumsum, [node.value(0), int(axis)])


@operator("Einsum")
def einsum(node: Node) -> Call:
    """By its equation."""
    return Call(torch.einsum, [node.attributes["equation"], *filter(None, node.inputs)])


@operator("GatherElements")
def gather_elements(node: Node) -> Call:
    """One number of each line along an axis."""
    return Call(torch.gather, [node.value(0), axis_from(node, 0), node.value(1)])


@operator("Trilu")
def triangle(node: Node) -> Call:
    """The part above or below a diagonal."""
    (offset,) = node.known("k", 1, [0])
    return Call(torch.triu if node.get("upper", 1) else torch.tril, [node.value(0), int(offset)])
