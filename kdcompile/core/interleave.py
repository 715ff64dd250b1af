"""The loop of every measurement: networks interleaved, in an order that rotates.

A difference of seconds apart would be a difference of clocks, caches and neighbours. Each block
times a short run of every network (A B, then B A); the blocks are the samples. It runs in this
process, in those of `kdcompile.latency`, and in the agent on a board: Python 3.8.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

MIN_BLOCKS = 6  # fewer distinct resamples than 6 blocks have cannot carry a 95 % interval


def in_order(names: Sequence[Any], turn: int) -> list[Any]:
    """The order of a turn: A B C, then B C A, so that none is always first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def interleave(
    names: Sequence[Any],
    take: Callable[[Any, int], object],
    blocks: int,
    goes_on: Callable[[], bool] = lambda: True,
    *,
    least: int = MIN_BLOCKS,
    repeats: int = 0,
    first: int = 0,
) -> None:
    """Take a block of each network in every turn, in an order that rotates.

    Args:
        names: of the networks.
        take: takes a block of a network, given its name and the turn; true where it was disturbed.
        blocks: turns that are wanted.
        goes_on: whether there is time for another turn; asked before each.
        least: turns that are taken whatever `goes_on` says.
        repeats: the most turns that are added, one for each in which a block was disturbed.
        first: the turn that begins, as `in_order` counts them.
    """
    turn = 0
    while turn < blocks and (goes_on() or turn < least):
        disturbed = [take(name, turn) for name in in_order(names, first + turn)]
        if repeats and any(disturbed):
            blocks, repeats = blocks + 1, repeats - 1
        turn += 1
