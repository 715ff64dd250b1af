"""Sums over the programs of all taps of `adapter_cosine`, and their gradients times the upstream.

One launch each for all taps: what differs by tap is a table of constants in the kernel.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Compilation
from kdcompile.kernels._runtime import jit, tl
from kdcompile.kernels._scale import is_last_use

COLUMNS, ROWS = 128, 32  # of a tile of partial sums
ALIGN = 4096  # elements of a block of the gradients: no block has elements of two taps
WARPS = 8


@jit
@no_type_check
def fold_kernel(
    partial,  # float32
    sums,  # [parameters] float32: gradients of the parameters, tap behind tap
    loss,  # [] float32
    LOSSES: tl.constexpr,  # (first, rows, stride, factor) of each tap
    PARAMETERS: tl.constexpr,  # (first, rows, stride, columns, block, place in sums, factor)
    TAPS: tl.constexpr, FOLDED: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Add up the rows of each tap in order; program 0 the losses, the others COLUMNS each."""
    program = tl.program_id(0)
    if program == 0:
        total = tl.zeros([LANES], tl.float32)
        lane = tl.arange(0, LANES)
        for i in tl.static_range(TAPS):
            at = partial + LOSSES[i][0] + lane * LOSSES[i][2]
            total += tl.load(at, lane < LOSSES[i][1], 0.0) * LOSSES[i][3]
        tl.store(loss, tl.sum(total, 0))
    for i in tl.static_range(FOLDED):
        first, rows, stride, width = (
            PARAMETERS[i][0], PARAMETERS[i][1], PARAMETERS[i][2], PARAMETERS[i][3],
        )  # fmt: skip
        block = program - 1 - PARAMETERS[i][4]
        if (block >= 0) & (block < (width + COLUMNS - 1) // COLUMNS):
            column, row = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS)
            folded = tl.zeros([ROWS, COLUMNS], tl.float32)
            for start in range(0, rows, ROWS):
                at = partial + first + (start + row)[:, None] * stride + column[None, :]
                mask = (start + row < rows)[:, None] & (column < width)[None, :]
                folded += tl.load(at, mask, 0.0)
            own = tl.sum(folded, 0) * PARAMETERS[i][6]
            tl.store(sums + PARAMETERS[i][5] + column, own, column < width)


def fold(
    partial: Tensor, sums: Tensor, loss: Tensor, losses: tuple[tuple[Any, ...], ...],
    parameters: tuple[tuple[Any, ...], ...],
) -> None:  # fmt: skip
    """Add up `partial` into `sums` and `loss`, in one launch.

    Args:
        losses: first element, rows, stride and factor of each tap's distances.
        parameters: the same of its parameters, with their number after the stride.
    """
    programs, constants = _tables(losses, parameters)
    fold_kernel[(programs,)](partial, sums, loss, **constants)


@lru_cache(maxsize=1024)
def _tables(
    losses: tuple[tuple[Any, ...], ...], parameters: tuple[tuple[Any, ...], ...]
) -> tuple[int, dict[str, Any]]:
    """Programs and constants of `fold_kernel`."""
    table, block, place = [], 0, 0
    for first, rows, stride, width, factor in parameters:
        table.append((first, rows, stride, width, block, place, factor))
        block, place = block + ceil_div(width, COLUMNS), place + width
    lanes = power_of_two(max(rows for _, rows, *_ in losses))
    return 1 + block, {
        "LOSSES": losses, "PARAMETERS": tuple(table), "TAPS": len(losses), "FOLDED": len(table),
        "LANES": lanes, "COLUMNS": COLUMNS, "ROWS": ROWS, "num_warps": 4,
    }  # fmt: skip


@jit
@no_type_check
def taps_scale_kernel(
    values, out,  # of the maps' type
    sums, out_sums, upstream, blocks, more,
    TAPS: tl.constexpr,  # (first block, factor) of each tap
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The taps' gradients times upstream and their own factor; after them the parameters'."""
    block = tl.program_id(0)
    scale = tl.load(upstream).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    if block < blocks:
        factor = TAPS[0][1]
        for i in tl.static_range(1, COUNT):
            factor = tl.where(block >= TAPS[i][0], TAPS[i][1], factor)
        place = block.to(tl.int64) * BLOCK + lane
        value = tl.load(values + place).to(tl.float32) * (scale * factor)
        tl.store(out + place, value.to(out.dtype.element_ty))
    else:
        at = (block - blocks) * BLOCK + lane
        tl.store(out_sums + at, tl.load(sums + at, at < more, 0.0) * scale, at < more)


def _scale_fake(values: Tensor, sums: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(sums)


@operator(_scale_fake)
def taps_scaled(
    values: Tensor, sums: Tensor, upstream: Tensor, begins: Sequence[int],
    factors: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both times upstream, and from each of `begins` on `values` times one of `factors` too."""
    out, out_sums = _scale_fake(values, sums)
    _launch(values, out, sums, out_sums, upstream, begins, factors)
    return out, out_sums


def consume_taps(
    values: Tensor, sums: Tensor, upstream: Tensor, begins: Sequence[int], factors: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The same within a backward pass, `values` in place where nobody needs them any more."""
    if not is_last_use(values):
        return taps_scaled(values, sums, upstream, begins, factors)  # type: ignore[no-any-return]
    out_sums = torch.empty_like(sums)
    _launch(values, values, sums, out_sums, upstream, begins, factors)
    return values, out_sums


def _launch(
    values: Tensor, out: Tensor, sums: Tensor, out_sums: Tensor, upstream: Tensor,
    begins: Sequence[int], factors: Sequence[float],
) -> None:  # fmt: skip
    blocks, more = values.numel() // ALIGN, sums.numel()
    table = tuple((begin // ALIGN, factor) for begin, factor in zip(begins, factors, strict=True))
    taps_scale_kernel[(blocks + ceil_div(more, ALIGN),)](
        values, out, sums, out_sums, upstream, blocks, more, TAPS=table, COUNT=len(table),
        BLOCK=ALIGN, num_warps=WARPS,
    )  # fmt: skip


def fold_compilations(dtype: torch.dtype) -> list[Compilation]:
    """Both kernels for two taps."""
    names = ("partial", "sums", "loss", "out_sums", "upstream")
    types = dict.fromkeys(("values", "out"), POINTER[dtype]) | dict.fromkeys(names, "*fp32")
    types |= {"blocks": "i32", "more": "i32"}
    losses, parameters = ((0, 396, 1089, 0.5),) * 2, ((0, 396, 1089, 1088, 0.5),) * 2
    _, tables = _tables(losses, parameters)
    scales: dict[str, Any] = {"TAPS": ((0, 0.5), (10, 0.25)), "COUNT": 2, "BLOCK": ALIGN}
    warps = {"num_warps": tables["num_warps"]}, {"num_warps": WARPS}
    constants = {n: value for n, value in tables.items() if n != "num_warps"}
    return [
        Compilation(fold_kernel, types, constants, warps[0], "two taps", True),
        Compilation(taps_scale_kernel, types, scales, warps[1], "two taps", True),
    ]
