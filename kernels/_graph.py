"""The jitted parts of `token_graph`: similarities tile by tile, never a whole matrix."""

from typing import no_type_check

from kdcompile.kernels._maps import matmul
from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _chunk(near, first, start, COUNT: tl.constexpr, STRIDE: tl.constexpr, STEP: tl.constexpr):
    """Features start, start + 1, ... of COUNT rows; rows and features are padded: no mask.

    The place of the tile is one number, so that each thread's addresses differ by constants.
    """
    tile = tl.arange(0, COUNT)[:, None] * STRIDE + tl.arange(0, STEP)[None, :]
    return tl.load(near + (first.to(tl.int64) * STRIDE + start) + tile)


@jit
@no_type_check
def _products(
    own, near, row, col, ROWS: tl.constexpr, COLS: tl.constexpr,
    SPAN: tl.constexpr, STEP: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of rows with columns, and the columns' tokens where one chunk holds them.

    `own` is the rows' first chunk, which is all that is needed then; else chunks are read again.
    """
    tile = tl.zeros([ROWS, COLS], tl.float32)
    theirs = own
    if SPAN == STEP:
        theirs = _chunk(near, col, 0, COLS, STRIDE, STEP)
        tile = matmul(own, tl.trans(theirs), tile, PRECISION)
    else:
        for start in range(0, SPAN, STEP):
            mine = _chunk(near, row, start, ROWS, STRIDE, STEP)
            other = _chunk(near, col, start, COLS, STRIDE, STEP)
            tile = matmul(mine, tl.trans(other), tile, PRECISION)
    return tile, theirs


@jit
@no_type_check
def _place(M, PADDED, ROWS: tl.constexpr, COLS: tl.constexpr, SPLITS: tl.constexpr, program):
    """First row of a program within its graph, the graph's first, and the range of columns."""
    blocks = tl.cdiv(M, ROWS)
    block = program // SPLITS
    share = tl.cdiv(tl.cdiv(M, COLS), SPLITS) * COLS
    lo = (program % SPLITS) * share
    base = (block // blocks).to(tl.int64) * PADDED
    return (block % blocks) * ROWS, base, lo, tl.minimum(lo + share, M)


@jit
@no_type_check
def _token_graph_fwd_kernel(
    near_s, near_t, scales,
    lse,  # [4, size] float32, see `_finish_rows`; written where SPLITS is 1
    pieces,  # [5, SPLITS, size] float32, for what is split
    partial,  # [programs] float32
    M, PADDED, size, sharp, factor,
    SPAN_S: tl.constexpr, SPAN_T: tl.constexpr, STEP_S: tl.constexpr, STEP_T: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr, DIAGONAL: tl.constexpr, SHARP: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    LIFT: tl.constexpr,
):  # fmt: skip
    """A block of rows over a share of the columns; without SHARP the maximum is the bound `sharp`.

    A similarity is at most 1 and at least -1, so that exp2(-2 sharp) is the least term.
    """
    first, base, lo, hi = _place(M, PADDED, ROWS, COLS, SPLITS, tl.program_id(0))
    row = first + tl.arange(0, ROWS)
    own_s = _chunk(near_s, base + first, 0, ROWS, STRIDE_S, STEP_S)
    own_t = _chunk(near_t, base + first, 0, ROWS, STRIDE_T, STEP_T)
    a_s = tl.load(scales + base + row) * sharp
    a_t = tl.load(scales + size + base + row) * sharp
    low = -1e30  # a similarity that is left out: finite, so that differences of two stay 0
    top_s = tl.full([ROWS], low, tl.float32) if SHARP else tl.zeros([ROWS], tl.float32) + sharp
    top_t = top_s
    sum_s = tl.zeros([ROWS], tl.float32)
    sum_t = tl.zeros([ROWS], tl.float32)
    cross = tl.zeros([ROWS], tl.float32)  # sum of exp2(v) (v - u)
    for start in range(lo, hi, COLS):
        col = start + tl.arange(0, COLS)
        s, _ = _products(
            own_s, near_s, base + first, base + start, ROWS, COLS, SPAN_S, STEP_S, STRIDE_S,
            PRECISION,
        )  # fmt: skip
        t, _ = _products(
            own_t, near_t, base + first, base + start, ROWS, COLS, SPAN_T, STEP_T, STRIDE_T,
            PRECISION,
        )  # fmt: skip
        beyond = tl.where(col < M, 0.0 if SHARP else -sharp, low)[None, :]
        u = s * tl.load(scales + base + col)[None, :] * a_s[:, None] + beyond
        v = t * tl.load(scales + size + base + col)[None, :] * a_t[:, None] + beyond
        if not DIAGONAL:  # noqa: SIM102 - one is known at compile time
            if (start < first + ROWS) & (start + COLS > first):
                apart = row[:, None] != col[None, :]
                u, v = tl.where(apart, u, low), tl.where(apart, v, low)
        if SHARP:
            above_s, above_t = tl.maximum(top_s, tl.max(u, 1)), tl.maximum(top_t, tl.max(v, 1))
            shrink_t = tl.exp2(top_t - above_t)
            q, gap = tl.exp2(v - above_t[:, None]), v - u
            sum_s = sum_s * tl.exp2(top_s - above_s) + tl.sum(tl.exp2(u - above_s[:, None]), 1)
            sum_t = sum_t * shrink_t + tl.sum(q, 1)
            cross = cross * shrink_t + tl.sum(q * gap, 1)
            top_s, top_t = above_s, above_t
        else:
            q = tl.exp2(v)
            sum_s += tl.sum(tl.exp2(u), 1)
            sum_t += tl.sum(q, 1)
            cross += tl.sum(q * (v - u), 1)
    if SPLITS == 1:
        _finish_rows(
            lse, partial, scales, tl.program_id(0), base + row, row < M, size, factor, sharp,
            top_s, top_t, sum_s, sum_t, cross, LIFT,
        )  # fmt: skip
    else:
        place = pieces + (tl.program_id(0) % SPLITS).to(tl.int64) * size + base + row
        step = SPLITS * size
        tl.store(place, top_s, row < M)
        tl.store(place + step, sum_s, row < M)
        tl.store(place + 2 * step, top_t, row < M)
        tl.store(place + 3 * step, sum_t, row < M)
        tl.store(place + 4 * step, cross, row < M)


@jit
@no_type_check
def _finish_rows(
    lse, partial, scales, program, row, valid, size, factor, sharp,
    top_s, top_t, sum_s, sum_t, cross, LIFT: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of rows in units of log 2, what the backward pass makes of them as those of
    columns, and the program's part of the loss.
    """
    lse_s, lse_t = tl.log2(sum_s) + top_s, tl.log2(sum_t) + top_t
    kl = (cross / sum_t + (lse_s - lse_t)) * 0.6931471805599453
    tl.store(lse + row, lse_s, valid)
    tl.store(lse + size + row, lse_t, valid)
    lift = tl.load(scales + row, valid, 0.0) * LIFT
    pull_s, pull_t = tl.minimum(sharp - lse_s, 100.0), tl.minimum(sharp - lse_t, 100.0)
    tl.store(lse + 2 * size + row, tl.exp2(pull_s) * lift, valid)
    tl.store(lse + 3 * size + row, tl.exp2(pull_t) * lift, valid)
    tl.store(partial + program, tl.sum(tl.where(valid, kl, 0.0), 0) * factor)


@jit
@no_type_check
def _token_rows_join_kernel(
    pieces, lse, partial, scales, M, PADDED, size, factor, sharp,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, LIFT: tl.constexpr,
):  # fmt: skip
    """The parts of each row's sums that different programs found."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = (row < size) & (row % PADDED < M)
    step = SPLITS * size
    top_s = tl.full([ROWS], -1e30, tl.float32)
    top_t = tl.full([ROWS], -1e30, tl.float32)
    sum_s = tl.zeros([ROWS], tl.float32)
    sum_t = tl.zeros([ROWS], tl.float32)
    cross = tl.zeros([ROWS], tl.float32)
    for split in range(SPLITS):
        place = pieces + split * size + row
        own_s, own_t = tl.load(place, valid, 0.0), tl.load(place + 2 * step, valid, 0.0)
        above_s, above_t = tl.maximum(top_s, own_s), tl.maximum(top_t, own_t)
        old_s, new_s = tl.exp2(top_s - above_s), tl.exp2(own_s - above_s)
        old_t, new_t = tl.exp2(top_t - above_t), tl.exp2(own_t - above_t)
        sum_s = sum_s * old_s + tl.load(place + step, valid, 1.0) * new_s
        sum_t = sum_t * old_t + tl.load(place + 3 * step, valid, 1.0) * new_t
        cross = cross * old_t + tl.load(place + 4 * step, valid, 0.0) * new_t
        top_s, top_t = above_s, above_t
    _finish_rows(
        lse, partial, scales, tl.program_id(0), row, valid, size, factor, sharp,
        top_s, top_t, sum_s, sum_t, cross, LIFT,
    )  # fmt: skip


@jit
@no_type_check
def _both(product, a, b, own, theirs, lift, sharp, SHARP: tl.constexpr):
    """(A_ij + A_ji) lift_j from the shared product and both scales.

    `own` and `theirs` are log-sum-exps; without SHARP exp2(sharp - it), `theirs` times `lift`.
    """
    tile = product * b[None, :] * a[:, None]
    if SHARP:  # exp2(2 sharp) is beyond float32
        i, j = tile - own[:, None], tile - theirs[None, :]  # above 0 on the diagonal alone
        return (tl.exp2(tl.minimum(i, 0.0)) + tl.exp2(tl.minimum(j, 0.0))) * lift[None, :]
    return tl.exp2(tile - sharp) * (own[:, None] * lift[None, :] + theirs[None, :])


@jit
@no_type_check
def _token_graph_bwd_kernel(
    near_s, near_t, scales, lse,
    pull,  # [SPLITS, size, STRIDE_S] float32: sum of (g_ij + g_ji) u_j without 1 / (tau G M)
    M, PADDED, size, sharp,
    SPAN_S: tl.constexpr, SPAN_T: tl.constexpr, STEP_S: tl.constexpr, STEP_T: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr, SHARP: tl.constexpr, LIFT: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    program, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    first, base, lo, hi = _place(M, PADDED, ROWS, COLS, SPLITS, program)
    row = first + tl.arange(0, ROWS)
    own_s = _chunk(near_s, base + first, 0, ROWS, STRIDE_S, STEP_S)
    own_t = _chunk(near_t, base + first, 0, ROWS, STRIDE_T, STEP_T)
    a_s = tl.load(scales + base + row) * sharp
    a_t = tl.load(scales + size + base + row) * sharp
    lse_s, lse_t = tl.load(lse + base + row), tl.load(lse + size + base + row)
    columns = lse + base
    if not SHARP:
        lse_s, lse_t, columns = tl.exp2(sharp - lse_s), tl.exp2(sharp - lse_t), columns + 2 * size
    total = tl.zeros([ROWS, PART], tl.float32)
    for start in range(lo, hi, COLS):
        col = start + tl.arange(0, COLS)
        s, near = _products(
            own_s, near_s, base + first, base + start, ROWS, COLS, SPAN_S, STEP_S, STRIDE_S,
            PRECISION,
        )  # fmt: skip
        b_s = tl.load(scales + base + col)  # 0 beyond M
        theirs = tl.load(columns + col)
        h = _both(s, a_s, b_s, lse_s, theirs, b_s * LIFT, sharp, SHARP)
        t, _ = _products(
            own_t, near_t, base + first, base + start, ROWS, COLS, SPAN_T, STEP_T, STRIDE_T,
            PRECISION,
        )  # fmt: skip
        b_t = tl.load(scales + size + base + col)
        theirs = tl.load(columns + size + col)
        h -= _both(t, a_t, b_t, lse_t, theirs, b_s * LIFT, sharp, SHARP)
        if (start < first + ROWS) & (start + COLS > first):
            # a token's pull on itself points along it: normalising takes it out again
            h = tl.where(row[:, None] != col[None, :], h, 0.0)
        if SPAN_S != STEP_S or PART != STEP_S:
            near = _chunk(near_s, base + start, part * PART, COLS, STRIDE_S, PART)
        total = matmul(h.to(near.dtype), near, total, PRECISION)
    place = ((program % SPLITS).to(tl.int64) * size + base + row)[:, None] * STRIDE_S
    place = place + (part * PART + tl.arange(0, PART))[None, :]
    tl.store(pull + place, total / LIFT, (row < M)[:, None])
