"""The jitted parts of `token_graph`: similarities tile by tile, never a whole matrix."""

from typing import no_type_check

from kdcompile.kernels._maps import matmul, offsets
from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _shrink(
    pointer, near, scale, inverse, graph, token, M, D, PADDED,
    LAST: tl.constexpr, STRIDE: tl.constexpr, EPS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Tokens times a power of two, of length 1 to 2, as padded rows; what is left of 1 / |f|."""
    k = tl.arange(0, STRIDE)
    place = offsets(graph, k[None, :], token[:, None], D, M, LAST)
    inside = (token < M)[:, None] & (k < D)[None, :]
    f = tl.load(pointer + place, inside, 0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(f * f, 1))
    seen = length > EPS
    length = tl.where(seen, length, 1.0)
    power = 0x7F000000 - (length.to(tl.int32, bitcast=True) & 0x7F800000)
    power = power.to(tl.float32, bitcast=True)
    row = graph * PADDED + token
    f = tl.where(seen[:, None], f * power[:, None], 0.0)
    tl.store(near + row[:, None] * STRIDE + k[None, :], f.to(near.dtype.element_ty))
    tl.store(scale + row, tl.where(seen, 1.0 / (length * power), 0.0))
    if INVERSE:
        tl.store(inverse + row, tl.where(seen, 1.0 / length, 0.0))


@jit
@no_type_check
def _token_rows_kernel(
    student,  # [G, M, d_S], or [G, d_S, M] in memory unless LAST_S
    teacher,  # [G, M, d_T]
    near_s,  # [G * PADDED, STRIDE_S]
    near_t,
    scales,  # [3, G * PADDED] float32: what is left of 1 / |f| for s and t, and all of it for s
    M, D_S, D_T, PADDED, size,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr,
    EPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    blocks = PADDED // ROWS
    graph = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    inverse = scales + 2 * size
    _shrink(
        student, near_s, scales, inverse, graph, token, M, D_S, PADDED, LAST_S, STRIDE_S, EPS, True
    )
    _shrink(
        teacher, near_t, scales + size, inverse, graph, token, M, D_T, PADDED, LAST_T, STRIDE_T,
        EPS, False,
    )  # fmt: skip


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
    lse,  # [2, size] float32 in units of log 2; written where SPLITS is 1
    pieces,  # [5, SPLITS, size] float32, for what is split
    partial,  # [programs] float32
    M, PADDED, size, sharp, factor,
    SPAN_S: tl.constexpr, SPAN_T: tl.constexpr, STEP_S: tl.constexpr, STEP_T: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr, DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    first, base, lo, hi = _place(M, PADDED, ROWS, COLS, SPLITS, tl.program_id(0))
    row = first + tl.arange(0, ROWS)
    own_s = _chunk(near_s, base + first, 0, ROWS, STRIDE_S, STEP_S)
    own_t = _chunk(near_t, base + first, 0, ROWS, STRIDE_T, STEP_T)
    a_s = tl.load(scales + base + row) * sharp
    a_t = tl.load(scales + size + base + row) * sharp
    low = -1e30  # a similarity that is left out: finite, so that differences of two stay 0
    top_s = tl.full([ROWS], low, tl.float32)
    top_t = tl.full([ROWS], low, tl.float32)
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
        keep = (col < M)[None, :]
        if not DIAGONAL:
            keep = keep & (row[:, None] != col[None, :])
        u = tl.where(keep, s * a_s[:, None] * tl.load(scales + base + col)[None, :], low)
        v = tl.where(keep, t * a_t[:, None] * tl.load(scales + size + base + col)[None, :], low)
        above_s, above_t = tl.maximum(top_s, tl.max(u, 1)), tl.maximum(top_t, tl.max(v, 1))
        shrink_t = tl.exp2(top_t - above_t)
        q = tl.exp2(v - above_t[:, None])
        sum_s = sum_s * tl.exp2(top_s - above_s) + tl.sum(tl.exp2(u - above_s[:, None]), 1)
        sum_t = sum_t * shrink_t + tl.sum(q, 1)
        cross = cross * shrink_t + tl.sum(q * (v - u), 1)
        top_s, top_t = above_s, above_t
    if SPLITS == 1:
        _finish_rows(
            lse, partial, tl.program_id(0), base + row, row < M, size, factor,
            top_s, top_t, sum_s, sum_t, cross,
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
    lse, partial, program, row, valid, size, factor, top_s, top_t, sum_s, sum_t, cross
):
    """Log-sum-exps of rows, and the program's part of the loss."""
    lse_s, lse_t = tl.log2(sum_s) + top_s, tl.log2(sum_t) + top_t
    kl = (cross / sum_t + (lse_s - lse_t)) * 0.6931471805599453
    tl.store(lse + row, lse_s, valid)
    tl.store(lse + size + row, lse_t, valid)
    tl.store(partial + program, tl.sum(tl.where(valid, kl, 0.0), 0) * factor)


@jit
@no_type_check
def _token_rows_join_kernel(
    pieces, lse, partial, M, PADDED, size, factor, SPLITS: tl.constexpr, ROWS: tl.constexpr
):
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
        lse, partial, tl.program_id(0), row, valid, size, factor,
        top_s, top_t, sum_s, sum_t, cross,
    )  # fmt: skip


@jit
@no_type_check
def _both(tile, own, theirs, sharp, SHARP: tl.constexpr):
    """A_ij + A_ji from the shared logit and both rows' log-sum-exps."""
    if SHARP:  # exp2(2 sharp) is beyond float32
        a, b = tile - own[:, None], tile - theirs[None, :]  # above 0 on the diagonal alone
        return tl.exp2(tl.minimum(a, 0.0)) + tl.exp2(tl.minimum(b, 0.0))
    weights = tl.exp2(sharp - own)[:, None] + tl.exp2(sharp - theirs)[None, :]
    return tl.exp2(tile - sharp) * weights


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
    lse_s = tl.load(lse + base + row, row < M, 0.0)
    lse_t = tl.load(lse + size + base + row, row < M, 0.0)
    total = tl.zeros([ROWS, PART], tl.float32)
    for start in range(lo, hi, COLS):
        col = start + tl.arange(0, COLS)
        s, near = _products(
            own_s, near_s, base + first, base + start, ROWS, COLS, SPAN_S, STEP_S, STRIDE_S,
            PRECISION,
        )  # fmt: skip
        b_s, valid = tl.load(scales + base + col), col < M
        h = _both(
            s * a_s[:, None] * b_s[None, :], lse_s, tl.load(lse + base + col, valid, 0.0), sharp,
            SHARP,
        )  # fmt: skip
        t, _ = _products(
            own_t, near_t, base + first, base + start, ROWS, COLS, SPAN_T, STEP_T, STRIDE_T,
            PRECISION,
        )  # fmt: skip
        b_t = tl.load(scales + size + base + col)
        h -= _both(
            t * a_t[:, None] * b_t[None, :], lse_t, tl.load(lse + size + base + col, valid, 0.0),
            sharp, SHARP,
        )  # fmt: skip
        # a token's pull on itself points along it: normalising takes it out again
        keep = (row[:, None] != col[None, :]) & (row < M)[:, None]
        h = tl.where(keep, h * (b_s * LIFT)[None, :], 0.0)
        if SPAN_S != STEP_S or PART != STEP_S:
            near = _chunk(near_s, base + start, part * PART, COLS, STRIDE_S, PART)
        total = matmul(h.to(near.dtype), near, total, PRECISION)
    place = ((program % SPLITS).to(tl.int64) * size + base + row)[:, None] * STRIDE_S
    place = place + (part * PART + tl.arange(0, PART))[None, :]
    tl.store(pull + place, total / LIFT, (row < M)[:, None])


@jit
@no_type_check
def _token_rows_bwd_kernel(
    pull, near, scales, upstream, grad, M, D, PADDED, size, factor,
    LAST: tl.constexpr, STRIDE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Through the normalisation: (du - (du . u) u) / |f|."""
    blocks = tl.cdiv(M, ROWS)
    graph = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    row = graph * PADDED + token
    k = tl.arange(0, STRIDE)
    inside = (token < M)[:, None] & (k < D)[None, :]
    place = row[:, None] * STRIDE + k[None, :]
    du = tl.zeros([ROWS, STRIDE], tl.float32)
    for split in range(SPLITS):
        du += tl.load(pull + split * size.to(tl.int64) * STRIDE + place, inside, 0.0)
    u = tl.load(near + place, inside, 0.0).to(tl.float32) * tl.load(scales + row)[:, None]
    inverse = tl.load(scales + 2 * size + row) * (tl.load(upstream) * factor)
    df = (du - tl.sum(du * u, 1)[:, None] * u) * inverse[:, None]
    target = offsets(graph, k[None, :], token[:, None], D, M, LAST)
    tl.store(grad + target, df.to(grad.dtype.element_ty), inside)
