"""Device code of `batch_relation` on Grams: three losses and the matrices of their gradients.

One program does it all, some whole rows at a time: a few kilobytes, and no sum to wait for.
"""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _rows(grams, start, B, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Whole rows of both Grams: indices, which entries exist, student's and teacher's."""
    i, j = start + tl.arange(0, ROWS), tl.arange(0, COLS)
    mask = (i < B)[:, None] & (j < B)[None, :]
    place = i.to(tl.int64)[:, None] * B + j[None, :]
    s = tl.load(grams + place, mask, 0.0)
    t = tl.load(grams + B.to(tl.int64) * B + place, mask, 0.0)
    return i, j, mask, s, t


@jit
@no_type_check
def _store(pull, peak, i, j, mask, B, c, factor):
    """Rows of the gradient's matrix, each divided by its largest entry, which is stored with it."""
    top = tl.max(tl.abs(c), 1)
    share = c / tl.where(top > 0, top, 1.0)[:, None]
    tl.store(pull + i.to(tl.int64)[:, None] * B + j[None, :], share, mask)
    tl.store(peak + i, top * factor, i < B)


@jit
@no_type_check
def _inverse_norm(g, TINY: tl.constexpr):
    """1 / |row|, 0 for a row without an entry above TINY; no square overflows."""
    top = tl.max(tl.abs(g), 1)
    seen = top > TINY
    top = tl.where(seen, top, 1.0)
    unit = g / top[:, None]
    return tl.where(seen, 1.0 / (top * tl.sqrt(tl.maximum(tl.sum(unit * unit, 1), 1e-30))), 0.0)


@jit
@no_type_check
def _spkd_kernel(
    grams, loss, pull, peak, kept, B, TINY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Loss of normalised rows a = G_S / |row|, b = G_T / |row|, and dL/dG + its transpose."""
    factor = 1.0 / (B * B).to(tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, B, ROWS):
        i, j, mask, s, t = _rows(grams, start, B, ROWS, COLS)
        n_s, n_t = _inverse_norm(s, TINY), _inverse_norm(t, TINY)
        a = s * n_s[:, None]
        gap = a - t * n_t[:, None]
        total += tl.sum(gap * gap, 1)
        tl.store(kept + i, n_s, i < B)
        tl.store(kept + B + i, n_t, i < B)
        tl.store(kept + 2 * B + i, tl.sum(gap * a, 1), i < B)
    tl.store(loss, tl.sum(total, 0) * factor)
    tl.debug_barrier()  # every thread's rows are in memory
    for start in range(0, B, ROWS):
        i, j, mask, s, t = _rows(grams, start, B, ROWS, COLS)
        n_i, n_j = tl.load(kept + i, i < B, 0.0)[:, None], tl.load(kept + j, j < B, 0.0)[None, :]
        m_i = tl.load(kept + B + i, i < B, 0.0)[:, None]
        m_j = tl.load(kept + B + j, j < B, 0.0)[None, :]
        r_i = tl.load(kept + 2 * B + i, i < B, 0.0)[:, None]
        r_j = tl.load(kept + 2 * B + j, j < B, 0.0)[None, :]
        a_ij, a_ji = s * n_i, s * n_j
        c = (a_ij - t * m_i - a_ij * r_i) * n_i + (a_ji - t * m_j - a_ji * r_j) * n_j
        _store(pull, peak, i, j, mask, B, c, 2.0 * factor)


@jit
@no_type_check
def _distances(grams, g, i, j, B, NOISE: tl.constexpr):
    """Twice the centred halves: distances; 0 where they are within the rounding of the Gram."""
    sizes = tl.load(grams + i.to(tl.int64) * (B + 1), i < B, 0.0)[:, None]
    sizes = sizes + tl.load(grams + j.to(tl.int64) * (B + 1), j < B, 0.0)[None, :]
    square = sizes - 2.0 * g
    far = (square > NOISE * sizes) & (i < B)[:, None] & (j < B)[None, :]
    return 2.0 * tl.sqrt(tl.where(far, square, 0.0))


@jit
@no_type_check
def _both_distances(grams, start, B, NOISE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    i, j, mask, s, t = _rows(grams, start, B, ROWS, COLS)
    theirs = grams + B.to(tl.int64) * B
    own, other = _distances(grams, s, i, j, B, NOISE), _distances(theirs, t, i, j, B, NOISE)
    return i, j, mask, own, other


@jit
@no_type_check
def _mean_inverse(total, count):
    """1 / mean distance, 0 where all samples are equal."""
    total = tl.sum(total, 0)
    return tl.where(total > 0, tl.sum(count, 0) / tl.where(total > 0, total, 1.0), 0.0)


@jit
@no_type_check
def _rkd_kernel(
    grams, loss, pull, peak, kept, B, NOISE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Smooth L1 of distances over their means, and the matrix of the gradient."""
    factor = 1.0 / (B * B).to(tl.float32)
    total_s = tl.zeros([ROWS], tl.float32)
    total_t = tl.zeros([ROWS], tl.float32)
    count_s = tl.zeros([ROWS], tl.float32)
    count_t = tl.zeros([ROWS], tl.float32)
    for start in range(0, B, ROWS):
        i, j, mask, own, other = _both_distances(grams, start, B, NOISE, ROWS, COLS)
        total_s += tl.sum(own, 1)
        total_t += tl.sum(other, 1)
        count_s += tl.sum((own > 0).to(tl.float32), 1)
        count_t += tl.sum((other > 0).to(tl.float32), 1)
    n_s, n_t = _mean_inverse(total_s, count_s), _mean_inverse(total_t, count_t)
    total = tl.zeros([ROWS], tl.float32)
    through = tl.zeros([ROWS], tl.float32)  # the mean: sum of dL/dx x
    for start in range(0, B, ROWS):
        i, j, mask, own, other = _both_distances(grams, start, B, NOISE, ROWS, COLS)
        x = own * n_s - other * n_t
        slope = tl.minimum(tl.maximum(x, -1.0), 1.0)
        total += tl.sum(slope * (x - 0.5 * slope), 1)
        through += tl.sum(slope * own * n_s, 1)
    tl.store(loss, tl.sum(total, 0) * factor)
    mean_pull = tl.sum(through, 0) / tl.maximum(tl.sum(count_s, 0), 1.0)
    for start in range(0, B, ROWS):
        i, j, mask, own, other = _both_distances(grams, start, B, NOISE, ROWS, COLS)
        slope = tl.minimum(tl.maximum(own * n_s - other * n_t, -1.0), 1.0)
        far = own > 0
        w = tl.where(far, (slope - mean_pull) * n_s / tl.where(far, own, 1.0), 0.0)
        c = tl.where(i[:, None] == j[None, :], tl.sum(w, 1)[:, None], -w)
        _store(pull, peak, i, j, mask, B, c, 4.0 * factor)  # 2 for i, j and j, i; 2 for the halves


@jit
@no_type_check
def _cosines(grams, g, i, j, B, TINY: tl.constexpr):
    """Cosines, and inverse lengths of rows and columns; a zero sample has cosine 0 with all."""
    a = tl.load(grams + i.to(tl.int64) * (B + 1), i < B, 0.0)
    b = tl.load(grams + j.to(tl.int64) * (B + 1), j < B, 0.0)
    n_i = tl.where(a > TINY, 1.0 / tl.sqrt(tl.where(a > TINY, a, 1.0)), 0.0)[:, None]
    n_j = tl.where(b > TINY, 1.0 / tl.sqrt(tl.where(b > TINY, b, 1.0)), 0.0)[None, :]
    return tl.minimum(tl.maximum(g * n_i * n_j, -1.0), 1.0), n_i, n_j


@jit
@no_type_check
def _pkt_kernel(
    grams, loss, pull, peak, kept, B,
    TINY: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """KL of rows p of (cosine + 1) / 2, and the matrix of the gradient."""
    factor = 1.0 / (B * B).to(tl.float32)
    theirs = grams + B.to(tl.int64) * B
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, B, ROWS):
        i, j, mask, s, t = _rows(grams, start, B, ROWS, COLS)
        k = tl.where(mask, 0.5 + 0.5 * _cosines(grams, s, i, j, B, TINY)[0], 0.0)
        k_t = tl.where(mask, 0.5 + 0.5 * _cosines(theirs, t, i, j, B, TINY)[0], 0.0)
        q, q_t = (
            1.0 / tl.where(i < B, tl.sum(k, 1), 1.0),
            1.0 / tl.where(i < B, tl.sum(k_t, 1), 1.0),
        )
        p, p_t = k * q[:, None], k_t * q_t[:, None]
        total += tl.sum(p_t * tl.log((p_t + EPS) / (p + EPS)), 1)
        slope = (p - p_t + EPS) / (p + EPS)  # dL/dp + 1: a constant changes nothing
        tl.store(kept + i, q, i < B)
        tl.store(kept + B + i, q_t, i < B)
        tl.store(kept + 2 * B + i, tl.sum(slope * p, 1), i < B)
    tl.store(loss, tl.sum(total, 0) * factor)
    tl.debug_barrier()  # every thread's rows are in memory
    for start in range(0, B, ROWS):
        i, j, mask, s, t = _rows(grams, start, B, ROWS, COLS)
        cosine, n_i, n_j = _cosines(grams, s, i, j, B, TINY)
        k, k_t = 0.5 + 0.5 * cosine, 0.5 + 0.5 * _cosines(theirs, t, i, j, B, TINY)[0]
        q_i, q_j = tl.load(kept + i, i < B, 0.0)[:, None], tl.load(kept + j, j < B, 0.0)[None, :]
        u_i = tl.load(kept + B + i, i < B, 0.0)[:, None]
        u_j = tl.load(kept + B + j, j < B, 0.0)[None, :]
        r_i = tl.load(kept + 2 * B + i, i < B, 0.0)[:, None]
        r_j = tl.load(kept + 2 * B + j, j < B, 0.0)[None, :]
        e = ((k * q_i - k_t * u_i + EPS) / (k * q_i + EPS) - r_i) * q_i
        e = e + ((k * q_j - k_t * u_j + EPS) / (k * q_j + EPS) - r_j) * q_j
        itself = i[:, None] == j[None, :]
        e = tl.where(mask & ~itself, e * n_i, 0.0)
        c = tl.where(itself, -tl.sum(e * cosine, 1)[:, None] * n_i, e * n_j)
        _store(pull, peak, i, j, mask, B, c, 0.5 * factor)
