"""Operators that move, cut and join axes; sizes follow the tensors where the file has numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.models.onnx_import.values import Call, Node, Value, axes_of, axis_from, operator

MOST_PIECES = 8  # parts of one size that slices may cut an axis into, as a `chunk` does


@operator("Shape")
def shape(node: Node) -> Call:
    """Sizes as Python numbers."""
    value = node.value(0)
    if value.is_host:
        return Call(torch.tensor, [value.shape])
    ends = [node.get("start", 0), node.get("end", len(value.shape))]
    return Call(sizes_of, [value, *ends])


def sizes_of(x: Tensor, start: int, stop: int) -> list[int]:
    """Sizes of some axes."""
    return list(x.shape[start:stop])


@operator("Size")
def size(node: Node) -> Call:
    """The number of elements."""
    return Call(torch.numel, [node.value(0)])


@operator("Flatten")
def flatten(node: Node) -> Call:
    """To a matrix: axes before one, and from it on."""
    axis = int(node.get("axis", 1))
    rank = len(node.value(0).shape)
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return Call(torch.flatten, [node.value(0), 1])
    return Call(as_matrix, [node.value(0), axis])


def as_matrix(x: Tensor, axis: int) -> Tensor:
    """Axes before one, and from it on."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(node: Node) -> Call:
    """Axes in another order; reversed by default."""
    order = node.get("perm", range(len(node.value(0).shape))[::-1])
    return Call(torch.permute, [node.value(0), list(order)])


@operator("Squeeze")
def squeeze(node: Node) -> Call:
    """Without axes of size 1."""
    size = node.value(0).shape
    axes = node.known("axes", 1)
    gone = [i for i, n in enumerate(size) if n == 1] if axes is None else axes_of(axes, len(size))
    if any(size[axis] != 1 for axis in gone):
        raise node.refused(f"it removes axes {gone} of {size}")
    return Call(torch.squeeze, [node.value(0), gone]) if gone else Call(None, [node.value(0)])


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Call:
    """With more axes of size 1."""
    made: Any = node.value(0)
    axes = node.known("axes", 1)
    for axis in sorted(axes_of(axes, len(node.value(0).shape) + len(axes))):
        made = Call(torch.unsqueeze, [made, axis])
    return made if isinstance(made, Call) else Call(None, [made])


@operator("Concat")
def concatenate(node: Node) -> Call:
    """Constants with a batch of 1 have the batch of the others."""
    parts = [value for value in node.inputs if value is not None]
    axis = int(node.attributes["axis"]) % max(len(parts[0].shape), 1)
    computed = [i for i, value in enumerate(parts) if value.constant is None]
    if axis and computed and len(computed) < len(parts) and len(parts[0].shape) > 1:
        repeated = [i for i, v in enumerate(parts) if v.constant is not None and v.shape[0] == 1]
        return Call(joined, [parts, axis, computed[0], repeated])
    return Call(torch.cat, [parts, axis])


def joined(parts: Sequence[Tensor], axis: int, of: int, repeated: Sequence[int]) -> Tensor:
    """A concatenation in which some parts have the batch of another one."""
    batch = parts[of].shape[0]
    whole = [
        part.expand(batch, *part.shape[1:]) if place in repeated else part
        for place, part in enumerate(parts)
    ]
    return torch.cat(whole, axis)


@operator("Expand")
def expand(node: Node) -> Call:
    """To a shape, where sizes of 1 mean the tensor's own."""
    wanted = node.ints("shape", 1)
    if not isinstance(wanted, Value):
        size = node.value(0).shape
        lead = len(wanted) - len(size)
        own = [1] * max(lead, 0) + size
        asked = [1] * max(-lead, 0) + [int(n) for n in wanted]
        # an axis that has the size already keeps it, whatever it is later
        wanted = [1 if have == want else want for have, want in zip(own, asked, strict=True)]
    return Call(expanded, [node.value(0), wanted])


def expanded(x: Tensor, shape: Sequence[int]) -> Tensor:
    """ONNX's Expand, which broadcasts both ways."""
    more = max(len(shape) - x.dim(), 0)
    lead = [1] * max(x.dim() - len(shape), 0)
    sizes = [1] * more + list(x.shape)
    both = zip(sizes, [*lead, *shape], strict=True)
    return x.expand([have if want == 1 else want for have, want in both])


@operator("Split")
def split(node: Node) -> Call:
    """Into parts of given sizes, or of one size."""
    axis = axis_from(node, 0)
    whole, count = node.value(0).shape[axis], len(node.proto.output)
    sizes = node.ints("split", 1)
    if isinstance(sizes, Value):
        return Call(torch.split, [node.value(0), sizes, axis])
    if sizes is None:
        each = -(-whole // int(node.get("num_outputs", count)))
        sizes = [each] * (count - 1) + [whole - each * (count - 1)]
    if len(set(sizes)) == 1:
        return Call(torch.chunk, [node.value(0), len(sizes), axis])
    return Call(torch.split, [node.value(0), [int(n) for n in sizes], axis])


@operator("Slice")
def cut(node: Node) -> Call:
    """Of any axes; one part of several alike follows the size of its axis."""
    data = node.value(0)
    starts, ends = (node.ints(name, i) for i, name in enumerate(("starts", "ends"), 1))
    count = len(starts.example if isinstance(starts, Value) else starts)
    rank = len(data.shape)
    axes = axes_of(node.known("axes", 3, range(count)), rank)
    steps = [int(n) for n in node.known("steps", 4, [1] * count)]
    made: Any = data
    if isinstance(starts, Value) or isinstance(ends, Value):
        return Call(slices, [data, starts, ends, axes, steps])
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        whole = data.shape[axis]
        first, last, _ = slice(start, stop, step).indices(whole)
        if step == 1 and (first, last) == (0, whole):
            continue
        piece = last - first
        if step == 1 and piece > 1 and whole % piece == 0 and first % piece == 0 and (
            whole // piece <= MOST_PIECES
        ):  # fmt: skip
            made = Call(part, [made, axis, first // piece, whole // piece])
        else:
            made = Call(slices, [made, [int(start)], [int(stop)], [axis], [step]])
    return made if isinstance(made, Call) else Call(None, [made])


def part(x: Tensor, axis: int, place: int, count: int) -> Tensor:
    """One of `count` parts of one size."""
    return x.chunk(count, axis)[place]


def slices(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """Slices of several axes; a step below zero goes backwards."""
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            places = torch.arange(x.shape[axis], device=x.device)
            x = x.index_select(axis, places.flip(0)[_backwards(x.shape[axis], start, stop, step)])
            continue
        index = [slice(None)] * x.dim()
        index[axis] = slice(start, stop, step)
        x = x[tuple(index)]
    return x


def _backwards(size: int, start: int, stop: int, step: int) -> slice:
    """What a slice that goes backwards takes of the reversed axis."""
    first, last, _ = slice(start, max(stop, -size - 1), step).indices(size)
    return slice(size - 1 - first, size - 1 - last, -step)


@operator("Tile")
def tile(node: Node) -> Call:
    """Repeated along each axis."""
    return Call(torch.tile, [node.value(0), node.ints("repeats", 1)])


@operator("ConstantOfShape")
def filled(node: Node) -> Call:
    """One number, in a shape."""
    value = node.get("value", None)
    number = 0.0 if value is None else value.item()
    shape = node.ints("input", 0)
    if isinstance(shape, list):
        return Call(torch.full, [shape, number])
    return Call(torch.full, [shape, number])


@operator("Range")
def counted(node: Node) -> Call:
    """Numbers from one to another."""
    ends = [node.value(i) for i in range(3)]
    return Call(torch.arange, [v if v.is_host else v.constant.item() for v in ends])  # type: ignore[union-attr]


@operator("DepthToSpace")
def depth_to_space(node: Node) -> Call:
    """Channels to pixels: torch's pixel shuffle, or with the channels innermost."""
    block = node.attributes["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return Call(torch.pixel_shuffle, [node.value(0), block])
    return Call(shuffled, [node.value(0), block])


def shuffled(x: Tensor, block: int) -> Tensor:
    """ONNX's DCR order: the place in a block is the outermost part of the channels."""
    n, _, height, width = x.shape
    parts = x.reshape(n, block, block, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.flatten(4, 5).flatten(2, 3)


@operator("SpaceToDepth")
def space_to_depth(node: Node) -> Call:
    """The reverse of DCR."""
    return Call(gathered, [node.value(0), node.attributes["blocksize"]])


def gathered(x: Tensor, block: int) -> Tensor:
    """Pixels of blocks to channels, the place in a block outermost."""
    n, channels, height, width = x.shape
    parts = x.reshape(n, channels, height // block, block, width // block, block)
    parts = parts.permute(0, 3, 5, 1, 2, 4)
    return parts.flatten(1, 3)
