"""Jitted code of `kd_kl`: rows of logits in blocks of ROWS, their classes CLASSES at a time."""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl

LOG2E = tl.constexpr(1.4426950408889634)


@jit
@no_type_check
def _address(pointer, image, first, lane, k, C: tl.constexpr, P, LAST: tl.constexpr):
    """Addresses [rows, classes]: 64 bits to the block's corner, few from there."""
    if LAST:
        return pointer + (image * P + first) * C + (lane[:, None] * C + k[None, :])
    return pointer + image * (C * P) + first + (k.to(tl.int64) * P)[None, :] + lane[:, None]


@jit
@no_type_check
def _tile(
    pointer, image, first, lane, valid, theirs, start, lo: tl.constexpr, width: tl.constexpr,
    C: tl.constexpr, P, LAST: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Classes start, start + 1, ... of the range for a block of rows; -inf beyond it."""
    k = start + tl.arange(0, CLASSES)
    place = _address(pointer, image, first, lane, lo + k, C, P, LAST) + theirs
    inside = valid[:, None] & ((k >= 0) & (k < width))[None, :]
    return tl.load(place, inside, float("-inf")).to(tl.float32), inside


@jit
@no_type_check
def _scale(
    pointer, image, first, lane, valid, theirs, lo: tl.constexpr, width: tl.constexpr,
    C: tl.constexpr, P, T, LAST: tl.constexpr, STD: tl.constexpr, EPS: tl.constexpr,
    CLASSES: tl.constexpr,
):  # fmt: skip
    """Mean of each row and its factor 1 / (T sigma); 0 and 1 / T unless STD."""
    mean = tl.zeros_like(valid.to(tl.float32))
    scale = mean + 1.0 / T
    if STD:
        for start in range(0, width, CLASSES):
            x, mask = _tile(
                pointer, image, first, lane, valid, theirs, start, lo, width, C, P, LAST, CLASSES
            )
            mean += tl.sum(tl.where(mask, x, 0.0), 1)
        mean = mean / width
        square = tl.zeros_like(mean)
        for start in range(0, width, CLASSES):
            x, mask = _tile(
                pointer, image, first, lane, valid, theirs, start, lo, width, C, P, LAST, CLASSES
            )
            gap = tl.where(mask, x, mean[:, None]) - mean[:, None]
            square += tl.sum(gap * gap, 1)
        variance = square / tl.maximum(width - 1, 1)
        scale = 1.0 / (T * tl.sqrt(tl.maximum(variance, EPS * EPS)))
    return mean, scale


@jit
@no_type_check
def _block(
    student, teacher, index, P, T, stride,
    C: tl.constexpr, lo: tl.constexpr, width: tl.constexpr, LAST_S: tl.constexpr,
    LAST_T: tl.constexpr, INDEXED: tl.constexpr, STD: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """This program's rows, where their teachers lie, and mean and factor of both sides."""
    blocks = tl.cdiv(P, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    first, lane = ((tl.program_id(0) % blocks) * ROWS).to(tl.int64), tl.arange(0, ROWS)
    valid = first + lane < P
    row = image * P + first + lane
    ours = tl.zeros([1, 1], tl.int64)
    theirs = tl.zeros([ROWS, 1], tl.int64)
    if INDEXED:
        theirs += (tl.load(index + row, valid, 0) * stride)[:, None]
    mean_s, scale_s = _scale(
        student, image, first, lane, valid, ours, lo, width, C, P, T, LAST_S, STD, EPS, CLASSES
    )
    mean_t, scale_t = _scale(
        teacher, image, first, lane, valid, theirs, lo, width, C, P, T, LAST_T, STD, EPS, CLASSES
    )
    return image, first, lane, valid, row, theirs, mean_s, scale_s, mean_t, scale_t


@jit
@no_type_check
def _tops(
    student, teacher, image, first, lane, valid, ours, theirs, lo: tl.constexpr,
    width: tl.constexpr, C: tl.constexpr, P, LAST_S: tl.constexpr, LAST_T: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The largest logit of each row, student's and teacher's: a maximum a lane, reduced once."""
    top_s = tl.full([ROWS, CLASSES], float("-inf"), tl.float32)
    top_t = tl.full([ROWS, CLASSES], float("-inf"), tl.float32)
    for start in range(0, width, CLASSES):
        s, _ = _tile(
            student, image, first, lane, valid, ours, start, lo, width, C, P, LAST_S, CLASSES
        )
        t, _ = _tile(
            teacher, image, first, lane, valid, theirs, start, lo, width, C, P, LAST_T, CLASSES
        )
        top_s, top_t = tl.maximum(top_s, s), tl.maximum(top_t, t)
    return tl.max(top_s, 1), tl.max(top_t, 1)


@jit
@no_type_check
def kd_kl_fwd_kernel(
    student,  # [N, C, P] in either memory format
    teacher,  # [M, N, C, P]
    index,  # [N * P] int64, or anything where INDEXED is False
    weight,  # [N * P] float32, or anything where WEIGHTED is False
    rows_out,  # [3, N * P] float32: log-sum-exp of u and of v, and the KL
    partial,  # [programs] float32
    P, T, factor, stride, rows,
    C: tl.constexpr, lo: tl.constexpr, width: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,
    STD: tl.constexpr, REVERSE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    image, first, lane, valid, row, theirs, mean_s, scale_s, mean_t, scale_t = _block(
        student, teacher, index, P, T, stride, C, lo, width, LAST_S, LAST_T, INDEXED, STD, EPS,
        ROWS, CLASSES,
    )  # fmt: skip
    ours = tl.zeros([1, 1], tl.int64)
    top_s, top_t = _tops(
        student, teacher, image, first, lane, valid, ours, theirs, lo, width, C, P, LAST_S, LAST_T,
        ROWS, CLASSES,
    )  # fmt: skip
    # the shift's rounding is the same for a whole row, and cancels in it; -inf - -inf is NaN
    rate_s, rate_t = scale_s * LOG2E, scale_t * LOG2E
    base_s = (tl.where(top_s == float("-inf"), 0.0, top_s) * rate_s)[:, None]
    base_t = (tl.where(top_t == float("-inf"), 0.0, top_t) * rate_t)[:, None]
    sum_s = tl.zeros([ROWS, CLASSES], tl.float32)
    sum_t = tl.zeros([ROWS, CLASSES], tl.float32)
    cross = tl.zeros([ROWS, CLASSES], tl.float32)  # sum of q (v - u), or of p (u - v)
    for start in range(0, width, CLASSES):
        s, _ = _tile(
            student, image, first, lane, valid, ours, start, lo, width, C, P, LAST_S, CLASSES
        )
        t, _ = _tile(
            teacher, image, first, lane, valid, theirs, start, lo, width, C, P, LAST_T, CLASSES
        )
        u, v = s * rate_s[:, None] - base_s, t * rate_t[:, None] - base_t
        p, q = tl.exp2(u), tl.exp2(v)
        sum_s += p
        sum_t += q
        used = (p if REVERSE else q) > 0
        gap = tl.where(used, v, 0.0) - tl.where(used, u, 0.0)
        cross += -p * gap if REVERSE else q * gap
    total_s, total_t = tl.sum(sum_s, 1), tl.sum(sum_t, 1)
    total_s, total_t = tl.where(valid, total_s, 1.0), tl.where(valid, total_t, 1.0)
    log_s, log_t = tl.log(total_s), tl.log(total_t)
    apart = tl.sum(cross, 1) / (LOG2E * (total_s if REVERSE else total_t))
    kl = apart + log_t - log_s if REVERSE else apart + log_s - log_t
    lse_s, lse_t = log_s + (top_s - mean_s) * scale_s, log_t + (top_t - mean_t) * scale_t
    tl.store(rows_out + row, lse_s, valid)
    tl.store(rows_out + rows + row, lse_t, valid)
    tl.store(rows_out + 2 * rows + row, kl, valid)
    if WEIGHTED:
        kl = kl * tl.load(weight + row, valid, 0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(valid, kl, 0.0), 0) * factor)


@jit
@no_type_check
def _gradient(s, t, rate_s, base_s, rate_t, base_t, kl, REVERSE: tl.constexpr):
    """d KL / d u at a tile; logits times rate, less base, are log2 of p and of q."""
    log_p, log_q = s * rate_s[:, None] - base_s[:, None], t * rate_t[:, None] - base_t[:, None]
    p = tl.exp2(log_p)
    if REVERSE:
        gap = tl.where(p > 0, log_p, 0.0) - tl.where(p > 0, log_q, 0.0)
        return p * (gap / LOG2E - kl[:, None])
    return p - tl.exp2(log_q)


@jit
@no_type_check
def kd_kl_bwd_kernel(
    student, teacher, index, weight, rows_in, upstream, grad,
    P, T, factor, stride, rows,
    C: tl.constexpr, lo: tl.constexpr, width: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,
    STD: tl.constexpr, REVERSE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    image, first, lane, valid, row, theirs, mean_s, scale_s, mean_t, scale_t = _block(
        student, teacher, index, P, T, stride, C, lo, width, LAST_S, LAST_T, INDEXED, STD, EPS,
        ROWS, CLASSES,
    )  # fmt: skip
    ours = tl.zeros([1, 1], tl.int64)
    lse_s = tl.load(rows_in + row, valid, 0.0)
    lse_t = tl.load(rows_in + rows + row, valid, 0.0)
    kl = tl.load(rows_in + 2 * rows + row, valid, 0.0)
    rate_s, rate_t = scale_s * LOG2E, scale_t * LOG2E
    base_s, base_t = mean_s * rate_s + lse_s * LOG2E, mean_t * rate_t + lse_t * LOG2E
    outer = tl.load(upstream) * factor + tl.zeros([ROWS], tl.float32)
    if WEIGHTED:
        outer = outer * tl.load(weight + row, valid, 0.0)
    pull = tl.zeros([ROWS], tl.float32)  # through sigma: sum of d KL / d u * (s - mean)
    if STD:
        for start in range(0, width, CLASSES):
            s, mask = _tile(
                student, image, first, lane, valid, ours, start, lo, width, C, P, LAST_S, CLASSES
            )
            t, _ = _tile(
                teacher, image, first, lane, valid, theirs, start, lo, width, C, P, LAST_T, CLASSES
            )
            g = _gradient(s, t, rate_s, base_s, rate_t, base_t, kl, REVERSE)
            pull += tl.sum(g * tl.where(mask, s - mean_s[:, None], 0.0), 1)
        inverse = scale_s * T
        pull = tl.where(inverse * EPS < 1, pull * inverse * inverse / tl.maximum(width - 1, 1), 0.0)
    for start in range(0, C, CLASSES):
        k = start + tl.arange(0, CLASSES)
        s, inside = _tile(
            student, image, first, lane, valid, ours, start - lo, lo, width, C, P, LAST_S, CLASSES
        )
        t, _ = _tile(
            teacher, image, first, lane, valid, theirs, start - lo, lo, width, C, P, LAST_T, CLASSES
        )
        g = _gradient(s, t, rate_s, base_s, rate_t, base_t, kl, REVERSE)
        if STD:
            g = g - tl.where(inside, s - mean_s[:, None], 0.0) * pull[:, None]
        g = tl.where(inside, g * (outer * scale_s)[:, None], 0.0)
        place = _address(grad, image, first, lane, k, C, P, LAST_S)
        tl.store(place, g.to(grad.dtype.element_ty), valid[:, None] & (k < C)[None, :])
