"""Triton code of `attention_transfer`: energies, their distance, and the gradient."""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl
from kdcompile.kernels._tiles import tile_at


@jit
@no_type_check
def _energy(
    pointer, energy, squares, program, C, P, steps,
    LAST: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(P, PIXELS * steps)
    image = (program // strips).to(tl.int64)
    pixel = tl.arange(0, PIXELS)
    square = tl.zeros([PIXELS], tl.float32)
    for step in range(steps):
        start = ((program % strips) * steps + step) * PIXELS
        valid = start + pixel < P
        total = tl.zeros([CHANNELS, PIXELS], tl.float32)
        for first in range(0, C, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            place = tile_at(pointer, image, channel, start, pixel, C, P, LAST)
            x = tl.load(place, (channel < C)[:, None] & valid[None, :], 0.0).to(tl.float32)
            total += x * x
        e = tl.sum(total, 0)
        tl.store(energy + image * P + start + pixel, e, valid)
        square += e * e
    tl.store(squares + program, tl.sum(square, 0))


@jit
@no_type_check
def attention_transfer_fwd_kernel(
    student,  # [N, C_S, P] in either memory format
    teacher,  # [N, C_T, P]
    energy,  # [2, N, P] float32
    squares,  # float32: of each program the sum of its squared energies
    C_S, C_T, P, steps_s, steps_t, programs, size,
    LAST_S: tl.constexpr, CHANNELS_S: tl.constexpr, PIXELS_S: tl.constexpr,
    LAST_T: tl.constexpr, CHANNELS_T: tl.constexpr, PIXELS_T: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < programs:
        _energy(student, energy, squares, program, C_S, P, steps_s, LAST_S, CHANNELS_S, PIXELS_S)
    else:
        _energy(
            teacher, energy + size, squares + programs, program - programs, C_T, P, steps_t,
            LAST_T, CHANNELS_T, PIXELS_T,
        )  # fmt: skip


@jit
@no_type_check
def _norm(squares, image, parts, PARTS: tl.constexpr):
    """Root of the sum of this image's parts."""
    total = tl.zeros([PARTS], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        total += tl.load(squares + image * parts + part, part < parts, 0.0)
    return tl.sqrt(tl.sum(total, 0))


@jit
@no_type_check
def _inverse(norm):
    return tl.where(norm > 0, 1.0 / tl.where(norm > 0, norm, 1.0), 0.0)


@jit
@no_type_check
def attention_transfer_gap_kernel(
    energy,
    squares,
    stats,  # [3, N] float32: |e_S|, |e_T| and D; the last is written by the next kernel
    partial,  # [N, blocks] float32: sum of (q_S - q_T)^2 over a block of pixels
    N, P, parts_s, parts_t, size,
    PIXELS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(P, PIXELS)
    image, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    norm_s = _norm(squares, image, parts_s, PARTS)
    norm_t = _norm(squares + N * parts_s, image, parts_t, PARTS)
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    place = energy + image * P + pixel
    gap = tl.load(place, pixel < P, 0.0) * _inverse(norm_s)
    gap -= tl.load(place + size, pixel < P, 0.0) * _inverse(norm_t)
    tl.store(partial + tl.program_id(0), tl.sum(gap * gap, 0))
    if block == 0:
        tl.store(stats + image, norm_s)
        tl.store(stats + N + image, norm_t)


@jit
@no_type_check
def attention_transfer_finish_kernel(
    partial, stats, loss, N, blocks, factor,
    PAPER: tl.constexpr, IMAGES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([IMAGES], tl.float32)
    for first in range(0, N, IMAGES):
        image = first + tl.arange(0, IMAGES)
        distance = tl.zeros([IMAGES, BLOCKS], tl.float32)
        for start in range(0, blocks, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            inside = (image < N)[:, None] & (block < blocks)[None, :]
            distance += tl.load(partial + image[:, None] * blocks + block[None, :], inside, 0.0)
        squared = tl.sum(distance, 1)
        tl.store(stats + 2 * N + image, squared, image < N)
        total += tl.sqrt(squared) if PAPER else squared
    tl.store(loss, tl.sum(total, 0) * factor)


@jit
@no_type_check
def attention_transfer_bwd_kernel(
    student, energy, stats, upstream, grad, C, P, N, size, factor,
    PAPER: tl.constexpr, SAME: tl.constexpr, LAST: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    groups, blocks = tl.cdiv(C, CHANNELS), tl.cdiv(P, PIXELS)
    # programs of the same pixels follow each other, so that the energies come from the L2 cache
    channel = (tl.program_id(0) % groups) * CHANNELS + tl.arange(0, CHANNELS)
    start, pixel = (tl.program_id(0) // groups % blocks) * PIXELS, tl.arange(0, PIXELS)
    image = (tl.program_id(0) // (groups * blocks)).to(tl.int64)
    valid = start + pixel < P
    inverse_s = _inverse(tl.load(stats + image))
    norm_t = tl.load(stats + N + image)
    squared = tl.load(stats + 2 * N + image)
    outer = tl.load(upstream) * factor
    if PAPER:
        distance = tl.sqrt(squared)
        outer = outer * _inverse(tl.where(distance > SAME, distance, 0.0))
    place = energy + image * P + start + pixel
    q = tl.load(place, valid, 0.0) * inverse_s
    gap = q - tl.load(place + size, valid, 0.0) * _inverse(norm_t)
    pull = (gap - q * tl.where(norm_t > 0, squared * 0.5, squared)) * (inverse_s * outer)
    inside = (channel < C)[:, None] & valid[None, :]
    x = tl.load(tile_at(student, image, channel, start, pixel, C, P, LAST), inside, 0.0)
    g = x.to(tl.float32) * pull[None, :]
    place = tile_at(grad, image, channel, start, pixel, C, P, LAST)
    tl.store(place, g.to(grad.dtype.element_ty), inside)
