"""Reshapes whose numbers follow the tensor's own axes, so that widths and batches may change."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdcompile.models.channel_axes import shape_blocks
from kdcompile.models.onnx_import.values import Call, Dim, Node, Value, operator

# what a size of a reshape is: a number; or a product of the input's axes, times and over numbers
Size = int | tuple[list[int], int, int] | None


@operator("Reshape")
def reshape(node: Node) -> Call:
    """Numbers in the file follow the input's axes, so that widths and batches may change."""
    data, wanted = node.value(0), node.ints("shape", 1)
    before = data.shape
    asked = list(wanted.example) if isinstance(wanted, Value) else [int(n) for n in wanted]
    if not node.get("allowzero", 0):
        asked = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(asked)]
    known = math.prod(n for n in asked if n != -1)
    after = [math.prod(before) // max(known, 1) if n == -1 else int(n) for n in asked]
    if not before or math.prod(before) == 0:
        return Call(torch.reshape, [data, [int(n) for n in asked]])
    free = {i for i, n in enumerate(asked) if n == -1 or isinstance(n, Dim)}
    plan = followed(before, after, free)
    for place in free:
        plan[place] = -1 if asked[place] == -1 else None
    computed = wanted if isinstance(wanted, Value) and None in plan else None
    return Call(reshaped, [data, computed, plan])


def followed(before: Sequence[int], after: Sequence[int], free: set[int]) -> list[Size]:
    """What each size of a reshape is, so that it holds for other widths and batches.

    An axis that stays, or several that become one, follow the input's. Of an axis that is split
    the innermost part follows, which is where channels are; of the first axis, where the batch is,
    the outermost.

    Args:
        before: the example's sizes.
        after: the same after the reshape.
        free: axes after it that something else gives.
    """
    plan: list[Size] = [*after]
    behind = before[0] != 1  # then a batch of 1 is an inner axis: of tokens first
    last: tuple[list[int], list[int]] | None = None
    for old, new in shape_blocks(before, after):
        if free & set(new):
            last = None
            continue
        ones = 1 if behind and len(old) > 1 and before[old[0]] == 1 else 0
        if behind and last is not None and len(new) > 1 and after[new[0]] == 1:
            plan[last[1][-1]] = after[last[1][-1]]
            plan[new[0]] = (last[0], 1, math.prod(after[d] for d in last[1]))
            new = new[1:]
        elif ones and last is not None and len(new) == 1:
            plan[last[1][-1]] = ([*last[0], old[0]], 1, 1)
        last = (old[ones:], new)
        _follow(plan, old, new, before, after, ones)
    return plan


def _follow(
    plan: list[Size], old: list[int], new: list[int], before: Sequence[int],
    after: Sequence[int], ones: int,
) -> None:  # fmt: skip
    """One run of axes and what it becomes."""
    wide = [d for d in new if after[d] > 1] or new[:1]
    lead = new[0] == old[0] == 0 and len(new) > 1
    takes = 0 if lead else wide[-1]
    rest = math.prod(after[d] for d in new if d != takes)
    if (
        lead and before[0] == after[0] == 1 and len(old) > 1
    ):  # the batch stays, what follows it is joined
        plan[0] = ([0], 1, 1)
        takes, old = wide[-1], old[1:]
        rest = math.prod(after[d] for d in new[1:] if d != takes)
    if ones and len(new) > 1:  # heads of every image of a batch that is an inner axis
        plan[new[0]] = (old[:1], after[new[0]], 1)
    plan[takes] = (old[ones:], 1, rest)


def reshaped(x: Tensor, computed: list[int] | None, plan: Sequence[Size]) -> Tensor:
    """A reshape by `followed`, with sizes that the network computes where it has None."""
    found: list[int] = []
    for place, one in enumerate(plan):
        if one is None:
            assert computed is not None, "a computed size has its numbers"
            found.append(computed[place])
        elif isinstance(one, int):
            found.append(one)
        else:
            found.append(math.prod(x.shape[d] for d in one[0]) * one[1] // one[2])
    return x.reshape(found)
