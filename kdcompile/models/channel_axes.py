"""Follow an axis of a tensor through operators that transpose, reshape, slice or reduce it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import Node

from kdcompile.models.channel_rules import MOVES, RESHAPE, SPLITS, operator_name

MOST_REPEATS = 64  # positions that a reshape may fold in front of the channels


def reshaped(
    before: Sequence[int], after: Sequence[int], dim: int, each: int = 1
) -> tuple[int, int, int] | None:
    """Where the axis `dim` goes in a reshape.

    Args:
        before: sizes.
        after: sizes.
        dim: from 0.
        each: how many positions of the axis one channel has, in a row.

    Returns:
        Its new axis, how many positions before it were folded into that axis, and how many
        positions a channel has there; None where channels are split, or too many are folded in
        front.
    """
    for old, new in shape_blocks(before, after):
        if dim not in old:
            continue
        inner = math.prod(before[d] for d in old if d > dim)
        channel, whole = inner * each, inner * before[dim]  # values apart, and of all channels
        for axis in (d for d in new if after[d] > 1):
            step = math.prod(after[d] for d in new if d > axis)
            lead, rest = divmod(step * after[axis], whole)
            if step <= channel and not channel % step and lead and not rest:
                return (axis, lead, channel // step) if lead <= MOST_REPEATS else None
    return None


def split_axis(before: Sequence[int], after: Sequence[int], dim: int) -> tuple[int, int] | None:
    """Where a reshape that splits the axis `dim` leaves its innermost part: heads and their size.

    Returns:
        The axis of one part, and the number of parts; None where more is reshaped than that axis.
    """
    for old, new in shape_blocks(before, after):
        wide = [d for d in new if after[d] > 1]
        if dim in old and len(wide) > 1 and math.prod(before[d] for d in old) == before[dim]:
            return wide[-1], before[dim] // after[wide[-1]]
    return None


def shape_blocks(
    before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes on both sides that hold the same values."""
    left, right = 0, 0
    while left < len(before) and right < len(after):
        old, new = [left], [right]
        a, b = before[left], after[right]
        while a != b:
            if a < b:
                old.append(old[-1] + 1)
                if old[-1] >= len(before):
                    return
                a *= before[old[-1]]
            else:
                new.append(new[-1] + 1)
                if new[-1] >= len(after):
                    return
                b *= after[new[-1]]
        yield old, new
        left, right = old[-1] + 1, new[-1] + 1


def moved_axis(node: Node, name: str, dim: int) -> int | None:
    """The axis of a node's output that the axis `dim` of its input becomes; None for none.

    Args:
        node: of an operator of MOVES or REDUCE.
        name: of the operator.
        dim: from 0.
    """
    value = _value(node.args[0])
    rank = value.dim()
    arguments: list[Any] = list(node.args[1:])
    if name in {"permute", "transpose", "t", "numpy_T", "mT", "movedim"}:
        return _order(name, arguments, rank).index(dim)
    if name == "unsqueeze":
        return dim + (int(arguments[0]) % (rank + 1) <= dim)
    if name == "squeeze":
        gone = _axes(arguments[0], rank) if arguments else [*range(rank)]
        gone = [d for d in gone if value.shape[d] == 1]
        return None if dim in gone else dim - sum(d < dim for d in gone)
    if name in {"expand", "expand_as"}:
        return dim + _value(node).dim() - rank
    if name == "slice" and _value(node).shape == value.shape:
        return dim
    if name in {"pad", "constant_pad_nd"}:
        return None if any(pads_at(node, dim)) else dim
    if name in {"select", "slice", "roll", "split", "chunk", "split_with_sizes", "unbind"}:
        return _of_one_axis(name, arguments, dim, rank)
    if name == "repeat":
        times = arguments[0]
        place = dim + len(times) - rank
        return place if times[place] == 1 else None
    return _reduced(node, arguments[name == "linalg_vector_norm" :], dim, rank)


def pads_at(node: Node, dim: int) -> tuple[int, int]:
    """How many values a padding adds in front of and behind those of the axis `dim`."""
    pads: Any = node.args[1]
    of_axis = pads[2 * (len(shape_of(node)) - 1 - dim) :][:2]
    return (of_axis[0], of_axis[1]) if of_axis else (0, 0)


def _order(name: str, arguments: Sequence[Any], rank: int) -> list[int]:
    if name == "permute":
        return [int(d) % rank for d in arguments[0]]
    order = list(range(rank))
    if name == "numpy_T":
        return order[::-1]
    if name == "movedim":
        pairs = zip(*(_axes(given, rank) for given in arguments), strict=True)
        placed = {to: of for of, to in pairs}
        rest = (d for d in order if d not in placed.values())
        return [placed[d] if d in placed else next(rest) for d in order]
    a, b = (int(d) % rank for d in (arguments if name == "transpose" else (-2, -1)))
    order[a], order[b] = order[b], order[a]
    return order


def _of_one_axis(name: str, arguments: Sequence[Any], dim: int, rank: int) -> int | None:
    """Operators that leave all axes but one as they are."""
    if name in {"split", "chunk", "split_with_sizes"}:
        given = arguments[1] if len(arguments) > 1 else 0
    elif name == "roll":
        given = arguments[1] if len(arguments) > 1 else list(range(rank))
    else:
        given = arguments[0] if arguments else 0
    if dim in _axes(given, rank):
        return None
    return dim - 1 if name in {"select", "unbind"} and _axes(given, rank)[0] < dim else dim


def _reduced(node: Node, arguments: Sequence[Any], dim: int, rank: int) -> int | None:
    """Means, sums and norms over other axes."""
    if not arguments or arguments[0] is None:
        return None
    gone = _axes(arguments[0], rank)
    if dim in gone:
        return None
    keeps = _value(node).dim() == rank
    return dim if keeps else dim - sum(d < dim for d in gone)


def _axes(given: Any, rank: int) -> list[int]:
    return [int(d) % rank for d in (given if isinstance(given, list | tuple) else [given])]


def _value(node: Any) -> torch.Tensor:
    found = node.meta["val"]
    if isinstance(found, list | tuple):
        found = found[0]
    assert isinstance(found, torch.Tensor), "only operators on tensors are asked for"
    return found


def source_axis(node: Node, name: str, dim: int) -> int | None:
    """The axis of a node's input that its axis `dim` is made of; None for none, or for several."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if name in RESHAPE:
        found = reshaped(after, before, dim)
        return found[0] if found is not None and found[1:] == (1, 1) else None
    places = (d for d in range(len(before)) if moved_axis(node, name, d) == dim)
    return next(places, None) if name in MOVES else None


def piece_bounds(node: Node, dim: int) -> tuple[int, int] | None:
    """Where one of the tensors that a split gives starts on an axis, and its size.

    None where another axis was split.
    """
    source: Any = node.args[0]
    index: Any = node.args[1]
    name = operator_name(source)
    if name not in SPLITS or moved_axis(source, name, dim) is not None:
        return None
    sizes = [value.shape[dim] for value in source.meta["val"]]
    return sum(sizes[:index]), sizes[index]


def slice_bounds(node: Node, dim: int) -> tuple[int, int]:
    """Where a slice starts on an axis, and its size."""
    start: Any = node.args[2] if len(node.args) > 2 else 0
    return (start or 0) % shape_of(node.args[0])[dim], shape_of(node)[dim]


def shape_of(value: Any) -> list[int]:
    """The sizes of a tensor of the graph; empty of anything else."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return list(found.shape) if isinstance(found, torch.Tensor) else []
