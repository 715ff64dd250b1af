"""Triton code of `feature_mse`: the sums, the loss, and the gradient."""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl
from kdcompile.kernels._tiles import tile_at


@jit
@no_type_check
def _here(C, P, steps, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Image, group of channels and first pixel of this program."""
    groups = tl.cdiv(C, CHANNELS)
    blocks = tl.cdiv(P, PIXELS * steps)
    # programs of the same pixels follow each other, so that the weights come from the L2 cache
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups % blocks
    image = (tl.program_id(0) // (groups * blocks)).to(tl.int64)
    return image, group, block * (PIXELS * steps)


@jit
@no_type_check
def feature_mse_fwd_kernel(
    student,  # [N, C, P] in either memory format
    teacher,
    mask,  # [N, P] weights; unused unless MASKED
    partial,  # [2, programs] float32: sum of weight * square, and of the weights if MASKED
    C, P, steps, programs,
    MASKED: tl.constexpr, LAST_S: tl.constexpr, LAST_T: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    image, group, first = _here(C, P, steps, CHANNELS, PIXELS)
    channel, pixel = group * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, PIXELS)
    total = tl.zeros([CHANNELS, PIXELS], tl.float32)
    weight = tl.zeros([PIXELS], tl.float32)
    for step in range(steps):
        start = first + step * PIXELS
        valid = start + pixel < P
        inside = (channel < C)[:, None] & valid[None, :]
        s = tl.load(tile_at(student, image, channel, start, pixel, C, P, LAST_S), inside, 0.0)
        t = tl.load(tile_at(teacher, image, channel, start, pixel, C, P, LAST_T), inside, 0.0)
        s, t = s.to(tl.float32), t.to(tl.float32)
        if MASKED:
            m = tl.load(mask + image * P + start + pixel, valid, 0.0).to(tl.float32)
            used = (m != 0)[None, :]
            gap = tl.where(used, s, 0.0) - tl.where(used, t, 0.0)
            total += gap * gap * m[None, :]
            weight += m
        else:
            total += (s - t) * (s - t)
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
    if MASKED:
        own = tl.where(group == 0, tl.sum(weight, 0), 0.0)  # one group counts for all channels
        tl.store(partial + programs + tl.program_id(0), own)


@jit
@no_type_check
def feature_mse_normalized_fwd_kernel(
    student,
    teacher,
    mask,
    partial,
    stats,  # [2, N * P] float32: a and b of the gradient a s - b t; b is 0 where that is 0
    C, P, steps, programs, size,
    MASKED: tl.constexpr, LAST_S: tl.constexpr, LAST_T: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    image, _, begin = _here(1, P, steps, 1, PIXELS)
    pixel = tl.arange(0, PIXELS)
    total = tl.zeros([PIXELS], tl.float32)
    weight = tl.zeros([PIXELS], tl.float32)
    for step in range(steps):
        start = begin + step * PIXELS
        valid = start + pixel < P
        ss = tl.zeros([CHANNELS, PIXELS], tl.float32)
        tt = tl.zeros([CHANNELS, PIXELS], tl.float32)
        st = tl.zeros([CHANNELS, PIXELS], tl.float32)
        for first in range(0, C, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            inside = (channel < C)[:, None] & valid[None, :]
            s = tl.load(tile_at(student, image, channel, start, pixel, C, P, LAST_S), inside, 0.0)
            t = tl.load(tile_at(teacher, image, channel, start, pixel, C, P, LAST_T), inside, 0.0)
            s, t = s.to(tl.float32), t.to(tl.float32)
            ss, tt, st = ss + s * s, tt + t * t, st + s * t
        m = valid.to(tl.float32)
        place = image * P + start + pixel
        if MASKED:
            m = tl.load(mask + place, valid, 0.0).to(tl.float32)
            weight += m
        own = tl.where(m != 0, tl.sum(ss, 0), 0.0)
        theirs = tl.where(m != 0, tl.sum(tt, 0), 0.0)
        both = (own > 0) & (theirs > 0)
        product = tl.where(both, tl.sqrt(own) * tl.sqrt(theirs), 1.0)
        cosine = tl.where(both, tl.sum(st, 0), 0.0) / product
        alone = (own > 0).to(tl.float32) + (theirs > 0).to(tl.float32)
        total += m * tl.where(both, tl.maximum(2.0 - 2.0 * cosine, 0.0), alone)
        tl.store(stats + place, m * cosine / tl.where(both, own, 1.0), valid)
        tl.store(stats + size + place, tl.where(both, m / product, 0.0), valid)
    tl.store(partial + tl.program_id(0), tl.sum(total, 0))
    if MASKED:
        tl.store(partial + programs + tl.program_id(0), tl.sum(weight, 0))


@jit
@no_type_check
def feature_mse_finish_kernel(
    partial, loss, inverse, programs, C, plain, MASKED: tl.constexpr, SIZE: tl.constexpr
):
    """The loss, and one over the divisor: `plain`, or 1 / (C * sum of weights)."""
    total = tl.zeros([SIZE], tl.float32)
    weight = tl.zeros([SIZE], tl.float32)
    for start in range(0, programs, SIZE):
        program = start + tl.arange(0, SIZE)
        total += tl.load(partial + program, program < programs, 0.0)
        if MASKED:
            weight += tl.load(partial + programs + program, program < programs, 0.0)
    scale = plain + tl.zeros([1], tl.float32)
    if MASKED:
        sums = tl.sum(weight, 0) + tl.zeros([1], tl.float32)
        scale = tl.where(sums != 0, 1.0 / (C * tl.where(sums != 0, sums, 1.0)), 0.0)
    tl.store(inverse + tl.arange(0, 1), scale)
    tl.store(loss + tl.arange(0, 1), tl.sum(total, 0) * scale)


@jit
@no_type_check
def feature_mse_bwd_kernel(
    student,
    teacher,
    weights,  # [2, N * P] float32 if NORMALIZED; [N, P] if MASKED alone; else unused
    inverse,
    upstream,
    grad,
    C, P, size,
    MASKED: tl.constexpr, NORMALIZED: tl.constexpr, LAST_S: tl.constexpr, LAST_T: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    image, group, start = _here(C, P, 1, CHANNELS, PIXELS)
    channel, pixel = group * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, PIXELS)
    valid = start + pixel < P
    inside = (channel < C)[:, None] & valid[None, :]
    s = tl.load(tile_at(student, image, channel, start, pixel, C, P, LAST_S), inside, 0.0)
    t = tl.load(tile_at(teacher, image, channel, start, pixel, C, P, LAST_T), inside, 0.0)
    s, t = s.to(tl.float32), t.to(tl.float32)
    outer = 2.0 * tl.load(upstream) * tl.load(inverse)
    place = weights + image * P + start + pixel
    if NORMALIZED:
        a = tl.load(place, valid, 0.0)
        b = tl.load(place + size, valid, 0.0)
        used = (b != 0)[None, :]
        g = (a * outer)[None, :] * tl.where(used, s, 0.0)
        g -= (b * outer)[None, :] * tl.where(used, t, 0.0)
    elif MASKED:
        m = tl.load(place, valid, 0.0).to(tl.float32)
        used = (m != 0)[None, :]
        g = (tl.where(used, s, 0.0) - tl.where(used, t, 0.0)) * (m * outer)[None, :]
    else:
        g = (s - t) * outer
    place = tile_at(grad, image, channel, start, pixel, C, P, LAST_S)
    tl.store(place, g.to(grad.dtype.element_ty), inside)
