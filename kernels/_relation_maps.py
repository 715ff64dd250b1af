"""Device code of `batch_relation` on maps: their Grams, and the gradient from a [B, B] matrix."""

from typing import no_type_check

from kdcompile.kernels._maps import matmul
from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _slice(maps, row, d, B, D, CENTRE: tl.constexpr):
    """Elements d of some samples; with CENTRE half their difference from the first sample's.

    Half, because a difference of two float16 values may lie beyond float16.
    """
    x = tl.load(
        maps + (row.to(tl.int64)[:, None] * D + d[None, :]),
        (row < B)[:, None] & (d < D)[None, :],
        0.0,
    )
    if CENTRE:
        first = tl.load(maps + d, d < D, 0.0).to(tl.float32)
        x = ((x.to(tl.float32) - first[None, :]) * 0.5).to(x.dtype)
    return x


@jit
@no_type_check
def _partial_gram(
    maps, out, slot, split, tile_i, tile_j, B, D, SPLITS,
    CENTRE: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One tile of the Gram over one range of the elements, to its slot of `out`."""
    i = tile_i * ROWS + tl.arange(0, ROWS)
    j = tile_j * ROWS + tl.arange(0, ROWS)
    share = tl.cdiv(tl.cdiv(D, COLS), SPLITS) * COLS
    gram = tl.zeros([ROWS, ROWS], tl.float32)
    for start in range(split * share, tl.minimum(D, (split + 1) * share), COLS):
        d = start + tl.arange(0, COLS)
        x = _slice(maps, i, d, B, D, CENTRE)
        y = x
        if not ONE:
            y = _slice(maps, j, d, B, D, CENTRE)
        gram = matmul(x, tl.trans(y), gram, PRECISION)
    place = (slot.to(tl.int64) * B + i)[:, None] * B + j[None, :]
    tl.store(out + place, gram, (i < B)[:, None] & (j < B)[None, :])


@jit
@no_type_check
def _gram_parts_kernel(
    student,  # [B, D_S]
    teacher,  # [B, D_T]
    out,  # [2, SPLITS, B, B] float32
    B, UNITS_S, UNITS_T, SPLITS,
    CENTRE: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """D is UNITS * UNIT: so the compiler sees how well each sample is aligned."""
    tiles, D_S, D_T = tl.cdiv(B, ROWS), UNITS_S * UNIT, UNITS_T * UNIT
    tile, slot = tl.program_id(0) % (tiles * tiles), tl.program_id(0) // (tiles * tiles)
    if slot < SPLITS:
        _partial_gram(
            student, out, slot, slot, tile // tiles, tile % tiles, B, D_S, SPLITS,
            CENTRE, ONE, PRECISION, ROWS, COLS,
        )  # fmt: skip
    else:
        _partial_gram(
            teacher, out, slot, slot - SPLITS, tile // tiles, tile % tiles, B, D_T, SPLITS,
            CENTRE, ONE, PRECISION, ROWS, COLS,
        )  # fmt: skip


@jit
@no_type_check
def _weights(pull, i, j, B, kind: tl.constexpr):
    """A tile of C as its rounded value and what rounding took."""
    mask = (i < B)[:, None] & (j < B)[None, :]
    c = tl.load(pull + i.to(tl.int64)[:, None] * B + j[None, :], mask, 0.0)
    high = c.to(kind)
    return high, (c - high.to(tl.float32)).to(kind)


@jit
@no_type_check
def _weigh(high, low, x, total, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """total + C x."""
    if HALF:
        total = matmul(low, x, total, PRECISION)
    return matmul(high, x, total, PRECISION)


@jit
@no_type_check
def _batch_relation_bwd_kernel(
    student, pull, peak, upstream, grad, B, UNITS, WORKERS,
    CENTRE: tl.constexpr, ONE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """grad = upstream * peak * C F for a tile of samples and every WORKERS-th slice of elements."""
    tiles, D = tl.cdiv(B, ROWS), UNITS * UNIT
    i = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(peak + i, i < B, 0.0) * tl.load(upstream)
    kind = student.dtype.element_ty
    high, low = _weights(pull, i, i, B, kind)
    for block in range(tl.program_id(0) // tiles, tl.cdiv(D, COLS), WORKERS):
        d = block * COLS + tl.arange(0, COLS)
        total = tl.zeros([ROWS, COLS], tl.float32)
        if ONE:
            x = _slice(student, i, d, B, D, CENTRE)
            total = _weigh(high, low, x, total, HALF, PRECISION)
        else:
            for start in range(0, B, ROWS):
                j = start + tl.arange(0, ROWS)
                own, rest = _weights(pull, i, j, B, kind)
                x = _slice(student, j, d, B, D, CENTRE)
                total = _weigh(own, rest, x, total, HALF, PRECISION)
        place = i.to(tl.int64)[:, None] * D + d[None, :]
        mask = (i < B)[:, None] & (d < D)[None, :]
        tl.store(grad + place, (total * scale[:, None]).to(grad.dtype.element_ty), mask)
