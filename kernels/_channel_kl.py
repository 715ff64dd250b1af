"""Triton code of `channel_kl`: strips of a row, their merge, and the gradient."""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl
from kdcompile.kernels._tiles import tile_at


@jit
@no_type_check
def _here(C, strips, LAST: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, channels and strip of this program; the next program reads on in memory."""
    blocks = tl.cdiv(C, CHANNELS)
    place = tl.program_id(0) % (blocks * strips)
    block = place % blocks if LAST else place // strips
    strip = place // blocks if LAST else place % strips
    image = (tl.program_id(0) // (blocks * strips)).to(tl.int64)
    return image, block * CHANNELS + tl.arange(0, CHANNELS), strip


@jit
@no_type_check
def _read(pointer, image, channel, start, pixel, C, P, scale, LAST: tl.constexpr):
    """A tile of the map times `scale`; -inf outside the map."""
    inside = (channel < C)[:, None] & (start + pixel < P)[None, :]
    place = tile_at(pointer, image, channel, start, pixel, C, P, LAST)
    return tl.load(place, inside, float("-inf")).to(tl.float32) * scale


@jit
@no_type_check
def _grow(top, total, a, b, c, d):
    """Four steps of an online softmax: maximum, sum, the correction of both, and the weights."""
    top_now = tl.maximum(top, tl.maximum(tl.maximum(a, b), tl.maximum(c, d)))
    base = tl.where(top_now > float("-inf"), top_now, 0.0)
    shrink = tl.exp2(top - base)
    a, b, c, d = tl.exp2(a - base), tl.exp2(b - base), tl.exp2(c - base), tl.exp2(d - base)
    return top_now, total * shrink + ((a + b) + (c + d)), shrink, a, b, c, d


@jit
@no_type_check
def _cross(weight, u, v):
    """weight * (v - u), and 0 where the weight is 0."""
    used = weight > 0
    return weight * (tl.where(used, v, 0.0) - tl.where(used, u, 0.0))


@jit
@no_type_check
def _together(top, total, cross):
    """Statistics of [rows, parts] as those of whole rows; `cross` belongs to the same softmax."""
    row_top = tl.max(top, 1)
    base = tl.where(row_top > float("-inf"), row_top, 0.0)
    weight = tl.exp2(top - base[:, None])
    cross = tl.sum(tl.where(weight > 0, cross, 0.0) * weight, 1)
    return row_top, tl.sum(total * weight, 1), cross


@jit
@no_type_check
def _finish(lse, partial, row, rows, valid, top_s, sum_s, top_t, sum_t, cross, factor):
    """Store both log-sum-exp of each row, +inf where it takes no part, and the sum of the KL."""
    used = (sum_s > 0) & (sum_t > 0)
    lse_s = tl.log2(tl.where(used, sum_s, 1.0)) + tl.where(used, top_s, 0.0)
    lse_t = tl.log2(tl.where(used, sum_t, 1.0)) + tl.where(used, top_t, 0.0)
    kl = tl.where(used, cross, 0.0) / tl.where(used, sum_t, 1.0) + lse_s - lse_t
    tl.store(lse + row, tl.where(used, lse_s, float("inf")), valid)
    tl.store(lse + rows + row, tl.where(used, lse_t, float("inf")), valid)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(valid, kl, 0.0), 0) * factor)


@jit
@no_type_check
def channel_kl_fwd_kernel(
    student,  # [N, C, P] in either memory format
    teacher,
    stats,  # [5, N * C, strips] float32; unused where ONE
    lse,  # [2, N * C] float32, and partial, [programs]: written where a row is ONE strip
    partial,
    C, P, scale, factor, rows, strips, steps,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, ONE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    image, channel, strip = _here(C, strips, LAST_S, CHANNELS)
    first, pixel = strip * (steps * 4 * PIXELS), tl.arange(0, PIXELS)
    top_s = tl.full([CHANNELS, PIXELS], float("-inf"), tl.float32)
    top_t = tl.full([CHANNELS, PIXELS], float("-inf"), tl.float32)
    sum_s = tl.zeros([CHANNELS, PIXELS], tl.float32)
    sum_t = tl.zeros([CHANNELS, PIXELS], tl.float32)
    cross = tl.zeros([CHANNELS, PIXELS], tl.float32)  # sum of weight * (v - u)
    for step in range(steps):
        # four tiles at once keep enough bytes in flight, and share one correction
        i = first + step * 4 * PIXELS
        j, k, m = i + PIXELS, i + 2 * PIXELS, i + 3 * PIXELS
        u0 = _read(student, image, channel, i, pixel, C, P, scale, LAST_S)
        u1 = _read(student, image, channel, j, pixel, C, P, scale, LAST_S)
        u2 = _read(student, image, channel, k, pixel, C, P, scale, LAST_S)
        u3 = _read(student, image, channel, m, pixel, C, P, scale, LAST_S)
        v0 = _read(teacher, image, channel, i, pixel, C, P, scale, LAST_T)
        v1 = _read(teacher, image, channel, j, pixel, C, P, scale, LAST_T)
        v2 = _read(teacher, image, channel, k, pixel, C, P, scale, LAST_T)
        v3 = _read(teacher, image, channel, m, pixel, C, P, scale, LAST_T)
        top_s, sum_s, _, _, _, _, _ = _grow(top_s, sum_s, u0, u1, u2, u3)
        top_t, sum_t, shrink, q0, q1, q2, q3 = _grow(top_t, sum_t, v0, v1, v2, v3)
        more = (_cross(q0, u0, v0) + _cross(q1, u1, v1)) + (_cross(q2, u2, v2) + _cross(q3, u3, v3))
        cross = tl.where(shrink > 0, cross, 0.0) * shrink + more
    row_top_s, row_sum_s, _ = _together(top_s, sum_s, sum_s)
    row_top_t, row_sum_t, row_cross = _together(top_t, sum_t, cross)
    row, valid = image * C + channel, channel < C
    if ONE:
        _finish(
            lse, partial, row, rows, valid, row_top_s, row_sum_s, row_top_t, row_sum_t, row_cross,
            factor,
        )  # fmt: skip
    else:
        size = tl.cast(rows, tl.int64) * strips
        place = stats + row * strips + strip
        tl.store(place, row_top_s, valid)
        tl.store(place + size, row_sum_s, valid)
        tl.store(place + 2 * size, row_top_t, valid)
        tl.store(place + 3 * size, row_sum_t, valid)
        tl.store(place + 4 * size, row_cross, valid)


@jit
@no_type_check
def _join(top, total, cross, top_b, total_b, cross_b):
    """Statistics of two parts of the same rows as one."""
    both = tl.maximum(top, top_b)
    base = tl.where(both > float("-inf"), both, 0.0)
    a, b = tl.exp2(top - base), tl.exp2(top_b - base)
    cross = tl.where(a > 0, cross, 0.0) * a + tl.where(b > 0, cross_b, 0.0) * b
    return both, total * a + total_b * b, cross


@jit
@no_type_check
def channel_kl_merge_kernel(
    stats, lse, partial, factor, rows, strips, ROWS: tl.constexpr, STRIPS: tl.constexpr
):
    row = tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS)
    size = tl.cast(rows, tl.int64) * strips
    top_s = tl.full([ROWS, STRIPS], float("-inf"), tl.float32)
    top_t = tl.full([ROWS, STRIPS], float("-inf"), tl.float32)
    sum_s = tl.zeros([ROWS, STRIPS], tl.float32)
    sum_t = tl.zeros([ROWS, STRIPS], tl.float32)
    cross = tl.zeros([ROWS, STRIPS], tl.float32)
    for start in range(0, strips, STRIPS):
        strip = start + tl.arange(0, STRIPS)
        place = stats + row[:, None] * strips + strip[None, :]
        inside = (row < rows)[:, None] & (strip < strips)[None, :]
        top = tl.load(place, inside, float("-inf"))
        total = tl.load(place + size, inside, 0.0)
        top_s, sum_s, _ = _join(top_s, sum_s, sum_s, top, total, total)
        top = tl.load(place + 2 * size, inside, float("-inf"))
        total = tl.load(place + 3 * size, inside, 0.0)
        more = tl.load(place + 4 * size, inside, 0.0)
        top_t, sum_t, cross = _join(top_t, sum_t, cross, top, total, more)
    row_top_s, row_sum_s, _ = _together(top_s, sum_s, sum_s)
    row_top_t, row_sum_t, row_cross = _together(top_t, sum_t, cross)
    _finish(
        lse, partial, row, rows, row < rows, row_top_s, row_sum_s, row_top_t, row_sum_t, row_cross,
        factor,
    )  # fmt: skip


@jit
@no_type_check
def channel_kl_bwd_kernel(
    student, teacher, lse, upstream, grad, C, P, scale, factor, rows, strips,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    image, channel, strip = _here(C, strips, LAST_S, CHANNELS)
    start, pixel = strip * PIXELS, tl.arange(0, PIXELS)
    row, valid = image * C + channel, channel < C
    lse_s = tl.load(lse + row, valid, 0.0)
    lse_t = tl.load(lse + rows + row, valid, 0.0)
    u = _read(student, image, channel, start, pixel, C, P, scale, LAST_S)
    v = _read(teacher, image, channel, start, pixel, C, P, scale, LAST_T)
    gap = tl.exp2(u - lse_s[:, None]) - tl.exp2(v - lse_t[:, None])
    g = gap * (tl.load(upstream) * factor)
    place = tile_at(grad, image, channel, start, pixel, C, P, LAST_S)
    inside = valid[:, None] & (start + pixel < P)[None, :]
    tl.store(place, g.to(grad.dtype.element_ty), inside)
